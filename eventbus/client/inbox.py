"""A bounded queue of messages for one consumer."""

import asyncio
import collections
from collections.abc import Callable

from eventbus.client.frames import ClientMessage

__all__ = ["Ended", "Inbox"]


class Ended(Exception):
    """There are no more messages; `error` is the reason, unless this side ended it."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


class Inbox:
    """A queue for one consumer, which reports when it has room again."""

    def __init__(self, limit: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when at most half of `limit` messages wait."""
        self._limit = limit
        self._on_room = on_room
        self._waiting: collections.deque[ClientMessage] = collections.deque()
        self._wake = asyncio.Event()
        self._end: Ended | None = None
        self._is_read = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether it is at most half full."""
        return len(self._waiting) <= self._limit // 2

    def offer(self, message: ClientMessage) -> bool:
        """Add a message; False where it is full."""
        if len(self._waiting) >= self._limit:
            return False
        self._waiting.append(message)
        self._wake.set()
        return True

    def drop_oldest(self) -> None:
        """Make room for one message."""
        self._waiting.popleft()

    def end(self, error: Exception | None) -> None:
        """End the queue: `take` returns the waiting messages, then raises Ended."""
        if self._end is None:
            self._end = Ended(error)
        self._wake.set()

    async def take(self) -> ClientMessage:
        """The next message. Raises Ended; RuntimeError for a second reader."""
        if self._is_read:
            raise RuntimeError("a subscription is read by one task at a time")
        self._is_read = True
        try:
            while not self._waiting:
                if self._end is not None:
                    raise Ended(self._end.error)
                self._wake.clear()
                await self._wake.wait()
        finally:
            self._is_read = False
        message = self._waiting.popleft()
        if len(self._waiting) <= self._limit // 2:
            self._on_room()
        return message
