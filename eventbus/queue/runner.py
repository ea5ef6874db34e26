"""One try of one job, from its bytes to its end: done, tried again, failed or handed back."""

import asyncio
import logging
import math
import time
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

import msgspec

from eventbus import tracing
from eventbus.drivers.queues import (
    QueueStore,
    Taken,
)
from eventbus.errors import (
    DriverError,
    EventBusError,
    InvalidPayload,
    JobRejected,
    JobRetry,
    JobTimeout,
    WorkerLost,
)
from eventbus.events import Event, qualified_name
from eventbus.queue.jobs import (
    MAX_EVENT,
    Job,
    event_of,
    failed_job,
    failure_of,
    read_failure,
    read_job,
)
from eventbus.tasks import complete
from eventbus.user_code import (
    call_apart,
    guarded,
    is_cancelled,
    members_of,
    only_cause,
    text_of,
    valid_text,
)

__all__ = ["Counters", "JobRunner", "Processor"]


_log = logging.getLogger(__name__)

STUBBORN_S: Final = 5.0
"""After its timeout, how long a job that does not let itself be cancelled keeps its lease."""
DOUBT_S: Final = 1.0
"""After this process stood still, how long jobs may come that were sent to it long before."""
_LOST: Final = qualified_name(WorkerLost)


class Counters(msgspec.Struct):
    """What a worker has done since it was made.

    Each job ends in one of the last four, unless its lease had ended and others have it.
    """

    taken: int = 0
    done: int = 0
    retried: int = 0
    failed: int = 0
    handed_back: int = 0


class Processor(Protocol):
    """What carries out a queued event: a bus, or somebody who knows what to do with one type."""

    async def process(self, event: Event) -> object:
        """Carry out one event; what it raises is the job's failure."""


class _Stamp(NamedTuple):
    """A moment by two clocks: the first is steady, the second goes on while a machine sleeps."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> "_Stamp":
        return cls(time.monotonic(), time.time())

    @property
    def age(self) -> float:
        return max(time.monotonic() - self.monotonic, time.time() - self.wall)


class _Run:
    """A job under way."""

    __slots__ = ("begun", "held", "is_lost", "taken", "until")

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.begun = self.held = _Stamp.now()
        """When it began, and when its lease was last extended."""
        self.until = float("inf")
        """The monotonic time to which its lease may be extended."""
        self.is_lost = False
        """Whether its lease has ended, so that the broker may have given the job to another."""

    @property
    def took(self) -> float:
        return time.monotonic() - self.begun.monotonic


class JobRunner:
    """Runs jobs on a bus, as many at once as it is asked to."""

    def __init__(self, bus: Processor, system: str = "eventbus") -> None:
        """`system` is what traces call the broker."""
        self.counters = Counters()
        self._bus = bus
        self._system = system
        self._store: QueueStore | None = None
        self._lease = float("inf")
        self._runs: dict[tuple[str, str], _Run] = {}
        """The jobs under way, by queue and key."""
        self._awake = _Stamp.now()
        self._doubt_until = 0.0

    async def run(self, taken: Taken) -> None:
        """One try of one job, to its end."""
        key = (taken.queue, taken.key)
        if (running := self._runs.get(key)) is not None:
            self._came_again(running, taken)
            return
        run = self._runs[key] = _Run(taken)
        try:
            if self._in_doubt() and not await self._is_ours(run):
                return
            await self._run(run)
        finally:
            del self._runs[key]

    async def _run(self, run: _Run) -> None:
        taken = run.taken
        job: Job | None = None
        hopeless = True
        try:
            with guarded():
                job = read_job(taken.payload)
                event = _event_for(taken, job)
                hopeless = False
                run.until = run.begun.monotonic + job.timeout + STUBBORN_S
                with tracing.processing(
                    self._system,
                    taken.queue,
                    job.meta.id,
                    template=taken.queue,
                    headers=job.trace,
                ):
                    await self._process(event, job.timeout)
        except (Exception, asyncio.CancelledError) as exc:
            if is_cancelled():
                await complete(self._hand_back(run))
                raise
            cause = only_cause(exc)
            hopeless = hopeless or isinstance(cause, JobRejected)
            self._check_lease(run)
            if job is None or taken.attempt >= job.tries or (hopeless and not run.is_lost):
                await complete(self._fail(run, job, cause))
            else:
                await complete(self._retry(run, job, cause))
        else:
            await complete(self._done(run, job))

    async def _process(self, event: Event, seconds: float) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await call_apart(self._bus.process, event)
        except TimeoutError:
            if not limit.expired():  # the listener's own
                raise
        if limit.expired():  # also when a listener swallowed it
            raise JobTimeout(f"not done within {seconds:g} s")

    # How a try ends: each of these is several steps at the broker, and is not cut between them

    async def _done(self, run: _Run, job: Job) -> None:
        self._check_lease(run)
        await run.taken.done()
        self.counters.done += 1
        _log.info("%s done in %.3f s", _name(run.taken, job), run.took)
        if run.is_lost:
            await self._withdraw(job)

    async def _retry(self, run: _Run, job: Job, exc: BaseException) -> None:
        taken, took = run.taken, run.took
        if run.is_lost:
            self.counters.retried += 1
            _log.warning(
                "%s failed in %.3f s, after its lease had ended: the broker gives it to a worker "
                "again, or has done so: %s",
                _name(taken, job), took, _short(exc),
            )  # fmt: skip
            return
        pause = job.pause_after(taken.attempt)
        if isinstance(exc, JobRetry):
            pause = max(pause, exc.after_s)
        await taken.retry(pause)
        self.counters.retried += 1
        _log.warning(
            "%s failed in %.3f s, next try in %g s: %s",
            _name(taken, job), took, pause, _short(exc),
        )  # fmt: skip

    async def _fail(self, run: _Run, job: Job | None, exc: BaseException) -> None:
        taken = run.taken
        attempts = taken.attempt - isinstance(exc, WorkerLost)
        failed = failed_job(exc, job=job, key=taken.key, queue=taken.queue, attempts=attempts)
        await taken.fail(failure_of(failed, taken.payload))
        self.counters.failed += 1
        _log.error("%s failed for good in %.3f s: %s", _name(taken, job), run.took, _short(exc))

    async def _hand_back(self, run: _Run) -> None:
        self._check_lease(run)
        if run.is_lost:
            _log.info("a job of queue %s whose lease has ended is left", run.taken.queue)
            return
        await self.hand_back(run.taken)

    async def hand_back(self, taken: Taken) -> None:
        await taken.hand_back()
        self.counters.handed_back += 1
        _log.info("a job of queue %s is handed back", taken.queue)

    # Leases

    async def keep_leases(self, store: QueueStore) -> None:
        """Extend the leases of the jobs that are under way, and notice those that have ended."""
        self._store, self._lease = store, store.lease
        if not math.isfinite(self._lease):
            return
        self._awake = _Stamp.now()
        while True:
            await asyncio.sleep(self._lease / 3)
            if self._awake.age > self._lease:
                self._doubt_until = time.monotonic() + DOUBT_S
                _log.warning(
                    "this worker stood still for %.1f s, longer than the lease of %g s: %d jobs "
                    "under way may have been given to others",
                    self._awake.age, self._lease, len(self._runs),
                )  # fmt: skip
            for run in list(self._runs.values()):
                self._check_lease(run)
                if time.monotonic() < run.until and await run.taken.touch():
                    run.held = _Stamp.now()
            self._awake = _Stamp.now()

    def _check_lease(self, run: _Run) -> None:
        run.is_lost = run.is_lost or run.held.age > self._lease

    def _came_again(self, run: _Run, taken: Taken) -> None:
        """The broker gives us a job that we have: its lease had ended, or the broker forgot it."""
        _log.warning("job %s of queue %s came again while it is under way", taken.key, taken.queue)
        if taken is not run.taken:
            taken.continues(run.taken)
            run.taken, run.held, run.is_lost = taken, _Stamp.now(), False

    def _in_doubt(self) -> bool:
        """Whether a job that comes now may have come long ago, while this worker stood still."""
        return self._awake.age > self._lease or time.monotonic() < self._doubt_until

    async def _is_ours(self, run: _Run) -> bool:
        """Whether to run a job that may have come long ago: others may have it, or had it."""
        taken = run.taken
        run.is_lost = True
        try:
            job = read_job(taken.payload)
            if await taken.is_queued():
                # With its last try it is nobody else's: others would declare it lost.
                return taken.attempt >= job.tries
            if await self._is_declared_lost(job) and await self._require_store().retry(job.meta.id):
                _log.warning(
                    "%s was declared lost while this worker stood still, and is queued again",
                    _name(taken, job),
                )
        except InvalidPayload:
            return True  # it fails, whoever has it
        except DriverError as exc:
            _log.warning("a job of queue %s may have been lost: %s", taken.queue, exc)
        return False

    async def _withdraw(self, job: Job) -> None:
        """Take a job that is done from among those that failed, if it was declared lost."""
        try:
            if await self._is_declared_lost(job) and await self._require_store().forget(
                job.meta.id
            ):
                _log.warning(
                    "event %r, id %s, was declared lost while its worker stood still, and is done: "
                    "it is no longer among the failed jobs",
                    job.event[:MAX_EVENT], job.meta.id,
                )  # fmt: skip
        except DriverError as exc:
            _log.error(
                "event %r, id %s, is done, and may stand among the failed jobs as lost: %s",
                job.event[:MAX_EVENT], job.meta.id, exc,
            )  # fmt: skip

    async def _is_declared_lost(self, job: Job) -> bool:
        failure = await self._require_store().failure(job.meta.id)
        return failure is not None and read_failure(failure).error == _LOST

    def _require_store(self) -> QueueStore:
        assert self._store is not None, "without a store no lease ends"
        return self._store


def _event_for(taken: Taken, job: Job) -> Event:
    """The event, unless the job has been taken too often. Raises what no further try can help."""
    if taken.attempt > job.tries:
        raise WorkerLost(
            f"taken {taken.attempt - 1} times, and never brought to an end: its workers were "
            "killed, or lost their connection"
        )
    return event_of(job)


def _name(taken: Taken, job: Job | None) -> str:
    """A job as the log speaks of it: never its data."""
    if job is None:
        return f"job {taken.key} of queue {taken.queue}, attempt {taken.attempt},"
    return (
        f"event {job.event[:MAX_EVENT]!r}, id {job.meta.id}, queue {taken.queue}, "
        f"attempt {taken.attempt} of {job.tries},"
    )


def _short(exc: BaseException) -> str:
    """An exception's type, and its message where it is ours: others' may hold anybody's data."""
    return ", ".join(map(_short_one, members_of(exc)))


def _short_one(exc: BaseException) -> str:
    name = valid_text(type(exc).__qualname__, MAX_EVENT)
    if isinstance(exc, InvalidPayload):
        return f"{name}: {exc.reason}"
    return f"{name}: {text_of(exc)}" if isinstance(exc, EventBusError) else name
