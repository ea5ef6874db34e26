"""Bounded concurrency: so many at once, so many waiting, and the rest is refused."""

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from eventbus.user_code import guarded

__all__ = ["Pool", "Work"]

_log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[object]]


class Pool:
    """Runs what it is offered in the order in which it came, `size` at once."""

    def __init__(self, size: int, waiting: int, name: str) -> None:
        """`waiting`: how many may wait for a place. `name` is for logs and tasks."""
        self._size = size
        self._limit = waiting
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: collections.deque[Work] = collections.deque()
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        """Places at which something would be run at once."""
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
        """Wait for a free place."""
        while not self.free:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self, seconds: float, caller: "asyncio.Task[Any] | None" = None) -> int:
        """Let all finish within that time, then cancel; how many never began.

        `caller` is neither waited for nor cancelled: it may be one that runs here.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._waiting or self._tasks - {caller}:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("%s: %d did not finish and are cancelled", self._name, len(self._tasks))
        left = len(self._waiting)
        self._waiting.clear()
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return left

    def _start(self, work: Work) -> None:
        task = asyncio.create_task(self._run(work), name=f"eventbus-{self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, work: Work) -> None:
        try:
            with guarded():
                await work()
        except Exception:  # noqa: BLE001 - one's fault is not another's
            _log.exception("%s failed", self._name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        while self._waiting and self.free:
            self._start(self._waiting.popleft())
        self._changed.set()
