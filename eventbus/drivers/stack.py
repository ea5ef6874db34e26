"""The stack driver: publishes through several drivers at once, and subscribes through one."""

import asyncio
import collections
import contextlib
import functools
import logging
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from typing import (
    Final,
    Literal,
    NoReturn,
    cast,
)

from eventbus.attempts import Backoff, RateLimitedLog
from eventbus.drivers import calls
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Driver,
    Handler,
    Headers,
    HistoryDriver,
    MaintenanceDriver,
    Page,
    PatternHistoryDriver,
    Position,
    Published,
    Subscription,
    check_of,
)
from eventbus.drivers.consumers import (
    Consumer,
    ConsumerDriver,
    ConsumerSettings,
    GroupDriver,
)
from eventbus.drivers.marks import FollowedReads, read_from
from eventbus.drivers.queues import (
    QueueDriver,
    QueueStore,
)
from eventbus.drivers.state import (
    StateDriver,
    StateStore,
)
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    DriverError,
    EncodingError,
    EventBusError,
    NotSupported,
    PublishFailed,
)
from eventbus.tasks import Shutdown, Tasks
from eventbus.user_code import call_guarded, guarded, text_of

__all__ = ["StackDriver"]


_log = logging.getLogger(__name__)


MAX_BEHIND: Final = 1000
"""How many messages an optional driver may be behind; it does not get any more until then."""
_FIRST_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 30.0


class StackDriver:
    """Publishes through all its drivers concurrently; `publish` waits for the required ones.

    It subscribes and reads through its reader: the first driver with HISTORY, or else the first of
    all. Positions are the reader's. The faults of an optional driver are counted in `counters` and
    logged, never raised; one that fails to open is retried until it opens.
    """

    name = "stack"

    def __init__(
        self,
        factories: Mapping[str, Callable[[], Driver]],
        required: Collection[str] | Literal["any"],
        *,
        close_timeout: float = 15.0,
    ) -> None:
        """`factories` create the drivers, in order; `required` names some of them.

        With "any", a message succeeds when one driver has taken it. Closing gives optional drivers
        `close_timeout` seconds to catch up. Raises as the factories do.
        """
        self._factories = dict(factories)
        self._drivers = {name: make() for name, make in self._factories.items()}
        self._required = required if required == "any" else frozenset(required)
        self._close_timeout = close_timeout
        self._reader = next(
            (n for n, d in self._drivers.items() if Capability.HISTORY in d.capabilities),
            next(iter(self._drivers)),
        )
        self.capabilities = self._drivers[self._reader].capabilities
        self.counters: collections.Counter[str] = collections.Counter()
        """Faults of optional drivers since the start, as `<driver>.errors`."""
        self._open: dict[str, Driver] = {}
        self._has_begun = False
        self._is_open = False
        self._behind: dict[str, set[asyncio.Task[Published | None]]] = collections.defaultdict(set)
        self._reopening = Tasks()
        self._shutdown = Shutdown()
        self._log = RateLimitedLog(_log)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its drivers, in their order."""
        return tuple(self._drivers)

    @property
    def drivers(self) -> Mapping[str, Driver]:
        """The drivers that are open, by name."""
        return self._open

    def member(self, name: str) -> Driver:
        """One of its drivers. Raises ConnectionFailed if that is not open."""
        self._require_open()
        if (driver := self._open.get(name)) is None:
            raise ConnectionFailed(f"the stack's driver {name} is not open yet", driver=name)
        return driver

    @property
    def is_connected(self) -> bool:
        """Whether the reader and each required driver are connected."""
        connected = {name for name, driver in self._open.items() if driver.is_connected}
        return self._is_open and {self._reader, *self._musts} <= connected

    async def open(self) -> None:
        """Open all drivers concurrently.

        Raises the ConfigError of any of them, and the error of a required one (with "any": if none
        opens); the others are closed then.
        """
        if self._has_begun:
            raise ConnectionFailed("the stack driver is open already", driver=self.name)
        try:
            async with self._shutdown.opening(
                lambda: ConnectionFailed("the stack driver was closed", driver=self.name)
            ):
                self._has_begun = True
                results = await asyncio.gather(
                    *(call_guarded(d.open) for d in self._drivers.values()), return_exceptions=True
                )
                outcomes = dict(zip(self._drivers, results, strict=True))
                faults = {name: fault for name, fault in outcomes.items() if fault is not None}
                self._raise_if_fatal(faults)
                self._open = {name: d for name, d in self._drivers.items() if name not in faults}
                self._is_open = True
        except BaseException:
            await self.aclose()
            raise
        for name, fault in faults.items():
            self._count(name, "did not open, and is tried again", fault)
            self._reopening.keep(functools.partial(self._reopen, name), f"opening {name} again")

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Publish one message through all drivers; returns when the required ones have taken it.

        The position is the reader's, if it has stored the message by then. Raises PublishFailed
        naming the required drivers that failed, or EncodingError if one will never take the
        message; other drivers may have taken it.
        """
        self._require_open()
        tasks: dict[str, asyncio.Task[Published | None]] = {}
        for name, driver in self._open.items():
            behind = self._behind[name]
            if name not in self._musts and len(behind) >= MAX_BEHIND:
                self._count(name, f"is {MAX_BEHIND} messages behind, and does not get this one")
                continue
            # Not in Tasks: publish() raises a required driver's error, _settle reports the others.
            tasks[name] = task = asyncio.create_task(
                calls.publish(driver, subject, payload, headers)
            )
            behind.add(task)
            task.add_done_callback(functools.partial(self._settle, name))
        if not tasks:
            raise PublishFailed(
                f"a message on {subject} was not taken: {', '.join(self._open)} are each "
                f"{MAX_BEHIND} messages behind",
                driver=",".join(self._open),
            )
        if self._required == "any":
            await _first_success(tasks.values())
            waited = {} if any(map(_succeeded, tasks.values())) else tasks
        else:
            waited = {name: task for name, task in tasks.items() if name in self._musts}
            await asyncio.wait(waited.values())
        if failures := {n: e for n, task in waited.items() if (e := _fault_of(task)) is not None}:
            _raise_failures(subject, failures)
        reader = tasks.get(self._reader)
        return reader.result() if reader is not None and _succeeded(reader) else None

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Subscribe through the reader. Raises ConnectionFailed if that is not open."""
        return await self.member(self._reader).subscribe(subject, handler)

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """The reader's stored messages; see HistoryDriver.read."""
        reader = cast(HistoryDriver, self._able(Capability.HISTORY))
        return await reader.read(subject, after=after, limit=limit)

    async def read_last(self, subject: str, limit: int, followed: Position) -> Page:
        """The reader's last messages of a subject that is followed; see FollowedReads."""
        reader = cast(HistoryDriver, self._able(Capability.HISTORY))
        if isinstance(reader, FollowedReads):
            return await reader.read_last(subject, limit, followed)
        return await reader.read(subject, after=None, limit=limit)

    async def resume(self, subject: str, position: Position, limit: int) -> Page:
        """The reader's stored messages after a position; see ResumingDriver.resume."""
        reader = cast(HistoryDriver, self._able(Capability.HISTORY))
        return await read_from(reader, subject, position, limit)

    async def read_pattern(
        self, subject: str, position: Position, *, limit: int, max_bytes: int
    ) -> Page:
        """The reader's stored messages of a filter; see PatternHistoryDriver.read_pattern."""
        reader = cast(PatternHistoryDriver, self._able(Capability.PATTERN_HISTORY))
        return await reader.read_pattern(subject, position, limit=limit, max_bytes=max_bytes)

    async def subscribe_group(self, subject: str, group: str, handler: Handler) -> Subscription:
        """Subscribe in a group of the reader; see GroupDriver."""
        reader = cast(GroupDriver, self._able(Capability.GROUPS))
        return await reader.subscribe_group(subject, group, handler)

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> Consumer:
        """Join a consumer of the reader; see ConsumerDriver."""
        reader = cast(ConsumerDriver, self._able(Capability.CONSUMERS))
        return await reader.consume(name, subject, settings)

    async def check(self) -> str:
        """Check the reader's broker; see CheckedDriver."""
        return await check_of(self.member(self._reader))

    async def stored(self, pattern: str, limit: int) -> Mapping[str, int]:
        """The reader's stored messages per channel; see MaintenanceDriver."""
        reader = cast(MaintenanceDriver, self._able(Capability.MAINTENANCE))
        return await reader.stored(pattern, limit)

    async def purge(self, subject: str) -> int:
        """Delete the reader's stored messages of a live subject; see MaintenanceDriver."""
        reader = cast(MaintenanceDriver, self._able(Capability.MAINTENANCE))
        return await reader.purge(subject)

    @property
    def queues(self) -> QueueStore:
        """The reader's queues; see QueueDriver."""
        return cast(QueueDriver, self._able(Capability.QUEUE)).queues

    @property
    def state(self) -> StateStore:
        """The reader's shared entries; see StateDriver."""
        return cast(StateDriver, self._able(Capability.PRESENCE)).state

    @property
    def durable_state(self) -> StateStore:
        """The reader's entries that outlive a restart; see StateDriver."""
        return cast(StateDriver, self._able(Capability.PRESENCE)).durable_state

    async def aclose(self) -> None:
        """Give drivers that are behind `close_timeout` seconds, and close all.

        Closing twice is harmless; all callers wait for the same close.
        """
        await self._shutdown.run(self._close)

    async def _close(self) -> None:
        self._is_open = False
        async with contextlib.AsyncExitStack() as parts:  # from the last one to the first
            if self._has_begun:
                parts.push_async_callback(self._close_drivers)
            parts.push_async_callback(self._catch_up)
            parts.push_async_callback(self._reopening.aclose)

    async def _catch_up(self) -> None:
        if behind := [task for tasks in self._behind.values() for task in tasks]:
            _, late = await asyncio.wait(behind, timeout=self._close_timeout)
            for task in late:
                task.cancel()
            if late:
                _log.warning("the stack closes with %d messages not yet taken", len(late))

    @property
    def _musts(self) -> frozenset[str]:
        return frozenset() if self._required == "any" else frozenset(self._required)

    def _require_open(self) -> None:
        if not self._is_open:
            raise ConnectionFailed("the stack driver is not open", driver=self.name)

    def _able(self, capability: Capability) -> Driver:
        """The open reader. Raises NotSupported if it lacks the capability."""
        reader = self.member(self._reader)
        if capability not in self.capabilities:
            raise NotSupported(
                f"the stack's driver {self._reader}, through which it subscribes, has no "
                f"{capability.value}",
                driver=self._reader,
            )
        return reader

    def _raise_if_fatal(self, faults: Mapping[str, BaseException]) -> None:
        for fault in faults.values():
            if isinstance(fault, ConfigError) or not isinstance(fault, Exception):
                raise fault
        fatal = self._musts & faults.keys()
        if self._required == "any" and len(faults) == len(self._drivers):
            fatal = frozenset(faults)
        if not fatal:
            return
        names = [name for name in self._drivers if name in fatal]
        first = faults[names[0]]
        if len(names) == 1 and isinstance(first, DriverError):
            raise first
        raise ConnectionFailed(
            "the stack cannot open: "
            + "; ".join(f"{name}: {text_of(faults[name])}" for name in names),
            driver=",".join(names),
        ) from first

    def _settle(self, name: str, task: asyncio.Task[Published | None]) -> None:
        self._behind[name].discard(task)
        if task.cancelled():
            return
        fault = task.exception()
        if fault is not None and name not in self._musts:  # a required one's is raised
            self._count(name, "did not take a message", fault)

    def _count(self, name: str, problem: str, fault: BaseException | None = None) -> None:
        self.counters[f"{name}.errors"] += 1
        self._log.log(
            logging.ERROR,
            "the stack's driver %s %s%s (faults so far: %d)",
            name,
            problem,
            f": {text_of(fault)}" if fault else "",
            self.counters[f"{name}.errors"],
            kind=name,
            exc_info=fault if fault and not isinstance(fault, EventBusError) else None,
        )

    async def _reopen(self, name: str) -> None:
        """Try to open a driver until it opens, a new object each time."""
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while name not in self._open:
            await asyncio.sleep(backoff.next())
            await calls.close(name, self._drivers[name])
            try:
                with guarded():
                    driver = self._drivers[name] = self._factories[name]()
                    await driver.open()
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is tried again
                self._count(name, "did not open, and is tried again", exc)
            else:
                self._open[name] = driver
                _log.info("the stack's driver %s is open", name)

    async def _close_drivers(self) -> None:
        self._open = {}
        await asyncio.gather(*(calls.close(name, driver) for name, driver in self._drivers.items()))


async def _first_success(tasks: Iterable[asyncio.Task[Published | None]]) -> None:
    """Wait until one of `tasks` has _succeeded, or none is left."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(map(_succeeded, done)):
            return


def _succeeded(task: asyncio.Task[Published | None]) -> bool:
    """Whether a task has ended without an error."""
    return task.done() and _fault_of(task) is None


def _fault_of(task: asyncio.Task[Published | None]) -> BaseException | None:
    """Why an ended task failed; None if it succeeded."""
    if task.cancelled():
        return PublishFailed("the stack was closed", driver="stack")
    return task.exception()


def _raise_failures(subject: str, failures: Mapping[str, BaseException]) -> NoReturn:
    """Raise an error that names the drivers that have not taken a message."""
    reasons = "; ".join(f"{name}: {text_of(failure)}" for name, failure in failures.items())
    message = f"a message on {subject} was not taken by {reasons}"
    cause = next(iter(failures.values()))
    if any(isinstance(failure, EncodingError) for failure in failures.values()):
        raise EncodingError(message) from cause
    raise PublishFailed(message, driver=",".join(failures)) from cause
