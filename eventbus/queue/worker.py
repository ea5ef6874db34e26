"""The worker: takes queued events, the highest queue first, and runs their listeners and broadcast.

    async with EventBus.from_env() as bus:
        await Worker(bus, queues=("high_priority", "default"), concurrency=16).run()

It takes no more than it can run at once. Each queue has one open question for its next job while
the worker has room, so that being idle costs nothing; a job that answers it when the room is gone
waits here for a moment, and is handed back when there is still none.
"""

import asyncio
import collections
import contextlib
import functools
import logging
import random
from collections.abc import (
    Coroutine,
    Iterable,
)
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.bus import EventBus
from eventbus.drivers.queues import (
    LeasedJob,
    QueueReader,
)
from eventbus.errors import DriverError
from eventbus.events import DEFAULT_QUEUE, validate_queue
from eventbus.queue.runner import (
    STUBBORN_S,
    Counters,
    JobRunner,
    Processor,
)
from eventbus.tasks import (
    Tasks,
    complete,
)
from eventbus.user_code import (
    guarded,
    is_cancelled,
)

__all__ = ["Counters", "Worker"]


_log = logging.getLogger(__name__)

HOLD_S: Final = 1.0
"""How long a job waits for room in the worker before it is handed back."""
_MAX_PAUSE_S: Final = 5.0


class Worker:
    """Runs queued events until it is stopped."""

    def __init__(
        self,
        bus: EventBus,
        *,
        queues: Iterable[str] = (DEFAULT_QUEUE,),
        concurrency: int = 16,
        connection: str | None = None,
        grace: float = 30.0,
        max_jobs: int | None = None,
        max_time: float | None = None,
        processor: Processor | None = None,
    ) -> None:
        """Nothing is taken yet.

        queues: their names, the most urgent first; the next one is looked at when all before it
        are empty. concurrency: how many jobs run at once. connection: the name of the driver
        whose queues they are, the bus's own by default; what is broadcast goes through the bus's.
        grace: the seconds in which those under way may finish when the worker stops. max_jobs,
        max_time: stop after as many jobs taken, or seconds. processor: what carries the events out,
        in place of the bus.

        Raises ValueError for what is not allowed.
        """
        self.queues = tuple(dict.fromkeys(map(validate_queue, queues)))
        if not self.queues:
            raise ValueError("a worker needs a queue")
        _at_least("concurrency", concurrency, 1)
        _at_least("grace", grace, 0)
        _at_least("max_jobs", max_jobs, 1)
        _at_least("max_time", max_time, 0)
        self.bus = bus
        self.concurrency = concurrency
        self._runner = JobRunner(bus if processor is None else processor, bus.driver.name)
        self.counters = self._runner.counters
        self._grace = grace
        self._max_jobs = max_jobs
        self._max_time = max_time
        self._connection = connection
        self._readers: dict[str, QueueReader] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._held: dict[str, collections.deque[LeasedJob]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._taking: asyncio.Task[int] | None = None
        self._stopping = False
        self._at_once = False

    async def run(self) -> Counters:
        """Work until `stop`, `max_jobs` or `max_time`; what is under way then is finished.

        Faults of the broker are logged and waited out. Cancelling it hands back what it holds.
        Raises NotSupported for a driver without queues.
        """
        store = await self.bus.queues(self._connection)
        self._readers = {queue: store.reader(queue) for queue in self.queues}
        self._held = {queue: collections.deque() for queue in self.queues}
        loop = asyncio.get_running_loop()
        timer = None if self._max_time is None else loop.call_later(self._max_time, self.stop)
        keeper = Tasks()
        keeper.keep(functools.partial(self._runner.keep_leases, store), "extending leases")
        _log.info("working on %s, %d at once", ", ".join(self.queues), self.concurrency)
        try:
            await self._work()
            await self._finish()
        finally:
            if timer is not None:
                timer.cancel()
            await complete(self._let_go(), within=2 * STUBBORN_S)
            await keeper.aclose()
            _log.info("the worker has stopped: %s", _told(self.counters))
        return self.counters

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more, and let `run` return when what is under way is done, or `grace` is over.

        `at_once`: without waiting. What is not done by then is handed back, and not counted as a
        try.
        """
        self._stopping = True
        self._at_once = self._at_once or at_once
        self._changed.set()
        if self._taking is not None:  # which may be waiting for a broker that is away
            self._taking.cancel()

    async def _work(self) -> None:
        pause = 0.0
        while not self._stopping and (room := self._room()) is not None:
            self._changed.clear()
            if room:
                self._taking = asyncio.create_task(self._take(room))
                try:
                    started = await self._taking
                    pause = 0.0
                except asyncio.CancelledError:
                    if is_cancelled():
                        raise
                    continue  # by stop()
                except DriverError as exc:
                    pause = min(_MAX_PAUSE_S, pause * 2 or 0.1)
                    _log.warning("cannot take jobs, trying again: %s", exc)
                    await self._pause(random.uniform(pause / 2, pause))  # noqa: S311 - no secret
                    continue
                if started:
                    continue
                for queue in self.queues:
                    if queue not in self._polls:
                        self._poll(queue)
            await self._changed.wait()

    def _room(self) -> int | None:
        """How many jobs may be taken now; None when it is no more, ever."""
        room = self.concurrency - len(self._running)
        if self._max_jobs is not None:
            left = self._max_jobs - self.counters.taken
            return None if left <= 0 else min(room, left)
        return room

    async def _take(self, room: int) -> int:
        """Start what there is for that many places, from the most urgent queue on."""
        started = 0
        for queue in self.queues:
            held = self._held[queue]
            while held and started < room:
                self._start(held.popleft())
                started += 1
            if started >= room:
                break
            with guarded():
                found = await self._readers[queue].fetch(room - started)
            for taken in found:
                if started < room and not self._stopping:
                    self._start(taken)
                    started += 1
                else:
                    self._hold(taken)
        return started

    def _poll(self, queue: str) -> None:
        task = asyncio.create_task(self._next_of(queue))
        self._polls[queue] = task
        task.add_done_callback(lambda done: self._poll_ended(queue, done))

    def _poll_ended(self, queue: str, task: asyncio.Task[None]) -> None:
        self._polls.pop(queue, None)
        self._changed.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("waiting for jobs of queue %s", queue, exc_info=exc)

    async def _next_of(self, queue: str) -> None:
        try:
            with guarded():
                taken = await self._readers[queue].wait()
        except DriverError as exc:
            _log.debug("waiting for jobs of queue %s: %s", queue, exc)  # the next fetch tells
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - no secret
        else:
            if taken is not None:
                self._hold(taken)

    def _hold(self, taken: LeasedJob) -> None:
        """Keep a job for which there may be no place; it is started soon, or handed back."""
        held = self._held[taken.queue]
        held.append(taken)
        asyncio.get_running_loop().call_later(HOLD_S, self._drop, taken)
        self._changed.set()

    def _drop(self, taken: LeasedJob) -> None:
        held = self._held[taken.queue]
        if taken in held:
            held.remove(taken)
            self._later(self._runner.hand_back(taken))

    def _start(self, taken: LeasedJob) -> None:
        self.counters.taken += 1
        task = asyncio.create_task(self._runner.run(taken))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        full = self._room() in (0, None)
        self._running.discard(task)
        if full or self._stopping:
            self._changed.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a job could not be ended, its lease will", exc_info=exc)

    async def _finish(self) -> None:
        """Wait for what is under way."""
        await self._stop_reading()
        if not self._running:
            return
        _log.info("stopping: %d jobs under way, %g s for them", len(self._running), self._grace)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        while self._running and not self._at_once and (left := deadline - loop.time()) > 0:
            self._changed.clear()
            await self._pause(left)

    async def _let_go(self) -> None:
        """Hand back all that is left, in bounded time."""
        self._stopping = True
        await self._stop_reading()
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=STUBBORN_S)
            if stubborn:
                _log.error(
                    "%d jobs do not let themselves be cancelled; others get them when their "
                    "leases end",
                    len(stubborn),
                )
        if self._background:
            await asyncio.wait(list(self._background), timeout=STUBBORN_S)

    async def _stop_reading(self) -> None:
        polls = list(self._polls.values())
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        readers, self._readers = self._readers, {}
        await asyncio.gather(*(reader.aclose() for reader in readers.values()))
        for held in self._held.values():
            while held:
                self._later(self._runner.hand_back(held.popleft()))

    async def _pause(self, seconds: float) -> None:
        """Wait for a change, or that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._handed_back)

    def _handed_back(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a job could not be handed back, its lease will end", exc_info=exc)


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ValueError(f"{name}={value!r}: at least {least:g} is allowed")


def _told(counters: Counters) -> str:
    return ", ".join(f"{count} {name}" for name, count in msgspec.structs.asdict(counters).items())
