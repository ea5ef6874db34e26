"""A bounded pool: runs the handlers of a subscription, and lets some events wait for a handler."""

import asyncio
import collections
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from eventbus.tasks import Tasks

__all__ = ["Pool", "Work"]

_log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, object]]


class Pool:
    """Runs work in the order in which it is offered, `size` pieces at once."""

    def __init__(self, size: int, waiting: int, name: str) -> None:
        """`waiting`: how many may wait for a free slot. `name` is for logs and tasks."""
        self._size = size
        self._limit = waiting
        self._name = name
        self._tasks = Tasks()
        self._waiting: collections.deque[Work] = collections.deque()
        self._changed = asyncio.Event()

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    @property
    def free(self) -> int:
        """How many slots are free."""
        return max(0, self._size - len(self._tasks))

    def offer(self, work: Work) -> bool:
        """Run it, now or later; False when too many wait already."""
        if self.free and not self._waiting:
            self._start(work)
        elif len(self._waiting) < self._limit:
            self._waiting.append(work)
        else:
            return False
        return True

    async def room(self) -> None:
        """Wait for a free slot."""
        while not self.free:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self, seconds: float) -> int:
        """Let all work finish within that time, then cancel it; returns how many never began.

        A task of the pool that called for this is neither waited for nor cancelled.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._waiting or not self._tasks.is_idle:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("%s: %d did not finish and are cancelled", self._name, len(self._tasks))
        left = len(self._waiting)
        self._waiting.clear()
        await self._tasks.aclose()
        return left

    def _start(self, work: Work) -> None:
        if (task := self._tasks.start(work(), self._name)) is not None:
            task.add_done_callback(self._ended)

    def _ended(self, _task: "asyncio.Task[Any]") -> None:
        while self._waiting and self.free:
            self._start(self._waiting.popleft())
        self._changed.set()
