"""Tasks that nobody waits for, bounded in number, their faults logged."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from eventbus.user_code import guarded

__all__ = ["Background", "tell_fault"]

_log = logging.getLogger(__name__)


class Background:
    """Runs coroutines beside the caller, at most `limit` at once."""

    def __init__(self, limit: int, on_dropped: Callable[[], object]) -> None:
        """`on_dropped` is called when a coroutine is not started because of the limit."""
        self._limit = limit
        self._on_dropped = on_dropped
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], what: str) -> bool:
        """Start `work`; `what` names it in logs. False when there are too many already."""
        if len(self._tasks) >= self._limit:
            work.close()
            self._on_dropped()
            return False
        task = asyncio.create_task(_run(work), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(tell_fault)
        task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
        return True

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(work: Coroutine[Any, Any, None]) -> None:
    with guarded():
        await work


def tell_fault(task: "asyncio.Task[Any]") -> None:
    """A done callback: log the fault of a task that nobody awaits while it runs."""
    if not task.cancelled() and (fault := task.exception()) is not None:
        _log.error("%s failed", task.get_name(), exc_info=fault)
