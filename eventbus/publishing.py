"""How messages and jobs leave a bus: through its own driver, or through another one by name.

`Sender` publishes what `EventBus` has checked and encoded. `OtherDrivers` opens the drivers that
`EventBus.using` names, and `Using` is what that returns.
"""

import asyncio
import collections
import logging
from collections.abc import Sequence
from typing import Any, Final, Unpack

from eventbus import tracing
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers import calls
from eventbus.drivers.base import Driver
from eventbus.drivers.queues import QueueStore
from eventbus.drivers.registry import canonical_name, check_name, create
from eventbus.drivers.stack import StackDriver
from eventbus.errors import BusStateError, ConfigError
from eventbus.events import Dispatcher, Event, Outgoing, PublishOptions
from eventbus.messages import HEADER_ID, Receipt, gather_receipts
from eventbus.queue import Job, push, queue_store
from eventbus.user_code import guarded

__all__ = ["OtherDrivers", "Sender", "Using"]


_log = logging.getLogger(__name__)

MAX_OTHERS: Final = 8
"""How many drivers a bus may open in addition to its own."""
_WHERE: Final = "using()"


class Sender:
    """Sends through the bus's own driver, or the one that a message or a job names."""

    def __init__(self, driver: Driver, others: "OtherDrivers", subjects: Subjects) -> None:
        self._driver = driver
        self._others = others
        self._subjects = subjects
        self._in_flight = 0
        self._idle = asyncio.Event()

    async def send_all(self, outgoing: Sequence[Outgoing | Job | Receipt]) -> tuple[Receipt, ...]:
        """Send concurrently. Raises the error of a single message, DispatchFailed for several."""
        destinations = [
            each.message.channel if isinstance(each, Outgoing) else f"queue {each.queue}"
            for each in outgoing
        ]
        return await gather_receipts(destinations, [self.send(each) for each in outgoing])

    async def send(self, outgoing: Outgoing | Job | Receipt) -> Receipt:
        """Send one. Raises DriverError."""
        if isinstance(outgoing, Receipt):  # a test's fake has kept the message
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

    async def _publish(self, outgoing: Outgoing) -> Receipt:
        message, volatile, headers, via, template = outgoing
        driver = self._driver if via is None else await self._others.get(via)
        channel = message.channel
        if volatile:
            subject = self._subjects.live(channel)
        else:
            subject = self._subjects.event(channel)
            # Streams deduplicate by id alone: one event on two channels is two messages to them.
            headers = {**headers, HEADER_ID: f"{message.id}:{channel}"}
        with tracing.sending(
            driver.name, channel, message.id, template=template, headers=headers
        ) as context:
            if context:
                headers = {**headers, **context}
            stored = await calls.publish(driver, subject, message.encode(), headers)
        if stored is None:
            return Receipt(channel, message.id, None, None)
        position = stored.position
        return Receipt(channel, message.id, position.offset, position.epoch, stored.duplicate)

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


class OtherDrivers:
    """The drivers that a bus opens in addition to its own, each on its first use."""

    def __init__(self, settings: Settings, own: Driver) -> None:
        self._settings = settings
        self._own = own
        self._open: dict[str, Driver] = {}
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._closed = False

    def check(self, name: str) -> None:
        """Raises ConfigError for an unknown driver."""
        if canonical_name(name) not in (self._own.name, *self._members, *self._open):
            check_name(name, _WHERE)

    async def get(self, name: str) -> Driver:
        """The open driver of that name: the bus's own, one of its stack, or one opened here.

        Raises ConfigError, what opening raises (the next call tries again), and BusStateError.
        """
        name = canonical_name(name)
        if name == self._own.name:
            return self._own
        if name in self._members:
            assert isinstance(self._own, StackDriver)
            return self._own.member(name)
        check_name(name, _WHERE)
        async with self._locks[name]:
            if (driver := self._open.get(name)) is None:
                driver = await self._make(name)
            return driver

    async def aclose(self) -> None:
        """Close them all; no other is opened."""
        self._closed = True
        drivers, self._open = self._open, {}
        await asyncio.gather(*(calls.close(name, driver) for name, driver in drivers.items()))

    @property
    def _members(self) -> tuple[str, ...]:
        return self._own.names if isinstance(self._own, StackDriver) else ()

    async def _make(self, name: str) -> Driver:
        self._require_open()
        if len(self._open) >= MAX_OTHERS:
            raise ConfigError(
                f"{_WHERE}: {name!r} would be one driver too many: a bus opens up to {MAX_OTHERS} "
                f"in addition to its own, and has {', '.join(self._open)}",
                variable=_WHERE,
            )
        driver = create(name, self._settings, variable=_WHERE)
        try:
            with guarded():
                await driver.open()
            self._require_open()  # the bus may have closed meanwhile
        except BaseException:
            await driver.aclose()
            raise
        self._open[name] = driver
        return driver

    def _require_open(self) -> None:
        if self._closed:
            raise BusStateError("the bus is closed and opens no driver")


class Using:
    """A bus, through one of its other drivers."""

    def __init__(self, bus: Dispatcher, driver: str) -> None:
        self._bus = bus
        self._driver = driver

    async def publish(
        self, channel: str, event: str, data: Any, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one message; see `EventBus.publish`."""
        return await self._bus.publish(channel, event, data, via=self._driver, **options)

    async def dispatch(self, *events: Event, raise_errors: bool = False) -> tuple[Receipt, ...]:
        """Dispatch events; see `EventBus.dispatch`."""
        return await self._bus.dispatch(*events, raise_errors=raise_errors, via=self._driver)
