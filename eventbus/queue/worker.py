"""The worker: takes queued events, the highest queue first, and runs their listeners and broadcast.

    async with EventBus.from_env() as bus:
        await Worker(bus, queues=("high_priority", "default"), concurrency=16).run()

It takes only as many jobs as it can run at once. While it has free slots, one request per queue
waits for the next job, so that an idle worker costs nothing. A job that arrives when all slots are
taken waits here for a moment, and is handed back if none has become free.
"""

import asyncio
import collections
import contextlib
import functools
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

from eventbus.attempts import Backoff, RateLimitedLog
from eventbus.drivers import Driver, LeasedJob, QueueReader, QueueStore
from eventbus.errors import DriverError
from eventbus.events import DEFAULT_QUEUE, validate_queue
from eventbus.queue.runner import CANCEL_GRACE_S, Counters, JobRunner, Processor
from eventbus.tasks import Tasks, complete
from eventbus.user_code import guarded

__all__ = ["Counters", "Worker", "WorkerBus"]


_log = logging.getLogger(__name__)

HOLD_S: Final = 1.0
"""How long a job waits for a free slot before it is handed back."""
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 5.0
_POLL_AGAIN: Final = Backoff(0.5, 0.5, jitter=0.9)
"""Before a queue whose wait has failed is waited for again."""


class WorkerBus(Processor, Protocol):
    """What a worker needs of the bus."""

    @property
    def driver(self) -> Driver:
        """The bus's own driver, whose name traces show."""

    async def queues(self, connection: str | None = None) -> QueueStore:
        """The queues of a driver; see `EventBus.queues`."""


class Worker:
    """Runs queued events until it is stopped."""

    def __init__(
        self,
        bus: WorkerBus,
        *,
        queues: Iterable[str] = (DEFAULT_QUEUE,),
        concurrency: int = 16,
        connection: str | None = None,
        grace: float = 30.0,
        max_jobs: int | None = None,
        max_time: float | None = None,
        processor: Processor | None = None,
    ) -> None:
        """Takes no job yet.

        queues: their names, the most urgent first; a queue is looked at when all before it are
        empty. concurrency: how many jobs run at once. connection: the name of the driver that has
        the queues, the bus's own by default; broadcasts go through the bus's own. grace: seconds
        that running jobs have to finish when the worker stops. max_jobs, max_time: stop after that
        many jobs taken, or that many seconds. processor: carries out the events in place of the
        bus.

        Raises ValueError for a value that is not allowed.
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
        self._polled: set[str] = set()
        """The queues whose next job is waited for."""
        self._polls = Tasks()
        self._held: dict[str, collections.deque[LeasedJob]] = {}
        self._jobs = Tasks()
        self._handing_back = Tasks()
        self._changed = asyncio.Event()
        self._log = RateLimitedLog(_log)
        self._taking: asyncio.Timeout | None = None
        self._stopping = False
        self._at_once = False

    async def run(self) -> Counters:
        """Work until `stop`, `max_jobs` or `max_time`, and let running jobs finish. Once only.

        Faults of the broker are logged and retried. Cancelling it hands back the jobs it has.
        Raises NotSupported for a driver without queues.
        """
        store = await self.bus.queues(self._connection)
        self._readers = {queue: store.reader(queue) for queue in self.queues}
        self._held = {queue: collections.deque() for queue in self.queues}
        loop = asyncio.get_running_loop()
        timer = None if self._max_time is None else loop.call_later(self._max_time, self.stop)
        leases = Tasks()
        leases.keep(functools.partial(self._runner.keep_leases, store), "extending leases")
        _log.info("working on %s, %d at once", ", ".join(self.queues), self.concurrency)
        try:
            await self._work()
            await self._finish()
        finally:
            if timer is not None:
                timer.cancel()
            try:
                await complete(self._let_go(), within=2 * CANCEL_GRACE_S)
            finally:
                await leases.aclose()
                _log.info("the worker has stopped: %s", _totals(self.counters))
        return self.counters

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs, and let `run` return when running jobs are done, or `grace` is over.

        `at_once`: without waiting. Jobs that are not done by then are handed back, and that does
        not count as an attempt.
        """
        self._stopping = True
        self._at_once = self._at_once or at_once
        self._changed.set()
        if self._taking is not None:  # it may be waiting for a broker that is away
            self._taking.reschedule(asyncio.get_running_loop().time())

    async def _work(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while not self._stopping and (room := self._room()) is not None:
            self._changed.clear()
            if room:
                try:
                    started = await self._take_unless_stopped(room)
                    backoff.reset()
                except DriverError as exc:
                    self._log.warning("cannot take jobs, trying again: %s", exc)
                    await self._pause(backoff.next())
                    continue
                if started:
                    continue
                for queue in self.queues:
                    if queue not in self._polled:
                        self._poll(queue)
            await self._changed.wait()

    async def _take_unless_stopped(self, room: int) -> int:
        """As `_take`, ended by `stop`."""
        try:
            async with asyncio.timeout(None) as self._taking:
                return await self._take(room)
        except TimeoutError:
            if not self._stopping:
                raise
            return 0
        finally:
            self._taking = None

    def _room(self) -> int | None:
        """How many jobs may be taken now; None when `max_jobs` were taken."""
        room = self.concurrency - len(self._jobs)
        if self._max_jobs is not None:
            left = self._max_jobs - self.counters.taken
            return None if left <= 0 else min(room, left)
        return room

    async def _take(self, room: int) -> int:
        """Start up to `room` jobs, from the most urgent queue on; returns how many."""
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
            for job in found:
                if started < room and not self._stopping:
                    self._start(job)
                    started += 1
                else:
                    self._hold(job)
        return started

    def _poll(self, queue: str) -> None:
        """Wait for the next job of a queue in the background."""
        if self._polls.start(self._next_of(queue), f"waiting for jobs of queue {queue}"):
            self._polled.add(queue)

    async def _next_of(self, queue: str) -> None:
        try:
            with guarded():
                job = await self._readers[queue].wait()
            if job is not None:
                self._hold(job)
        except Exception as exc:
            await asyncio.sleep(_POLL_AGAIN.delay(0))
            if not isinstance(exc, DriverError):
                raise
            _log.debug("waiting for jobs of queue %s: %s", queue, exc)  # the next fetch reports it
        finally:
            self._polled.discard(queue)
            self._changed.set()

    def _hold(self, job: LeasedJob) -> None:
        """Keep a job for which there may be no free slot: it starts soon, or is handed back."""
        held = self._held[job.queue]
        held.append(job)
        asyncio.get_running_loop().call_later(HOLD_S, self._drop, job)
        self._changed.set()

    def _drop(self, job: LeasedJob) -> None:
        held = self._held[job.queue]
        if job in held:
            held.remove(job)
            self._hand_back(job)

    def _start(self, job: LeasedJob) -> None:
        self.counters.count("taken")
        name = f"the run of job {job.key} of queue {job.queue}"
        if (task := self._jobs.start(self._runner.run(job), name)) is not None:
            task.add_done_callback(self._ended)

    def _ended(self, _task: "asyncio.Task[Any]") -> None:
        was_full = len(self._jobs) == self.concurrency - 1
        if was_full or self._stopping or self._room() is None:
            self._changed.set()

    async def _finish(self) -> None:
        """Wait for running jobs."""
        await self._stop_reading()
        if not self._jobs:
            return
        _log.info("stopping: %d jobs are running, and have %g s", len(self._jobs), self._grace)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        while self._jobs and not self._at_once and (left := deadline - loop.time()) > 0:
            self._changed.clear()
            await self._pause(left)

    async def _let_go(self) -> None:
        """Hand back all that is left, in bounded time."""
        self._stopping = True
        await self._stop_reading()
        await self._jobs.aclose(CANCEL_GRACE_S)
        await self._handing_back.join(CANCEL_GRACE_S)
        await self._handing_back.aclose()

    async def _stop_reading(self) -> None:
        await self._polls.aclose()
        readers, self._readers = self._readers, {}
        await asyncio.gather(*(reader.aclose() for reader in readers.values()))
        for held in self._held.values():
            while held:
                self._hand_back(held.popleft())

    def _hand_back(self, job: LeasedJob) -> None:
        name = f"handing back a job of queue {job.queue}, which is redelivered later,"
        self._handing_back.start(self._runner.hand_back(job), name)

    async def _pause(self, seconds: float) -> None:
        """Wait for a change, or that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ValueError(f"{name}={value!r}: at least {least:g} is allowed")


def _totals(counters: Counters) -> str:
    return ", ".join(f"{count} {name}" for name, count in msgspec.structs.asdict(counters).items())
