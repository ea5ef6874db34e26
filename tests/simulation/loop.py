"""Event loops without sockets and without real time: one per simulated process.

A process is killed by never running its loop again, and suspended by not running it for a while.
All loops share one clock, which only the simulation advances.
"""

import asyncio
import collections
import contextvars
import heapq
import itertools

BEGIN = 1_750_000_000.0
"""The wall clock's time at the start, in seconds since 1970."""
MAX_CALLBACKS = 200_000
"""A process that runs more callbacks than this at one moment is considered stuck."""


class Clock:
    """The simulated time, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wall(self):
        return BEGIN + self.now

    def wall_ns(self):
        return int((BEGIN + self.now) * 1_000_000) * 1000


class Handle:
    __slots__ = ("args", "at", "callback", "context")

    def __init__(self, callback, args, context, at):
        self.callback, self.args, self.context, self.at = callback, args, context, at

    def cancel(self):
        self.callback = None
        self.args = ()

    def cancelled(self):
        return self.callback is None

    def when(self):
        return self.at


class Loop(asyncio.AbstractEventLoop):
    """Runs callbacks in the order of `call_soon`, as asyncio guarantees."""

    def __init__(self, clock, faults):
        """`faults`: collects exceptions of callbacks and of tasks that nobody awaited."""
        self.clock = clock
        self.faults = faults
        self._ready = collections.deque()
        self.timers = []
        """A heap of times and handles; the first one may have been cancelled."""
        self._numbers = itertools.count()
        self._is_dead = self._is_active = False

    # What asyncio uses

    def time(self):
        return self.clock.now

    def call_soon(self, callback, *args, context=None):
        handle = Handle(callback, args, context or contextvars.copy_context(), 0.0)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when, callback, *args, context=None):
        handle = Handle(callback, args, context or contextvars.copy_context(), when)
        heapq.heappush(self.timers, (when, next(self._numbers), handle))
        return handle

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self.clock.now + delay, callback, *args, context=context)

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None, **_):
        return asyncio.Task(coro, loop=self, name=name, context=context)

    get_debug = staticmethod(bool)
    """Always False. Each future asks, so this costs no frame."""

    def is_running(self):
        return True

    def is_closed(self):
        return False

    def call_exception_handler(self, context):
        if not self._is_dead and "exception" in context:
            self.faults.append(context["exception"])

    # What the simulation uses

    def kill(self):
        """Stop the process forever."""
        self._is_dead = True
        self._ready.clear()
        self.timers.clear()

    def run(self, callback=None, *args):
        """Call `callback`, then run all ready callbacks until none are left.

        If called from within the loop, the callback runs later in the same run.
        """
        if self._is_dead:
            return
        if self._is_active:
            self.call_soon(callback, *args)
            return
        self._is_active = True
        asyncio._set_running_loop(self)
        try:
            if callback is not None:
                callback(*args)
            ready = self._ready
            for _ in range(MAX_CALLBACKS):
                if not ready:
                    return
                handle = ready.popleft()
                if (callback := handle.callback) is None:
                    continue
                try:
                    handle.context.run(callback, *handle.args)
                except Exception as exc:  # noqa: BLE001 - asyncio would log it
                    self.faults.append(exc)
            raise AssertionError("a process never becomes idle")
        finally:
            self._is_active = False
            asyncio._set_running_loop(None)

    def next_timer(self):
        """When the next timer is due."""
        timers = self.timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        return timers[0][0] if timers else float("inf")

    def run_timers(self):
        """Run the timers that are due."""
        timers, now = self.timers, self.clock.now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if handle.callback is not None:
                self._ready.append(handle)
        self.run()
