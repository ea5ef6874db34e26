"""What waits to be written to one connection: joined within a loop turn, bounded in bytes."""

import enum
from typing import Protocol

from edge.protocols.vocabulary import WireFormat

__all__ = ["Outbox", "Sink", "State"]


class Sink(Protocol):
    """Where bytes go: a connection's transport."""

    def write(self, data: bytes) -> None:
        """Take bytes; never blocks."""

    def unsent(self) -> int:
        """Bytes taken that the peer's socket has not accepted yet."""


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
        "state", "was_too_slow", "written",
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
            if self._sink.unsent() > self.limit:
                self.state = State.TOO_SLOW
                self.was_too_slow = True

    @property
    def waiting(self) -> int:
        """Bytes that are pending, or that the peer's socket has not accepted yet."""
        return self._pending_bytes + self._sink.unsent()

    def close(self) -> None:
        """Take no more; what was not flushed is dropped."""
        self.state = State.CLOSED
        self.dropped += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
