"""The bus that an event finds when it is dispatched: the last one opened in the running loop.

A list of the process, not a context variable: a web framework's request handlers do not inherit
the context in which its start-up opened the bus. Entries are kept by event loop, since a bus is
tied to the loop that opened it, and each thread may run one.

Here too, by the same reasons: the fakes that tests put in place of sending (`eventbus.testing`).
"""

import asyncio
import contextvars
import threading
from collections.abc import (
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from typing import (
    Any,
    Protocol,
    TypedDict,
    Unpack,
)

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
    """What takes messages: a bus, or one of its drivers beside its own."""

    async def publish(
        self, channel: str, event: str, data: Any, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Take one message."""


class Dispatcher(Protocol):
    """What takes messages and events: a bus, or a test's stand-in for one."""

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        via: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> Receipt:
        """Take one message."""

    async def dispatch(
        self, *events: Any, raise_errors: bool = False, via: str | None = None
    ) -> tuple[Receipt, ...]:
        """Take the events; gives a receipt for each message that was published."""

    def using(self, driver: str) -> Publisher:
        """Another driver, by its name."""


class Fake(Protocol):
    """Takes what a bus would send, while a test has it in place."""

    @property
    def bus(self) -> Dispatcher:
        """What is current where no bus is open."""

    def takes(self, event: type | None) -> bool:
        """Whether it takes events of this type; None stands for a plain message."""

    def keep(
        self, event: Any, sends: Sequence[Any], *, dispatched: bool = True
    ) -> Sequence[Receipt]:
        """Keep what has been checked and would now be sent: each is an Outgoing or a Job.

        Gives their receipts. `event` is None for a plain message; without `dispatched` it came out
        of a queue.
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
        # A loop that was closed with its bus still open would otherwise stay for ever.
        _entries[:] = [entry for entry in _entries if not entry[0].is_closed()]
        _entries.append((loop, bus))


def leave(bus: Dispatcher) -> None:
    """Take `bus` out, wherever it stands; the one opened before it is current again."""
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
    """The bus opened last, of those still open in the running loop.

    Where there is none, the outermost fake's stand-in; BusStateError where there is none either.
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
    """Put a fake in place, inside those that are; with or without a running event loop."""
    with _lock:
        _fakes.append((_running_loop(), fake))
    _fakes_of_task.set((*_fakes_of_task.get(), fake))


def leave_fake(fake: Fake) -> None:
    """Take a fake away, wherever it stands."""
    with _lock:
        _fakes[:] = [entry for entry in _fakes if entry[1] is not fake]
    _fakes_of_task.set(tuple(one for one in _fakes_of_task.get() if one is not fake))


def fake_for(event: type | None) -> Fake | None:
    """The innermost fake that takes events of this type (None: plain messages), if there is any."""
    if not _fakes:
        return None
    return next((fake for fake in _fakes_here() if fake.takes(event)), None)


def _fakes_here() -> list[Fake]:
    """The fakes that hold for the caller, the innermost first.

    Those that the task, or what started it, has put in place, and those put in place outside of
    any event loop. A task that knows none of its own (it is older than the fake, or of a server's
    start-up) has those of its loop, and in a loop without any, all: nothing is to slip through.
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
