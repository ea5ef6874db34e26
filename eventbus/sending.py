"""How messages and jobs leave a bus: through which driver, and how many are on their way."""

import asyncio
import logging
from collections.abc import Sequence

from eventbus import tracing
from eventbus.channels import Subjects
from eventbus.drivers.base import Driver, QueueStore
from eventbus.drivers.stack_calls import give
from eventbus.jobs import Job, push, queue_store
from eventbus.message import HEADER_ID, Receipt
from eventbus.outgoing import Outgoing
from eventbus.receipts import gather_receipts
from eventbus.user_code import guarded
from eventbus.using import OtherDrivers

__all__ = ["Sender"]

_log = logging.getLogger(__name__)


class Sender:
    """Sends through the bus's own driver, or the one that a message or a job names."""

    def __init__(self, driver: Driver, others: OtherDrivers, subjects: Subjects) -> None:
        self._driver = driver
        self._others = others
        self._subjects = subjects
        self._in_flight = 0
        self._idle = asyncio.Event()

    async def queues(self, connection: str | None) -> QueueStore:
        """The queues of a driver; see `EventBus.queues`."""
        driver = self._driver if connection is None else await self._others.get(connection)
        return queue_store(driver)

    async def send_all(self, outgoing: Sequence[Outgoing | Job | Receipt]) -> tuple[Receipt, ...]:
        """Send concurrently. Raises one message's error as it is, and DispatchFailed of several."""
        told = [
            each.message.channel if isinstance(each, Outgoing) else f"queue {each.queue}"
            for each in outgoing
        ]
        return await gather_receipts(told, [self.send(each) for each in outgoing])

    async def send(self, outgoing: Outgoing | Job | Receipt) -> Receipt:
        """Send one. Raises DriverError."""
        if isinstance(outgoing, Receipt):  # of a fake: there is nothing to send
            return outgoing
        self._in_flight += 1
        try:
            if isinstance(outgoing, Job):
                return await self._push(outgoing)
            return await self._publish(outgoing)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is on its way; after that time, say what still is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:  # the driver ends them, and each one's caller is told
            _log.warning("closing with %d messages not yet acknowledged", self._in_flight)

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

    async def _publish(self, outgoing: Outgoing) -> Receipt:
        message, volatile, headers, via, template = outgoing
        driver = self._driver if via is None else await self._others.get(via)
        channel = message.channel
        if volatile:
            subject = self._subjects.live(channel)
        else:
            subject = self._subjects.event(channel)
            # A stream knows ids, not channels: one event on two channels is two messages to it.
            headers = {**headers, HEADER_ID: f"{message.id}:{channel}"}
        with tracing.sending(
            driver.name, channel, message.id, template=template, headers=headers
        ) as context:
            if context:
                headers = {**headers, **context}
            stored = await give(driver, subject, message.encode(), headers)
        if stored is None:
            return Receipt(channel, message.id, None, None)
        position = stored.position
        return Receipt(channel, message.id, position.offset, position.epoch, stored.duplicate)
