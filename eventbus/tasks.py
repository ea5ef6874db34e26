"""Background tasks with an owner: no fault is lost, and all of them end with the owner.

tasks = Tasks()
tasks.start(send_once(), "sending the report")
tasks.keep(watch, "the watchdog")  # runs again, after a pause, when it fails
await tasks.aclose()
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from eventbus.user_code import cause_of, guarded

__all__ = ["Shutdown", "Tasks", "fault_count"]

_log = logging.getLogger(__name__)

STUBBORN_S: Final = 10.0
"""How long a close waits for a task that does not end when it is cancelled."""
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A keeper that ran for so long before it failed begins again with the shortest pause."""

_faults = 0


def fault_count() -> int:
    """How many tasks of this process have failed, those included that were started again."""
    return _faults


class Shutdown:
    """Runs a shutdown once, to its end.

    Concurrent and later callers wait for the same run. A caller that is cancelled still waits
    until the run has ended, and is cancelled then: what it would close next may be in use before.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether somebody has called it."""
        return self._task is not None

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work`, or wait for the run that is under way. Raises what `work` raises."""
        if self._task is None:
            self._task = asyncio.create_task(work(), name="a shutdown")
        elif self._task is asyncio.current_task():
            return  # it closes itself by way of something that it closes
        cancelled: asyncio.CancelledError | None = None
        while not self._task.done():
            try:
                await asyncio.wait({self._task})
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            _report(self._task)
            raise cancelled
        self._task.result()


class Tasks:
    """The background tasks of one owner."""

    def __init__(
        self, limit: int | None = None, on_dropped: Callable[[], object] = lambda: None
    ) -> None:
        """At most `limit` run at once; `on_dropped` is called for each that was not started."""
        self._limit = limit
        self._on_dropped = on_dropped
        self._running: set[asyncio.Task[Any]] = set()
        self._shutdown = Shutdown()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any] | None":
        """Run `work` once; an exception is logged under `name`.

        Gives None where it is not started: too many run, or the owner has closed.
        """
        if self._shutdown.has_begun or (
            self._limit is not None and len(self._running) >= self._limit
        ):
            work.close()
            self._on_dropped()
            return None
        task = self._start(_run(work), name)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began
        return task

    def keep(
        self, run: Callable[[], Coroutine[Any, Any, Any]], name: str
    ) -> "asyncio.Task[Any] | None":
        """Run `run()`, and again after a pause when it fails; the pauses grow up to 30 s."""
        if self._shutdown.has_begun:
            return None
        return self._start(_keep(run, name), name)

    async def join(self, seconds: float) -> None:
        """Wait up to that long until nothing runs; tasks that start meanwhile do not count."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)

    async def aclose(self) -> None:
        """Cancel what runs and wait for its end; later ones are not started.

        Closing twice is harmless. A task may close its own owner: it is left alone.
        """
        caller = asyncio.current_task()
        if caller in self._running and self._shutdown.has_begun:
            return  # the shutdown waits for this very task

        async def close() -> None:
            tasks = {task for task in self._running if task is not caller}
            for task in tasks:
                task.cancel()
            if not tasks:
                return
            _, stubborn = await asyncio.wait(tasks, timeout=STUBBORN_S)
            for task in stubborn:
                _log.error("%s ignored its cancellation and still runs", task.get_name())

        await self._shutdown.run(close)

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        _report(task)


async def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with guarded():
        return await work


async def _keep(run: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
    loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_S
    while True:
        begun = loop.time()
        try:
            with guarded():
                await run()
        except Exception as exc:  # noqa: BLE001 - whatever it was, the keeper must go on
            if loop.time() - begun >= _STEADY_S:
                pause = FIRST_PAUSE_S
            _count()
            _log.error(
                "%s failed, and is started again in %.1f s", name, pause, exc_info=cause_of(exc)
            )
        else:
            return
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause = min(2 * pause, MAX_PAUSE_S)


def _report(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        if (fault := task.exception()) is not None:
            _count()
            _log.error("%s failed", task.get_name(), exc_info=fault)
    elif not task.cancelling():
        _count()
        _log.error("%s raised CancelledError although nobody cancelled it", task.get_name())


def _count() -> None:
    global _faults  # noqa: PLW0603 - one number for a process
    _faults += 1
