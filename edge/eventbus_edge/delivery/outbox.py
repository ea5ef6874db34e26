"""Frames that wait to be written to one connection: one write per loop turn, limited in bytes."""

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

from eventbus_edge.delivery.wire import Wire

__all__ = ["Outbox", "Sink", "State", "Unsent"]


_TARGET_SHARE: Final = 0.9
"""The share of the limit to which the sum of unsent bytes is reduced."""


class Sink(Protocol):
    """A connection's transport."""

    def write(self, data: bytes) -> None:
        """Write bytes; never blocks."""

    @property
    def is_behind(self) -> bool:
        """Whether bytes are unsent."""

    def unsent(self) -> int:
        """Bytes written that the peer's socket has not accepted yet."""

    def abort(self) -> None:
        """End the connection at once, and free unsent bytes."""


class State(enum.Enum):
    """Whether an outbox accepts frames."""

    OPEN = enum.auto()
    TOO_SLOW = enum.auto()
    CLOSED = enum.auto()


_OPEN: Final = State.OPEN  # looking up an enum's attribute is slower


class Outbox:
    """Frames on their way to one connection.

    `push` is the hot path: it appends; the frames of a loop turn are written at once by `flush`.
    When more than `limit` bytes are unsent, the outbox turns TOO_SLOW and accepts no more. So a
    connection costs at most its limit and what one turn added, and never delays another one.
    """

    __slots__ = (
        "_first", "_more", "_pending_bytes", "_sink", "connection_id", "dropped", "format", "limit",
        "state", "unsent", "was_too_slow", "written",
    )  # fmt: skip

    def __init__(self, connection_id: str, wire: Wire, sink: Sink, limit: int) -> None:
        self.connection_id = connection_id
        self.format = wire
        self.limit = limit
        self.state = State.OPEN
        self.written = 0
        """Bytes written to the sink that the hub has not counted yet."""
        self.dropped = 0
        """Frames that were not accepted, or not written."""
        self.was_too_slow = False
        self.unsent = 0
        """Unsent bytes at the last call of `measure`."""
        self._sink = sink
        self._first: bytes | None = None
        """The pending frame: usually a turn has only one."""
        self._more: list[bytes] | None = None
        """Further pending frames."""
        self._pending_bytes = 0

    def push(self, frame: bytes, frames: int = 1) -> bool:
        """Add a frame; True if it is the first of its turn: then the caller schedules a flush.

        It may be several `frames`, joined for all subscribers of a channel.
        """
        if self.state is not _OPEN:
            self.dropped += frames
            return False
        is_first = self._first is None
        if is_first:
            self._first = frame
        elif self._more is None:
            self._more = [frame]
        else:
            self._more.append(frame)
        self._pending_bytes += len(frame)
        if self._pending_bytes > self.limit:
            self.flush()
        return is_first

    def send(self, data: bytes, frames: int) -> bool:
        """Write the last frames of a turn at once, if nothing is pending.

        True if the system has taken all of it. Otherwise the caller flushes.
        """
        if self._first is not None or self.unsent or self.state is not _OPEN:
            self.push(data, frames)
            return False
        sink = self._sink
        sink.write(data)
        if not sink.is_behind:
            return True
        self.written += len(data)
        self._check()
        return False

    def flush(self) -> None:
        """Write the pending frames at once; then check whether the connection keeps up."""
        data, sink = self._first, self._sink
        if data is not None and self.state is _OPEN:
            self.written += self._pending_bytes
            self._first = None
            self._pending_bytes = 0
            if self._more is not None:
                data = b"".join((data, *self._more))
                self._more = None
            sink.write(data)
            # Usually the system has accepted all of it.
            if sink.is_behind or self.unsent:
                self._check()

    def _check(self) -> None:
        if self.measure() > self.limit:
            self.state = State.TOO_SLOW
            self.was_too_slow = True

    @property
    def waiting(self) -> int:
        """Bytes that are pending, or that the peer's socket has not accepted yet."""
        return self._pending_bytes + self._sink.unsent()

    def measure(self) -> int:
        """Update `unsent`, and return it."""
        self.unsent = self._sink.unsent()
        return self.unsent

    def close(self) -> None:
        """Accept no more frames, and drop pending ones."""
        self.state = State.CLOSED
        self.dropped += (self._first is not None) + len(self._more or ())
        self._first = self._more = None
        self._pending_bytes = 0

    def abort(self) -> None:
        """End the connection, which frees its unsent bytes."""
        self.close()
        self._sink.abort()


class Unsent:
    """The sum of the unsent bytes of all connections.

    A connection counts until its bytes are sent or freed, even after it was closed.
    """

    def __init__(self, limit: int, on_cut: Callable[[Outbox], None] = lambda _: None) -> None:
        """`on_cut` gets each outbox that is about to be aborted because the sum exceeds `limit`.

        Several hubs of a process may share the sum: see `share`.
        """
        self.total = 0
        self.held = 0
        """Bytes of stored messages that were read for clients and not sent to them yet."""
        self._limit = limit
        self._on_cut = [on_cut]
        self._behind: dict[Outbox, int] = {}

    def share(self, on_cut: Callable[[Outbox], None]) -> "Unsent":
        """The same sum for another hub; `on_cut` gets the outboxes of all hubs."""
        self._on_cut.append(on_cut)
        return self

    @property
    def is_over(self) -> bool:
        """Whether unsent bytes and held messages exceed the limit."""
        return self.total + self.held > self._limit

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count `size` bytes of stored messages that are read and not sent to a client yet."""
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    def note(self, outbox: Outbox) -> None:
        """An outbox was flushed. Part of the hot path."""
        if outbox.unsent or outbox in self._behind:
            self._set(outbox, outbox.unsent)

    def _set(self, outbox: Outbox, unsent: int) -> None:
        self.total += unsent - self._behind.pop(outbox, 0)
        if unsent:
            self._behind[outbox] = unsent

    def measure(self) -> int:
        """Update the unsent bytes of all outboxes that are behind; returns the sum."""
        for outbox in list(self._behind):
            self._set(outbox, outbox.measure())
        return self.total

    def relieve(self) -> None:
        """Above the limit, abort those with most unsent bytes until the sum is well below it."""
        if self.total <= self._limit or self.measure() <= self._limit:
            return
        for outbox in sorted(self._behind, key=self._behind.__getitem__, reverse=True):
            if self.total <= _TARGET_SHARE * self._limit:
                break
            for on_cut in self._on_cut:
                on_cut(outbox)
            outbox.abort()
            self._set(outbox, 0)
