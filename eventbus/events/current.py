"""The current bus, which `Event.dispatch` uses: the last one opened in the running event loop.

It is kept in a list of the process, not in a context variable: a web framework's request handlers
do not inherit the context in which its start-up opened the bus. Entries belong to an event loop: a
bus works only in the loop that opened it, and each thread may run one.

For the same reasons the fakes of tests (`eventbus.testing`) are kept here.
"""

import asyncio
import contextvars
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypedDict, Unpack

from eventbus.errors import BusStateError
from eventbus.messages import Receipt

__all__ = [
    "Dispatcher",
    "Fake",
    "PublishOptions",
    "Publisher",
    "current_bus",
    "enter",
    "enter_fake",
    "entered",
    "fake_for",
    "leave",
    "leave_fake",
]


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


def current_bus() -> Dispatcher:
    """The last opened bus of the running loop that is still open.

    Without any, the stand-in of the outermost fake. Raises BusStateError without a fake.
    """
    loop = asyncio.get_running_loop()
    with _lock:
        for owner, bus in reversed(_entries):
            if owner is loop:
                return bus
        elsewhere = bool(_entries)
    if fakes := _fakes_here():
        return fakes[-1].bus
    raise BusStateError(
        "no bus is open: open one with `async with EventBus.from_env()`"
        + (" in this event loop (one is open in another)" if elsewhere else "")
    )


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
