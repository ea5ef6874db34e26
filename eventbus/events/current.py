"""The current bus, which `Event.dispatch` uses: the last one opened in the running event loop.

It is kept in a list of the process, not in a context variable: a web framework's request handlers
do not inherit the context in which its start-up opened the bus. Entries belong to an event loop: a
bus works only in the loop that opened it, and each thread may run one.

For the same reasons the fakes of tests (`eventbus.testing`) are kept here.
"""

import asyncio
import contextvars
import enum
import importlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypedDict, TypeVar, Unpack

from eventbus.errors import BusStateError, InvalidName
from eventbus.messages import Receipt, check_id

__all__ = [
    "CURRENT",
    "CurrentType",
    "Dispatcher",
    "Fake",
    "PublishOptions",
    "Publisher",
    "connection_of_request",
    "current_bus",
    "current_connection",
    "enter",
    "enter_fake",
    "entered",
    "fake_for",
    "is_any",
    "leave",
    "leave_fake",
    "provide_blocking",
    "provide_connection",
    "provide_fallback",
    "run_blocking",
    "standing_in",
]

T = TypeVar("T")


class CurrentType(enum.Enum):
    """The type of CURRENT."""

    CURRENT = "current"


CURRENT: Final = CurrentType.CURRENT
"""The default of `to_others`: the connection of the current web request."""


class RunBlocking(Protocol):
    """Runs a coroutine function that sends events, for code without an event loop."""

    def __call__(self, work: Callable[[], Coroutine[Any, Any, T]], /) -> T:
        """Run it, with a current bus, and return its result."""


class PublishOptions(TypedDict, total=False):
    """The keywords of `EventBus.publish`, for functions that pass them on; see there."""

    volatile: bool
    except_connection: str | None
    id: str | None
    headers: Mapping[str, str]


class Publisher(Protocol):
    """Publishes messages: a bus, or another driver of it."""

    async def publish(
        self, channel: str, event: str, data: Any, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one message."""


class Dispatcher(Protocol):
    """Publishes messages and dispatches events: a bus, or a test's stand-in for one."""

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        via: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> Receipt:
        """Publish one message."""

    async def dispatch(
        self, *events: Any, raise_errors: bool = False, via: str | None = None
    ) -> tuple[Receipt, ...]:
        """Dispatch events; returns a receipt for each published message."""

    def using(self, driver: str) -> Publisher:
        """The same bus through another driver, by name."""

    def report_rescued(self, event: str, destination: str, error: Exception) -> None:
        """Log and count what could not be sent, without an error for the caller."""


class Fake(Protocol):
    """Records what a bus would send, during a test."""

    @property
    def bus(self) -> Dispatcher:
        """The stand-in that is current if no bus is open."""

    def takes(self, event: type | None) -> bool:
        """Whether it fakes events of this type; None means plain messages."""

    def keep(
        self, event: Any, sends: Sequence[Any], *, dispatched: bool = True
    ) -> Sequence[Receipt]:
        """Record checked messages or jobs in place of sending them: each is an Outgoing or a Job.

        Returns their receipts. `event` is None for a plain message. If it is not `dispatched`, a
        worker took it from a queue.
        """


_entries: list[tuple[asyncio.AbstractEventLoop, Dispatcher]] = []
_fakes: list[tuple[asyncio.AbstractEventLoop | None, Fake]] = []
_fakes_of_task: contextvars.ContextVar[tuple[Fake, ...]] = contextvars.ContextVar(
    "eventbus_fakes", default=()
)
_lock = threading.Lock()
_stand_in: contextvars.ContextVar[Dispatcher | None] = contextvars.ContextVar(
    "eventbus_stand_in", default=None
)
_run_blocking: RunBlocking | None = None
_fallback: Dispatcher | None = None


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may have held it."""
    global _lock  # noqa: PLW0603 - a lock cannot be reset
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


_connection: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "eventbus_connection", default=None
)
_connection_sources: list[Callable[[], str | None]] = []


@contextmanager
def connection_of_request(connection_id: str | None) -> Iterator[None]:
    """Within the block, `to_others()` excludes this client connection: that of a web request.

    None, and what is no connection's id, excludes nobody.
    """
    token = _connection.set(valid_connection(connection_id))
    try:
        yield
    finally:
        _connection.reset(token)


def valid_connection(connection_id: str | None) -> str | None:
    """The id if it may be one: it comes from a header that anyone can send."""
    if connection_id is None:
        return None
    try:
        return check_id("a connection's id", connection_id)
    except InvalidName:
        return None


def current_connection() -> str | None:
    """The client connection of the current web request, or None.

    That of `connection_of_request`, or else what a function of `provide_connection` returns.
    """
    if (connection_id := _connection.get()) is not None:
        return connection_id
    found = (valid_connection(source()) for source in _connection_sources)
    return next(filter(None, found), None)


def provide_connection(source: Callable[[], str | None]) -> None:
    """Register a function that returns the client connection that the current request names.

    For frameworks that know the current request themselves.
    """
    if source not in _connection_sources:
        _connection_sources.append(source)


def enter(bus: Dispatcher) -> None:
    """Make `bus` the current one of the running loop, until it leaves."""
    loop = asyncio.get_running_loop()
    with _lock:
        # Drops entries of loops that were closed while their bus was open.
        _entries[:] = [entry for entry in _entries if not entry[0].is_closed()]
        _entries.append((loop, bus))


def leave(bus: Dispatcher) -> None:
    """Remove `bus`, in any position; the one opened before it is current again."""
    with _lock:
        _entries[:] = [entry for entry in _entries if entry[1] is not bus]


@contextmanager
def entered(bus: Dispatcher) -> Iterator[None]:
    """`bus` is current within the block."""
    enter(bus)
    try:
        yield
    finally:
        leave(bus)


@contextmanager
def standing_in(bus: Dispatcher) -> Iterator[None]:
    """Within the block, `bus` is current in this task as long as no bus is open in its loop."""
    token = _stand_in.set(bus)
    try:
        yield
    finally:
        _stand_in.reset(token)


def current_bus() -> Dispatcher:
    """The last opened bus of the running loop that is still open.

    Without any, the stand-in of the outermost fake, or else that of `standing_in`, or what
    `provide_fallback` has set. Raises BusStateError without any of these.
    """
    loop = asyncio.get_running_loop()
    with _lock:
        for owner, bus in reversed(_entries):
            if owner is loop:
                return bus
        elsewhere = bool(_entries)
    if fakes := _fakes_here():
        return fakes[-1].bus
    if (stand_in := _stand_in.get()) is not None:
        return stand_in
    if _fallback is not None:
        return _fallback
    raise BusStateError(
        "no bus is open: open one with `async with EventBus.from_env()`"
        + (" in this event loop (one is open in another)" if elsewhere else "")
    )


def is_any() -> bool:
    """Whether `current_bus` finds one in the running loop."""
    loop = asyncio.get_running_loop()
    with _lock:
        if any(owner is loop for owner, _ in _entries):
            return True
    return bool(_fakes_here())


def provide_blocking(runner: RunBlocking) -> None:
    """Register what `run_blocking` uses; it belongs to a higher layer."""
    global _run_blocking  # noqa: PLW0603 - one for a process
    _run_blocking = runner


def provide_fallback(bus: Dispatcher | None) -> None:
    """Set what is current in event loops without an open bus."""
    global _fallback  # noqa: PLW0603 - one for a process
    _fallback = bus


def run_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in the background loop of `eventbus.sync`.

    Raises BusStateError in a thread whose event loop is running.
    """
    if _run_blocking is None:
        importlib.import_module("eventbus.sync")  # it registers itself by `provide_blocking`
    assert _run_blocking is not None
    return _run_blocking(work)


def enter_fake(fake: Fake) -> None:
    """Activate a fake, inside those that are active; with or without a running event loop."""
    with _lock:
        _fakes.append((_running_loop(), fake))
    _fakes_of_task.set((*_fakes_of_task.get(), fake))


def leave_fake(fake: Fake) -> None:
    """Deactivate a fake, in any position."""
    with _lock:
        _fakes[:] = [entry for entry in _fakes if entry[1] is not fake]
    _fakes_of_task.set(tuple(one for one in _fakes_of_task.get() if one is not fake))


def fake_for(event: type | None) -> Fake | None:
    """The innermost fake of events of this type (None: of plain messages), if there is one."""
    if not _fakes:
        return None
    return next((fake for fake in _fakes_here() if fake.takes(event)), None)


def _fakes_here() -> list[Fake]:
    """The fakes that apply to the caller, the innermost first.

    These are the fakes that its task, or the task that started it, has activated, and those
    activated outside of any event loop. A task without any of its own (it is older than the fake,
    or from a server's start-up) gets those of its loop, and in a loop without any, all of them:
    nothing must be sent by accident.
    """
    with _lock:
        entries = _fakes[::-1]
    if not entries:
        return []
    mine = _fakes_of_task.get()
    here = [fake for loop, fake in entries if loop is None or fake in mine]
    if any(fake in mine for fake in here):
        return here
    running = _running_loop()
    of_loop = [fake for loop, fake in entries if loop is None or loop is running]
    return of_loop or [fake for _, fake in entries]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
