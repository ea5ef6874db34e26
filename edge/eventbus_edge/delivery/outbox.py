"""What waits to be written to one connection: joined within a loop turn, bounded in bytes."""

import contextlib
import enum
from collections.abc import (
    Callable,
    Iterator,
)
from typing import (
    Final,
    Protocol,
)

from eventbus_edge.protocols.vocabulary import WireFormat

__all__ = ["Outbox", "Sink", "State", "Unsent"]


_RELIEVED: Final = 0.9
"""The share of its limit to which the sum of unsent bytes is brought down."""


class Sink(Protocol):
    """Where bytes go: a connection's transport."""

    def write(self, data: bytes) -> None:
        """Take bytes; never blocks."""

    def unsent(self) -> int:
        """Bytes taken that the peer's socket has not accepted yet."""

    def abort(self) -> None:
        """End the connection at once, and free what is unsent."""


class State(enum.Enum):
    """Whether frames are still taken."""

    OPEN = enum.auto()
    TOO_SLOW = enum.auto()
    CLOSED = enum.auto()


class Outbox:
    """Frames on their way to one connection.

    `push` is the hot path: it appends; the frames of a loop turn are written at once by `flush`.
    When more than `limit` bytes are unsent, the outbox turns TOO_SLOW and takes no more: the
    connection costs at most its bound (and what one turn added), and nobody waits for it.
    """

    __slots__ = (
        "_pending", "_pending_bytes", "_sink", "connection_id", "dropped", "format", "limit",
        "state", "unsent", "was_too_slow", "written",
    )  # fmt: skip

    def __init__(self, connection_id: str, wire: WireFormat, sink: Sink, limit: int) -> None:
        self.connection_id = connection_id
        self.format = wire
        self.limit = limit
        self.state = State.OPEN
        self.written = 0
        """Bytes given to the sink; the hub takes them off when it counts them."""
        self.dropped = 0
        """Frames that were not taken any more, or not written."""
        self.was_too_slow = False
        self.unsent = 0
        """Bytes that the peer's socket had not accepted when that was looked at last."""
        self._sink = sink
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def push(self, frame: bytes) -> bool:
        """Add a frame; True when it is the first of its turn, so that a flush must be arranged."""
        if self.state is not State.OPEN:
            self.dropped += 1
            return False
        first = not self._pending
        self._pending.append(frame)
        self._pending_bytes += len(frame)
        if self._pending_bytes > self.limit:
            self.flush()
        return first

    def flush(self) -> None:
        """Write what is pending, in one go; then look whether the connection keeps up."""
        if self._pending and self.state is State.OPEN:
            frames = self._pending
            self.written += self._pending_bytes
            self._pending = []
            self._pending_bytes = 0
            self._sink.write(frames[0] if len(frames) == 1 else b"".join(frames))
            if self.measure() > self.limit:
                self.state = State.TOO_SLOW
                self.was_too_slow = True

    @property
    def waiting(self) -> int:
        """Bytes that are pending, or that the peer's socket has not accepted yet."""
        return self._pending_bytes + self._sink.unsent()

    def measure(self) -> int:
        """Look at how much is unsent."""
        self.unsent = self._sink.unsent()
        return self.unsent

    def close(self) -> None:
        """Take no more; what was not flushed is dropped."""
        self.state = State.CLOSED
        self.dropped += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    def abort(self) -> None:
        """Free what is unsent, by ending the connection."""
        self.close()
        self._sink.abort()


class Unsent:
    """The unsent bytes of all connections, in sum, of which those behind are known one by one.

    A connection counts until its bytes are sent or freed, also when it has been closed.
    """

    def __init__(self, limit: int, on_cut: Callable[[Outbox], None] = lambda _: None) -> None:
        """`on_cut` gets each outbox that is about to be aborted, the sum being above `limit`."""
        self.total = 0
        self.held = 0
        """Bytes of stored messages that were read for clients and not given to them yet."""
        self._limit = limit
        self._on_cut = on_cut
        self._behind: dict[Outbox, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether too much waits, stored messages included, to add anything."""
        return self.total + self.held > self._limit

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count `size` bytes of stored messages that are read and not given to a client yet."""
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    def note(self, outbox: Outbox) -> None:
        """An outbox has been written to. A part of the hot path."""
        if outbox.unsent or outbox in self._behind:
            self._set(outbox, outbox.unsent)

    def _set(self, outbox: Outbox, unsent: int) -> None:
        self.total += unsent - self._behind.pop(outbox, 0)
        if unsent:
            self._behind[outbox] = unsent

    def measure(self) -> int:
        """Look again at all that were behind; gives the sum."""
        for outbox in list(self._behind):
            self._set(outbox, outbox.measure())
        return self.total

    def relieve(self) -> None:
        """Above the limit, cut those with most unsent bytes until the sum is well below it."""
        if self.total <= self._limit or self.measure() <= self._limit:
            return
        for outbox in sorted(self._behind, key=self._behind.__getitem__, reverse=True):
            if self.total <= _RELIEVED * self._limit:
                break
            self._on_cut(outbox)
            outbox.abort()
            self._set(outbox, 0)
