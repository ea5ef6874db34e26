"""The bus that an event finds when it is dispatched: the last one opened in the running loop.

A list of the process, not a context variable: a web framework's request handlers do not inherit
the context in which its start-up opened the bus. Entries are kept by event loop, since a bus is
tied to the loop that opened it, and each thread may run one.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from eventbus.errors import BusStateError
from eventbus.message import Receipt

__all__ = ["Dispatcher", "Publisher", "current_bus", "enter", "entered", "leave"]


class Publisher(Protocol):
    """What takes messages: a bus, or one of its drivers beside its own."""

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        volatile: bool = False,
        except_connection: str | None = None,
        id: str | None = None,  # noqa: A002 - the field's name on the wire
    ) -> Receipt:
        """Take one message."""


class Dispatcher(Publisher, Protocol):
    """What takes events: a bus, or a test's stand-in for one."""

    async def dispatch(self, *events: Any) -> tuple[Receipt, ...]:
        """Take the events; gives a receipt for each message that was published."""

    def using(self, driver: str) -> Publisher:
        """Another driver, by its name."""


_entries: list[tuple[asyncio.AbstractEventLoop, Dispatcher]] = []
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
    """The bus opened last, of those still open in the running loop; BusStateError for none."""
    loop = asyncio.get_running_loop()
    with _lock:
        for owner, bus in reversed(_entries):
            if owner is loop:
                return bus
        elsewhere = bool(_entries)
    raise BusStateError(
        "no bus is open: open one with `async with EventBus.from_env()`"
        + (" in this event loop (one is open in another)" if elsewhere else "")
    )
