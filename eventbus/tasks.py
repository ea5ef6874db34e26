"""Steps that must not be cut between two calls to the broker, such as to store and then to drop."""

import asyncio
import collections
import logging
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
)
from typing import (
    Any,
    Final,
    TypeVar,
)

from eventbus.backoff import Backoff
from eventbus.user_code import (
    cause_of,
    guarded,
)

__all__ = ["Pool", "Shutdown", "Tasks", "Work", "complete", "fault_count"]


_log = logging.getLogger(__name__)

T = TypeVar("T")
WITHIN_S: Final = 5.0


async def complete(work: Coroutine[Any, Any, T], *, within: float = WITHIN_S) -> T:
    """Run `work` to its end, although the caller is cancelled meanwhile.

    The cancellation is raised then. After it, `work` has `within` seconds; then it is cancelled.
    """
    loop = asyncio.get_running_loop()
    task, name = loop.create_task(work), getattr(work, "__qualname__", "a step")
    cancelled: asyncio.CancelledError | None = None
    deadline = float("inf")
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([task], timeout=None if cancelled is None else left)
        except asyncio.CancelledError as exc:
            if cancelled is None:
                deadline = loop.time() + within
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.done():
        task.cancel()
        _log.warning("%s did not end within %g s and is cut", name, within)
    elif not task.cancelled() and (fault := task.exception()) is not None:
        _log.error("%s failed", name, exc_info=fault)
    raise cancelled


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
    loop, backoff = asyncio.get_running_loop(), Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
    while True:
        begun = loop.time()
        try:
            with guarded():
                await run()
        except Exception as exc:  # noqa: BLE001 - whatever it was, the keeper must go on
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
