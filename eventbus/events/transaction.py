"""Events that wait for transactions: sent once all around their dispatch committed, else dropped.

A transaction is a `Holder`: a block of `bus.transaction()`, or a transaction of a database, which
an integration finds (`provide_holders`). One dispatch is one `Held`, which all transactions around
it keep. The last of them to commit gets it from `Held.release` and sends it. One that rolls back
just forgets it.
"""

# ruff: noqa: SLF001 - the blocks of one task access each other

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec

from eventbus.errors import BusStateError
from eventbus.events.event import Event
from eventbus.events.policy import ShouldQueue
from eventbus.events.requests import add_to_request, parts_of_request

__all__ = [
    "MAX_HELD",
    "Held",
    "HeldEvents",
    "Holder",
    "Prepared",
    "Transaction",
    "carried",
    "check_room",
    "hold",
    "holders_around",
    "provide_holders",
    "waits_for_commit",
]


MAX_HELD: Final = 10_000
"""How many events one transaction holds at most."""
_FULL: Final = f"a transaction holds at most {MAX_HELD} events"

_innermost: contextvars.ContextVar["Transaction | None"] = contextvars.ContextVar(
    "eventbus_transaction", default=None
)
_carried: contextvars.ContextVar["_Carried | None"] = contextvars.ContextVar(
    "eventbus_carried_transactions", default=None
)
_sources: list[Callable[[], Iterable["Holder"]]] = []


class Prepared(msgspec.Struct, frozen=True):
    """An event that was checked, and what its dispatch sends: messages, or a job."""

    event: Event
    sends: Sequence[Any]


class _Bus(Protocol):
    async def send_held(self, held: Sequence["Held"]) -> None:
        """Send it, and run the listeners. Raises as a dispatch does."""

    async def send_committed(self, held: Sequence["Held"]) -> None:
        """The same after a database's commit: errors are logged and counted."""

    def send_soon(self, held: Sequence["Held"], loop: asyncio.AbstractEventLoop) -> None:
        """Do so in the background."""

    def report_lost(self, held: Sequence["Held"], error: Exception) -> None:
        """Log and count what could not be sent after a database's commit."""


class Held:
    """What one dispatch leaves for the commit. It was encoded: later changes have no effect."""

    __slots__ = ("_waits_for", "bus", "loop", "prepared")

    def __init__(self, bus: _Bus, prepared: Sequence[Prepared], waits_for: int) -> None:
        """`waits_for` is the number of transactions. Called in the event loop of `bus`."""
        self.bus = bus
        self.loop = asyncio.get_running_loop()
        self.prepared = prepared
        self._waits_for = waits_for

    def __len__(self) -> int:
        return len(self.prepared)

    def release(self) -> bool:
        """Called once by each transaction that commits: whether to send it now."""
        self._waits_for -= 1
        return self._waits_for == 0

    def drop(self) -> None:
        """Hold nothing any more: the rest of the dispatch has failed."""
        self.prepared = ()


class Holder(Protocol):
    """A transaction around the caller."""

    def hold(self, held: Held) -> None:
        """Keep it until the commit, which calls `release`. Raises BusStateError if full."""


class HeldEvents:
    """What one transaction holds, in the order of its dispatches, up to MAX_HELD events."""

    __slots__ = ("_count", "_held")

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._count = 0

    def __len__(self) -> int:
        """How many events it holds, at most: some may have been dropped."""
        return self._count

    def add(self, held: Held, *, others: int = 0) -> None:
        """Keep one more dispatch, if there is room beside `others`. Raises BusStateError."""
        if others + self._count + len(held) > MAX_HELD:
            self._held = [each for each in self._held if len(each)]  # without dropped ones
            self._count = sum(map(len, self._held))
            check_room(others + self._count, held)
        self._held.append(held)
        self._count += len(held)

    def take_over(self, inner: "HeldEvents") -> None:
        """Keep what an inner transaction has held, as far as there is room. Raises BusStateError.

        Otherwise nothing is kept.
        """
        if self._count + inner._count > MAX_HELD:
            raise BusStateError(_FULL)
        self._held += inner._held
        self._count += inner._count

    def released(self) -> list[Held]:
        """After the commit: what is to be sent now."""
        return [held for held in self._held if held.release()]


def check_room(count: int, more: Held) -> None:
    """Raises BusStateError if a transaction that holds `count` events has no room for `more`."""
    if count + len(more) > MAX_HELD:
        raise BusStateError(_FULL)


class Transaction:
    """`async with bus.transaction():` holds events with `after_commit=True`.

    At its end the block sends them in order; if it raises, they are dropped. Within another block
    of the same bus, they move to that one. A block holds the events that are dispatched by the task
    that entered it, and by tasks that were started inside it; in a web request, also those of its
    threads that are in no block of their own, if it was entered in one of them.
    """

    def __init__(self, bus: _Bus) -> None:
        self._bus = bus
        self._events = HeldEvents()
        self._outer: Transaction | None = None
        self._token: contextvars.Token[Transaction | None] | None = None

    @classmethod
    def current(cls, bus: _Bus) -> "Transaction | None":
        """The innermost block of `bus` around the caller."""
        block = cls._block_of(bus, _innermost.get())
        return cls._block_of(bus, cls._of_request()) if block is None else block

    @classmethod
    def _of_request(cls) -> "Transaction | None":
        """The last block that was entered in a thread of the current request, and is open."""
        blocks = (each for each in reversed(parts_of_request()) if isinstance(each, cls))
        return next((each for each in blocks if each.is_open), None)

    @property
    def is_open(self) -> bool:
        """Whether the block has been entered and not left."""
        return self._token is not None

    def hold(self, held: Held) -> None:
        """See `Holder`."""
        self._events.add(held)

    def enter(self) -> None:
        """Begin the block, in the caller's context. Raises BusStateError if it was begun before."""
        if self._token is not None:
            raise BusStateError("a transaction's block cannot be entered twice")
        self._outer = _innermost.get() or self._of_request()
        self._token = _innermost.set(self)
        add_to_request(self)

    def leave(self, *, succeeded: bool) -> list[Held]:
        """End the block, and return what to send now.

        That is nothing if it failed, or if an outer block of the same bus, or a transaction of a
        database, still holds it.
        """
        assert self._token is not None
        # The dependency of a web request may be left in another thread than it was entered in.
        with contextlib.suppress(ValueError):
            _innermost.reset(self._token)
        events, self._events = self._events, HeldEvents()
        self._token = None
        if not succeeded:
            return []
        outer = self._block_of(self._bus, self._outer)
        if outer is None:
            return events.released()
        outer._events.take_over(events)
        return []

    async def __aenter__(self) -> Self:
        self.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if held := self.leave(succeeded=exc_type is None):
            await self._bus.send_held(held)

    @classmethod
    def _block_of(cls, bus: _Bus, block: "Transaction | None") -> "Transaction | None":
        """The innermost block of that bus that has not ended."""
        while block is not None and (block._bus is not bus or not block.is_open):
            block = block._outer
        return block


def waits_for_commit(event: Event) -> bool:
    """Whether a transaction around the dispatch of this event holds it."""
    if isinstance(event, ShouldQueue):
        return event.queue_after_commit()
    return event.__event_definition__.after_commit


def provide_holders(source: Callable[[], Iterable[Holder]]) -> None:
    """Register a function that returns the database transactions around its caller.

    It is called in the thread that dispatches; the holders are used while that thread waits.
    """
    if source not in _sources:
        _sources.append(source)


def holders_around(bus: _Bus) -> list[Holder]:
    """The transactions around the caller."""
    block = Transaction.current(bus)
    around: list[Holder] = [] if block is None else [block]
    carried = _carried.get()
    waiting = carried.holders if carried is not None and carried.is_open else ()
    for holder in (*waiting, *_find()):
        if holder not in around:
            around.append(holder)
    return around


@contextlib.contextmanager
def hold(bus: _Bus, prepared: Sequence[Prepared], holders: Sequence[Holder]) -> Iterator[None]:
    """Keep events for the commit of all `holders`, unless this context raises.

    Raises BusStateError if one of them is full.
    """
    held = Held(bus, prepared, len(holders))
    try:
        for holder in holders:
            holder.hold(held)
        yield
    except BaseException:
        held.drop()
        raise


class _Carried:
    """The database transactions of a thread that waits for a call in another thread's loop."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self.is_open = True

    def close(self) -> None:
        """The thread waits no longer."""
        self.is_open = False


@contextlib.contextmanager
def carried() -> Iterator[None]:
    """Within the block, calls into another thread's loop find the transactions of this thread.

    Some databases' libraries know the transaction by the thread. The block lasts as long as the
    thread waits: what the call leaves running in the background is not held.
    """
    outer = _carried.get()
    waiting = outer.holders if outer is not None and outer.is_open else ()
    mine = _Carried([*waiting, *(each for each in _find() if each not in waiting)])
    token = _carried.set(mine)
    try:
        yield
    finally:
        mine.close()
        _carried.reset(token)


def _find() -> list[Holder]:
    return [holder for source in _sources for holder in source()]
