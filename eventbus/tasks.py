"""The lifecycle of background work: no task without an owner, no shutdown cut in the middle.

`Tasks` runs the background tasks of one owner, reports their faults and ends them with the owner.
`Shutdown` runs an owner's `aclose` once, for all its callers, and ends a start that is under way.
`complete` finishes one step even if its caller is cancelled: both of them use it, and so do steps
that make several calls to a broker.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Container, Coroutine
from typing import Any, Final, TypeVar

from eventbus.attempts import Backoff
from eventbus.user_code import calling_tasks, cause_of, guarded, start_waited

__all__ = ["Shutdown", "Tasks", "complete", "eager_task", "fault_count"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Task = asyncio.Task[Any]

WITHIN_S: Final = 5.0
CANCEL_GRACE_S: Final = 10.0
"""How long a close waits for a task that does not end when it is cancelled."""
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A kept task that ran this long before it failed is restarted after the shortest pause again."""

_faults = 0


def fault_count() -> int:
    """How many tasks of this process have failed, including those that were restarted."""
    return _faults


def eager_task(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run `work` in a task, up to the first thing that it has to wait for; it may be done then.

    Work that waits for nothing costs no turn of the event loop. Before Python 3.12, it begins in
    the next turn, as other tasks do.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, name=name, eager_start=True)
    return loop.create_task(work, name=name)


async def complete(work: Coroutine[Any, Any, T], *, within: float = WITHIN_S) -> T:
    """Run `work` to its end, even if the caller is cancelled; then raise the cancellation.

    Once the caller is cancelled, `work` has `within` seconds left; after that it is cancelled too.
    """
    name = getattr(work, "__qualname__", "a step")
    return await _outlast(start_waited(work, name), within)


class Shutdown:
    """Runs a shutdown once, to its end.

    Concurrent and later callers wait for the same run. A caller that is cancelled still waits for
    the end of the run before the cancellation is raised: what it would close next may be in use
    until then.
    """

    def __init__(self, *waits_for: Container[Task]) -> None:
        """`waits_for` are the tasks that the shutdown ends or waits for.

        When one of these calls a shutdown that has begun, it returns at once: waiting for each
        other, both would hang. The first caller may be one of them; the shutdown leaves it alone.
        """
        self._waits_for = waits_for
        self._task: asyncio.Task[None] | None = None
        self._opening: asyncio.Timeout | None = None
        self._opener: Task | None = None
        self._opened = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether somebody has called it."""
        return self._task is not None

    @contextlib.asynccontextmanager
    async def opening(self, closed: Callable[[], Exception]) -> AsyncIterator[None]:
        """Surround the owner's start, which happens once.

        A shutdown that begins meanwhile cancels the start and waits for its end, and then closes
        what was opened. The start raises `closed()` then, and also when the shutdown came before.
        """
        if self.has_begun:
            raise closed()
        self._opener = asyncio.current_task()
        try:
            async with asyncio.timeout(None) as self._opening:
                yield
        except TimeoutError:
            if not self._opening or not self._opening.expired():
                raise
        finally:
            self._opened.set()
        if self.has_begun:
            raise closed()

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work`, or wait for the run that is under way. Raises what `work` raises."""
        callers = calling_tasks()
        if self._task is None:
            self._task = start_waited(self._run(work), "a shutdown")
        elif self._task in callers or any(
            caller in tasks for tasks in self._waits_for for caller in callers
        ):
            return
        await _outlast(self._task, None)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if (
            self._opening is not None
            and not self._opened.is_set()
            and self._opener not in calling_tasks()
        ):
            self._opening.reschedule(asyncio.get_running_loop().time())
            try:
                async with asyncio.timeout(CANCEL_GRACE_S):
                    await self._opened.wait()
            except TimeoutError:
                _log.error("a start ignored its cancellation; everything that it opened is closed")
        await work()


class Tasks:
    """The background tasks of one owner."""

    def __init__(
        self, limit: int | None = None, on_dropped: Callable[[], object] = lambda: None
    ) -> None:
        """At most `limit` run at once; `on_dropped` is called for each that was not started."""
        self._limit = limit
        self._on_dropped = on_dropped
        self._running: set[Task] = set()
        self._shutdown = Shutdown(self)

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, task: object) -> bool:
        return task in self._running

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, apart from the current task and those that wait for it."""
        return not self._others()

    def start(
        self, work: Coroutine[Any, Any, Any], name: str, *, at_once: bool = False
    ) -> Task | None:
        """Run `work` once; an exception is logged under `name`.

        Returns None if it is not started: too many run, or the owner has closed. `at_once` runs it
        up to the first thing that it has to wait for (from Python 3.12 on); it may be done then.
        """
        if self._shutdown.has_begun or (
            self._limit is not None and len(self._running) >= self._limit
        ):
            work.close()
            self._on_dropped()
            return None
        task = (
            eager_task(_run(work), name) if at_once else asyncio.create_task(_run(work), name=name)
        )
        if task.done():
            _report(task)
            return task
        self._own(task)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began
        return task

    def keep(self, run: Callable[[], Coroutine[Any, Any, Any]], name: str) -> Task | None:
        """Run `run()`, and again after a pause when it fails; the pauses grow up to 30 s."""
        if self._shutdown.has_begun:
            return None
        return self._own(asyncio.create_task(_keep(run, name), name=name))

    async def join(self, seconds: float) -> None:
        """Wait up to that long until nothing runs; tasks that start meanwhile do not count."""
        if tasks := self._others():
            await asyncio.wait(tasks, timeout=seconds)

    async def aclose(self, within: float | None = None) -> None:
        """Cancel what runs and wait for its end, `CANCEL_GRACE_S` by default; nothing starts after.

        Closing twice is harmless. A task may close its own owner: it is left alone.
        """
        await self._shutdown.run(lambda: self._close(CANCEL_GRACE_S if within is None else within))

    async def _close(self, within: float) -> None:
        tasks = self._others()
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, stubborn = await asyncio.wait(tasks, timeout=within)
        for task in stubborn:
            _log.error("%s ignored its cancellation and still runs", task.get_name())

    def _others(self) -> set[Task]:
        return self._running - calling_tasks()

    def _own(self, task: Task) -> Task:
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: Task) -> None:
        self._running.discard(task)
        _report(task)


async def _outlast(task: asyncio.Task[T], within: float | None) -> T:
    """Wait for the end of `task`, even if the caller is cancelled; then raise the cancellation.

    `within` bounds the wait from then on, after which `task` is cancelled.
    """
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    deadline = float("inf")
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=None if deadline == float("inf") else left)
        except asyncio.CancelledError as exc:
            if cancelled is None and within is not None:
                deadline = loop.time() + within
            cancelled = exc
    if cancelled is None:
        return task.result()
    if task.done():
        _report(task)
    else:
        task.cancel()
        _log.warning("%s did not end within %g s and is cancelled", task.get_name(), within)
    raise cancelled


async def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with guarded():
        return await work


async def _keep(run: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
    loop, backoff = asyncio.get_running_loop(), Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
    while True:
        begun = loop.time()
        try:
            with guarded():
                await run()
        except Exception as exc:  # noqa: BLE001 - whatever it was, the task must go on
            if loop.time() - begun >= _STEADY_S:
                backoff.reset()
            pause = backoff.next()
            _count()
            _log.error(
                "%s failed, and is started again in %.1f s", name, pause, exc_info=cause_of(exc)
            )
        else:
            return
        await asyncio.sleep(pause)


def _report(task: Task) -> None:
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
