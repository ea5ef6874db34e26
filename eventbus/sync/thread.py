"""An event loop in a background thread, and calls into it."""

import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar, cast

from eventbus.errors import BusStateError
from eventbus.events import carried

__all__ = [
    "CLOSED", "EXIT_S", "LoopCalls", "LoopThread", "leave_behind", "refuse_in_event_loop",
]  # fmt: skip

_log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]

EXIT_S: Final = 15.0
"""How long the exit of the process waits for its buses to close."""
_BUSY_S: Final = 2.0
"""How much longer it waits for a loop that does not react."""
CLOSED: Final = "the bus was closed while this call was waiting"

_GREENLETS: Final = (
    "threads of this process are greenlets (gevent or eventlet has patched it), and an event loop "
    "in one of them would block all others: use workers with threads, such as gunicorn's gthread"
)


_left_behind: list[contextvars.ContextVar[Any]] = []


def leave_behind(variable: contextvars.ContextVar[Any]) -> None:
    """Register a context variable that calls into a loop do not take along: there it is None.

    For one that names a thread of the caller. The thread waits for the call, and so the call must
    not wait for the thread.
    """
    if variable not in _left_behind:
        _left_behind.append(variable)


class LoopCalls:
    """Calls from other threads into one event loop.

    Calls that come while the loop is about to wake up do not wake it again: with several threads,
    the wake-ups would cost more than the work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: set[_Call[Any]] = set()
        self._new: collections.deque[_Call[Any]] = collections.deque()
        self._is_waking = False
        self._is_closed = False

    @property
    def can_run(self) -> bool:
        """Whether the loop is running: what it would be given otherwise might wait forever."""
        return self._loop.is_running()

    def run(self, work: Work[T], timeout: float | None = None) -> T:
        """Run `work` in the loop, and wait for its result.

        The work finds the transactions of this thread. An interrupted wait cancels it. Raises
        BusStateError if the loop ends meanwhile, and TimeoutError after `timeout` seconds.
        """
        with carried():
            call = _Call(self._loop, work(), self._calls.discard)
            try:
                self._add(call)
                return call.result(timeout)
            finally:
                call.cancel()

    def submit(self, work: Work[T]) -> concurrent.futures.Future[T]:
        """Run `work` in the loop, in a copy of this context.

        The future ends with it, and is cancelled when the loop ends. A cancelled future cancels it.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        call = _Call(self._loop, work(), self._calls.discard, future)
        future.add_done_callback(lambda done: call.cancel() if done.cancelled() else None)
        self._add(call)
        return future

    def _add(self, call: "_Call[Any]") -> None:
        """Start a call in the loop, or give it up if the loop has ended."""
        if self._is_closed:
            call.give_up()
            return
        self._calls.add(call)
        self._new.append(call)
        if not self._is_waking:
            self._is_waking = True
            try:
                self._loop.call_soon_threadsafe(self._start_new)
            except RuntimeError:  # the loop has been closed
                self._is_closed = True
        if self._is_closed:  # by now
            self.refuse()

    def wake(self, callback: Callable[[], object]) -> None:
        """Call a function in the loop soon. Does nothing if the loop has been closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def _start_new(self) -> None:
        # First the mark: a call that is added after the last look below wakes the loop again.
        self._is_waking = False
        while self._new:
            self._new.popleft().start()

    def refuse(self) -> None:
        """Take no more calls, and cancel those that have not started."""
        self._is_closed = True
        with contextlib.suppress(IndexError):  # other threads may do the same
            while True:
                self._new.popleft().give_up()

    def close(self) -> None:
        """Take no more calls, and cancel all that have not ended."""
        self.refuse()
        for call in list(self._calls):
            call.cancel()


class _Call(Generic[T]):
    """A coroutine that another thread gives to a loop, and its outcome.

    The thread waits for a lock: a `concurrent.futures.Future` makes a condition and two locks, and
    takes twenty times as long.
    """

    __slots__ = (
        *("_context", "_coroutine", "_ended", "_error", "_future", "_is_claimed", "_is_over"),
        *("_loop", "_result", "_task"),
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T],
        ended: "Callable[[_Call[Any]], object]",
        future: concurrent.futures.Future[T] | None = None,
    ) -> None:
        """`ended` is called in the end; `future`, if any, gets the outcome too."""
        self._loop = loop
        self._coroutine = coroutine
        self._ended = ended
        self._future = future
        self._context = contextvars.copy_context()
        for variable in _left_behind:
            self._context.run(variable.set, None)
        self._task: asyncio.Task[None] | None = None
        self._is_claimed = threading.Lock()
        """Locked by the first who ends the call; several threads may try."""
        self._is_over = threading.Lock()
        """Locked until there is an outcome."""
        self._is_over.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None

    def result(self, timeout: float | None) -> T:
        """Wait for the outcome, once: return the result, or raise what the coroutine raised.

        Raises BusStateError if it was cancelled, and TimeoutError after that many seconds.
        """
        if not self._is_over.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError
        if self._error is None:
            return cast(T, self._result)
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    def start(self) -> None:
        """Start it; called in the loop."""
        if self._is_claimed.locked():  # it was cancelled
            self._coroutine.close()
        else:
            self._task = self._loop.create_task(self._run(), context=self._context)

    def give_up(self) -> None:
        """Cancel it before it was started."""
        self._coroutine.close()
        self._end(None, BusStateError(CLOSED), is_cancelled=True)

    def cancel(self) -> None:
        """Cancel the coroutine, unless there is an outcome."""
        if self._is_claimed.locked():
            return  # as after each call that was waited for
        if self._end(None, BusStateError(CLOSED), is_cancelled=True):
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            result = await self._coroutine
        except asyncio.CancelledError:
            self._end(None, BusStateError(CLOSED), is_cancelled=True)
            raise
        except BaseException as exc:  # noqa: BLE001 - it is raised in the calling thread
            self._end(None, exc)
        else:
            self._end(result, None)

    def _end(
        self, result: T | None, error: BaseException | None, *, is_cancelled: bool = False
    ) -> bool:
        """Set the outcome; False if there is one already."""
        if not self._is_claimed.acquire(blocking=False):
            return False
        self._result, self._error = result, error
        self._is_over.release()
        self._ended(self)
        if (future := self._future) is not None:
            if is_cancelled:
                if future.cancel():
                    future.set_running_or_notify_cancel()  # `concurrent.futures.wait` needs it
            elif future.set_running_or_notify_cancel():
                if error is None:
                    future.set_result(cast(T, result))
                else:
                    future.set_exception(error)
        return True


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        """Start it.

        Raises OSError if the process cannot open more files, and BusStateError if it is ending, or
        if its threads are greenlets.
        """
        self._creator = threading.get_native_id()
        started: concurrent.futures.Future[LoopCalls] = concurrent.futures.Future()
        self._stopping = asyncio.Event()
        self._ending: concurrent.futures.Future[None] | None = None
        self.has_ended = False
        """Whether somebody has waited for the end, or given it up."""
        self._thread = threading.Thread(
            target=self._main, args=(started,), name="eventbus.sync", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as exc:  # Python 3.12.0 and .1 start none after the main thread's end
            raise BusStateError(f"no background thread can be started: {exc}") from None
        self.calls = started.result()

    def _main(self, started: concurrent.futures.Future[LoopCalls]) -> None:
        try:
            if threading.get_native_id() == self._creator:
                raise BusStateError(_GREENLETS)  # noqa: TRY301 - the caller gets it
            runner = asyncio.Runner()
            calls = LoopCalls(runner.get_loop())
        except BaseException as exc:  # noqa: BLE001 - such as too many open files
            started.set_exception(exc)
            return
        try:
            with runner:
                runner.run(self._serve(started, calls))
        finally:
            calls.close()

    async def _serve(self, started: concurrent.futures.Future[LoopCalls], calls: LoopCalls) -> None:
        started.set_result(calls)
        await self._stopping.wait()

    def refuse_in_itself(self) -> None:
        """Raise BusStateError in the thread itself, which could not wait for its own end."""
        if threading.current_thread() is self._thread:
            raise BusStateError(
                "eventbus.sync.close() was called by a listener, in the thread that it would end"
            )

    def start_ending(self, last: Work[object]) -> None:
        """Run `last`, and then end the loop and the thread; only the first call does so."""
        if self._ending is None:
            self._ending = self.calls.submit(lambda: self._end(last))

    async def _end(self, last: Work[object]) -> None:
        try:
            await last()
        finally:
            self._stopping.set()

    def wait_until_ended(self) -> None:
        """Wait for the end that has been started, and end the calls that still wait.

        Gives up when the loop is busy for longer than `EXIT_S`: the thread is a daemon. Raises what
        `last` has raised.
        """
        assert self._ending is not None
        done, late = concurrent.futures.wait([self._ending], EXIT_S + _BUSY_S)
        if late:
            _log.warning("a listener blocks the loop of eventbus.sync, which was left running")
        elif self._ending.cancelled():
            _log.warning("the loop of eventbus.sync has ended before its buses were closed")
        self.calls.wake(self._stopping.set)
        self._thread.join(_BUSY_S)
        self.calls.close()
        self.has_ended = True
        if done and not self._ending.cancelled():
            self._ending.result()

    def run_before_end(self, work: Work[object]) -> None:
        """Run `work` in a loop that is ending, and wait until either has ended.

        Gives up as `wait_until_ended` does.
        """
        call = self.calls.submit(work)
        concurrent.futures.wait([call], EXIT_S + _BUSY_S)
        if call.done() and not call.cancelled():
            call.result()


def refuse_in_event_loop(what: str, remedy: str) -> None:
    """Raise BusStateError in a thread whose event loop is running, which `what` would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BusStateError(
        f"{what} would block the event loop that runs in this thread: {remedy}", would_block=True
    )
