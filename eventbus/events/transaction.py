"""Events that wait for a database transaction: dispatched if its block succeeds, else dropped."""

# ruff: noqa: SLF001 - the blocks of one task access each other

import contextvars
from types import TracebackType
from typing import Final, Protocol, Self

from eventbus.errors import BusStateError
from eventbus.events.event import Event
from eventbus.messages import Receipt

__all__ = ["MAX_HELD", "Transaction"]


MAX_HELD: Final = 10_000

_innermost: contextvars.ContextVar["Transaction | None"] = contextvars.ContextVar(
    "eventbus_transaction", default=None
)


class _Bus(Protocol):
    async def dispatch(self, *events: Event) -> tuple[Receipt, ...]:
        """Dispatch the events."""


class Transaction:
    """`async with bus.transaction():` holds events that are queued `after_commit`.

    At its end the block dispatches them in order; if it raises, they are dropped. Within another
    block of the same bus, they move to that one. A block holds the events that are dispatched by
    the task that entered it, and by tasks that were started inside it.
    """

    def __init__(self, bus: _Bus) -> None:
        self._bus = bus
        self._events: list[Event] = []
        self._outer: Transaction | None = None
        self._token: contextvars.Token[Transaction | None] | None = None

    @classmethod
    def hold(cls, bus: _Bus, event: Event) -> bool:
        """Keep `event` for the end of the innermost block of `bus`; False if there is none.

        Raises BusStateError when the block holds too many.
        """
        block = cls._block_of(bus, _innermost.get())
        if block is None:
            return False
        if len(block._events) >= MAX_HELD:
            raise BusStateError(f"a transaction holds {MAX_HELD} events already")
        block._events.append(event)
        return True

    async def __aenter__(self) -> Self:
        if self._token is not None:
            raise BusStateError("a transaction's block cannot be entered twice")
        self._outer = _innermost.get()
        self._token = _innermost.set(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._token is not None
        _innermost.reset(self._token)
        events, self._events = self._events, []
        self._token = None
        if exc_type is not None or not events:
            return
        outer = self._block_of(self._bus, self._outer)
        if outer is None:
            await self._bus.dispatch(*events)
        else:
            outer._events += events

    @classmethod
    def _block_of(cls, bus: _Bus, block: "Transaction | None") -> "Transaction | None":
        """The innermost block of that bus that has not ended."""
        while block is not None and (block._bus is not bus or block._token is None):
            block = block._outer
        return block
