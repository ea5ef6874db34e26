"""Sends encoded events: messages through a driver, jobs into a queue."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from eventbus import tracing
from eventbus.channels import Subjects
from eventbus.drivers import Driver, OtherDrivers, QueueStore, calls
from eventbus.errors import DriverError
from eventbus.events import (
    Event,
    Outgoing,
    Prepared,
    Rescues,
    ShouldQueue,
    can_rescue,
    current,
    event_definition,
)
from eventbus.messages import HEADER_ID, Receipt, gather_receipts
from eventbus.queue import Job, push, queue_store
from eventbus.user_code import guarded

__all__ = ["Sender", "Sent"]

_log = logging.getLogger(__name__)


class Sent:
    """What remains to be done after sending."""

    def __init__(self, *, is_committed: bool = False) -> None:
        """After a commit, nobody gets errors."""
        self.is_committed = is_committed
        self.heard_here: list[Event] = []
        """The events whose listeners run."""

    def forget(self, event: Event) -> None:
        """Do not run the listeners of an event that was lost."""
        self.heard_here = [each for each in self.heard_here if each is not event]


def destination_of(outgoing: Outgoing | Job | Receipt) -> str:
    """Where a message or a job goes, for errors."""
    if isinstance(outgoing, Outgoing):
        return outgoing.message.channel
    return f"queue {outgoing.queue}"


class Sender:
    """Sends through the bus's own driver, or the one that a message or a job names."""

    def __init__(
        self,
        driver: Driver,
        others: OtherDrivers,
        subjects: Subjects,
        rescues: Rescues,
        fake_for: Callable[[type[Event]], current.Fake | None],
    ) -> None:
        """`rescues` counts what could not be sent; `fake_for` gives the test's fake of a type."""
        self._driver = driver
        self._others = others
        self._subjects = subjects
        self._rescues = rescues
        self._fake_for = fake_for
        self._error: DriverError | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()

    def fail_with(self, error: DriverError) -> None:
        """Raise `error` instead of sending, from now on."""
        self._error = error

    def send_prepared(
        self, prepared: Sequence[Prepared], sent: Sent
    ) -> Coroutine[Any, Any, tuple[Receipt, ...]]:
        """Send encoded events concurrently, and note whose listeners are to run.

        Awaiting it raises the error of a single message, DispatchFailed for several.
        """
        what: list[Outgoing | Job | Receipt] = []
        sends: list[Coroutine[Any, Any, Receipt | None]] = []
        for one in prepared:
            event, outgoing = one.event, one.sends
            fake = self._fake_for(type(event))
            each: Sequence[Outgoing | Job | Receipt] = (
                outgoing if fake is None else fake.keep(event, outgoing)
            )
            if fake is None and not isinstance(event, ShouldQueue):
                sent.heard_here.append(event)
            what += each
            if sent.is_committed or event.__event_definition__.rescue:
                sends += [self._send_rescued(message, event, sent) for message in each]
            else:
                sends += [self.send(message) for message in each]
        return gather_receipts(map(destination_of, what), sends)

    async def _send_rescued(
        self, outgoing: Outgoing | Job | Receipt, event: Event, sent: Sent
    ) -> Receipt | None:
        """Send one; None if that failed, and nothing is raised for it."""
        name = event_definition(type(event)).name
        try:
            return await self.send(outgoing)
        except Exception as exc:
            if event_definition(type(event)).rescue and can_rescue(exc):
                self._rescues.rescued(name, destination_of(outgoing), exc)
            elif sent.is_committed:
                self._rescues.lost(name, destination_of(outgoing), exc)
                sent.forget(event)
            else:
                raise
        return None

    def report_lost(self, prepared: Sequence[Prepared], error: Exception) -> None:
        """Log and count what a commit has released and cannot be sent."""
        for one in prepared:
            name = event_definition(type(one.event)).name
            for message in one.sends:
                self._rescues.lost(name, destination_of(message), error)

    def send_all(
        self, outgoing: Sequence[Outgoing | Job | Receipt]
    ) -> Coroutine[Any, Any, tuple[Receipt, ...]]:
        """Send concurrently; awaiting it raises as for `send_prepared`."""
        sends = [self.send(each) for each in outgoing]
        return gather_receipts(map(destination_of, outgoing), sends)

    async def send(self, outgoing: Outgoing | Job | Receipt) -> Receipt:
        """Send one. Raises DriverError."""
        if isinstance(outgoing, Receipt):  # a test's fake has kept the message
            return outgoing
        if self._error is not None:
            raise self._error
        self._in_flight += 1
        try:
            if isinstance(outgoing, Job):
                return await self._push(outgoing)
            message, headers, via = outgoing.message, outgoing.headers, outgoing.via
            driver = self._driver if via is None else await self._others.get(via)
            channel, id_ = message.channel, message.id
            if outgoing.volatile:
                subject = self._subjects.live_root + channel
            else:
                subject = self._subjects.event_root + channel
                # Streams deduplicate by id alone: one event on two channels is two messages.
                headers = {**headers, HEADER_ID: f"{id_}:{channel}"}
            payload = message.encode()
            if tracing.is_recording():
                with tracing.sending(
                    driver.name, channel, id_, template=outgoing.template, headers=headers
                ) as context:
                    headers = {**headers, **context}
                    stored = await calls.publish(driver, subject, payload, headers)
            else:
                stored = await calls.publish(driver, subject, payload, headers)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if stored is None:
            return Receipt(channel, id_, None, None)
        position, is_duplicate = stored
        return Receipt(channel, id_, position.offset, position.epoch, is_duplicate)

    async def _push(self, job: Job) -> Receipt:
        store = await self.queues(job.connection)
        system = job.connection or self._driver.name
        with (
            tracing.sending(
                system, job.queue, job.meta.id, template=job.queue, headers={}
            ) as context,
            guarded(),
        ):
            return await push(store, job, context)

    async def queues(self, connection: str | None) -> QueueStore:
        """The queues of a driver; see `EventBus.queues`."""
        driver = self._driver if connection is None else await self._others.get(connection)
        return queue_store(driver)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is in flight; after that time, log what still is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:  # the driver ends them, which raises at their callers
            _log.warning("closing with %d messages not yet acknowledged", self._in_flight)
