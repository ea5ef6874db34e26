"""Messages that wait for one consumer: bounded, and in order."""

import asyncio
import collections
from collections.abc import Callable

from eventbus.client.frames import ClientMessage

__all__ = ["Ended", "Inbox"]


class Ended(Exception):
    """Nothing will come any more; `error` is why, where it was not the consumer's own wish."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


class Inbox:
    """A queue for one consumer, which tells when there is room again."""

    def __init__(self, limit: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when no more than half of `limit` messages wait."""
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
        """Whether no more than half of it is taken."""
        return len(self._waiting) <= self._limit // 2

    def offer(self, message: ClientMessage) -> bool:
        """Add a message; False where it is full."""
        if len(self._waiting) >= self._limit:
            return False
        self._waiting.append(message)
        self._wake.set()
        return True

    def drop_oldest(self) -> None:
        """Make room for one."""
        self._waiting.popleft()

    def end(self, error: Exception | None) -> None:
        """What waits is still handed out; then `take` raises Ended."""
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
