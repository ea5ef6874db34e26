"""One attempt of one job, from its bytes to its end: done, retried, failed or handed back."""

import asyncio
import logging
import math
import time
from typing import (
    Final,
    Literal,
    NamedTuple,
    Protocol,
)

import msgspec

from eventbus import tracing
from eventbus.drivers import LeasedJob, QueueStore
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

CANCEL_GRACE_S: Final = 5.0
"""How long a job that ignores its cancellation keeps its lease after its timeout."""
STALE_S: Final = 1.0
"""How long after a suspension of this process jobs may arrive that were sent before it."""
MAX_UNCOUNTED: Final = 1000
"""Of how many jobs a runner remembers that the broker counts more attempts than they had."""
_LOST: Final = qualified_name(WorkerLost)


class Counters(msgspec.Struct):
    """What a worker has done since its creation.

    Each job ends in one of the last four, unless its lease ended and another worker has it.
    """

    taken: int = 0
    done: int = 0
    retried: int = 0
    failed: int = 0
    handed_back: int = 0

    def count(self, what: Literal["taken", "done", "retried", "failed", "handed_back"]) -> None:
        """Add one."""
        setattr(self, what, getattr(self, what) + 1)


class Processor(Protocol):
    """Carries out queued events: a bus, or code for one type of them."""

    async def process(self, event: Event) -> object:
        """Carry out one event; an exception is the job's failure."""


class _Stamp(NamedTuple):
    """A time on two clocks: a monotonic one, and one that continues while the machine sleeps."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> "_Stamp":
        return cls(time.monotonic(), time.time())

    @property
    def age(self) -> float:
        return max(time.monotonic() - self.monotonic, time.time() - self.wall)


class _Run:
    """A running job."""

    __slots__ = (
        "begun", "ended", "extended_at", "is_ending", "is_lost", "leased", "uncounted", "until",
    )  # fmt: skip

    def __init__(self, leased: LeasedJob) -> None:
        self.leased = leased
        self.begun = self.extended_at = _Stamp.now()
        """When it started, and when its lease was last extended."""
        self.until = float("inf")
        """The monotonic time to which its lease may be extended."""
        self.is_lost = False
        """Whether its lease ended, so that another worker may have the job."""
        self.uncounted = 0
        """How many deliveries of the job were no attempts, although the broker counts them."""
        self.is_ending = False
        """Whether its listeners have ended, and the result is on its way to the broker."""
        self.ended = asyncio.Event()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun.monotonic

    def set_timeout(self, seconds: float) -> None:
        self.until = self.begun.monotonic + seconds + CANCEL_GRACE_S

    def extended(self) -> None:
        """The lease was extended just now."""
        self.extended_at = _Stamp.now()

    def check_lease(self, lease: float) -> None:
        """Notice that the lease, of so many seconds, has ended."""
        self.is_lost = self.is_lost or self.extended_at.age > lease

    def may_be_lost(self) -> None:
        """The lease may have ended, until the job is redelivered to this worker."""
        self.is_lost = True

    def redelivered(self, leased: LeasedJob) -> None:
        """The job was redelivered to this worker, which begins another lease of this attempt.

        A delivery that is not newer than the last one changes nothing.
        """
        if leased.attempt > self.leased.attempt + self.uncounted:
            self.count(leased, leased.attempt - self.leased.attempt)
            self.leased, self.extended_at, self.is_lost = leased, _Stamp.now(), False

    def count(self, leased: LeasedJob, uncounted: int) -> None:
        """So many deliveries up to this one were no attempts."""
        leased.counts_as(leased.attempt - uncounted)
        self.uncounted = uncounted

    def is_over(self) -> None:
        """The listeners have ended: a delivery from now on is another attempt, if the job stays."""
        self.is_ending = True


class JobRunner:
    """Runs jobs on a bus, concurrently."""

    def __init__(self, bus: Processor, system: str = "eventbus") -> None:
        """`system` is the broker's name in traces."""
        self.counters = Counters()
        self._bus = bus
        self._system = system
        self._store: QueueStore | None = None
        self._lease = float("inf")
        self._runs: dict[tuple[str, str], _Run] = {}
        """The running jobs, by queue and key."""
        self._uncounted: dict[tuple[str, str], int] = {}
        """`_Run.uncounted` of jobs that may be delivered again, the oldest first."""
        self._awake = _Stamp.now()
        self._stale_until = 0.0

    async def run(self, leased: LeasedJob) -> None:
        """Run one attempt of one job."""
        key = (leased.queue, leased.key)
        is_next = False
        while (running := self._runs.get(key)) is not None:
            if not running.is_ending:
                self._redelivered(running, leased)
                return
            await running.ended.wait()
            is_next = True
        run = self._runs[key] = _Run(leased)
        if uncounted := self._uncounted.pop(key, 0):
            run.count(leased, uncounted)
        try:
            if is_next and await self._is_finished(leased):
                return
            if self._may_be_stale() and not await self._is_ours(run):
                return
            await self._run(run)
        finally:
            del self._runs[key]
            self._remember(key, run.uncounted)
            run.ended.set()

    def _remember(self, key: tuple[str, str], uncounted: int) -> None:
        """Remember what the broker cannot know if it delivers a job again."""
        if uncounted:
            self._uncounted[key] = uncounted
            if len(self._uncounted) > MAX_UNCOUNTED:
                del self._uncounted[next(iter(self._uncounted))]

    async def _run(self, run: _Run) -> None:
        leased = run.leased
        job: Job | None = None
        is_permanent = True
        try:
            with guarded():
                job = read_job(leased.payload)
                event = _event_for(leased, job)
                is_permanent = False
                run.set_timeout(job.timeout)
                with tracing.processing(
                    self._system,
                    leased.queue,
                    job.meta.id,
                    template=leased.queue,
                    headers=job.trace,
                ):
                    await self._process(event, job.timeout)
        except (Exception, asyncio.CancelledError) as exc:
            run.is_over()
            if is_cancelled():
                await complete(self._hand_back(run))
                raise
            cause = only_cause(exc)
            is_permanent = is_permanent or isinstance(cause, JobRejected)
            run.check_lease(self._lease)
            if job is None or leased.attempt >= job.tries or (is_permanent and not run.is_lost):
                await complete(self._fail(run, job, cause))
            else:
                await complete(self._retry(run, job, cause))
        else:
            run.is_over()
            await complete(self._done(run, job))

    async def _process(self, event: Event, seconds: float) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await call_apart(self._bus.process, event)
        except TimeoutError:
            if not limit.expired():  # a listener raised it
                raise
        if limit.expired():  # even if a listener swallowed the error
            raise JobTimeout(f"not done within {seconds:g} s")

    # How an attempt ends: several steps at the broker, which complete even if it is cancelled

    async def _done(self, run: _Run, job: Job) -> None:
        await run.leased.done()
        run.check_lease(self._lease)  # only now: this process may have been suspended until here
        self.counters.count("done")
        _log.info("%s done in %.3f s", _name(run.leased, job), run.elapsed)
        if run.is_lost:
            await self._withdraw(job)

    async def _retry(self, run: _Run, job: Job, exc: BaseException) -> None:
        leased, elapsed = run.leased, run.elapsed
        if run.is_lost:
            self.counters.count("retried")
            _log.warning(
                "%s failed in %.3f s, after its lease had ended: the broker redelivers it, or has "
                "done so: %s",
                _name(leased, job), elapsed, _short(exc),
            )  # fmt: skip
            return
        pause = job.pause_after(leased.attempt)
        if isinstance(exc, JobRetry):
            pause = max(pause, exc.after_s)
        await leased.retry(pause)
        self.counters.count("retried")
        _log.warning(
            "%s failed in %.3f s, next attempt in %g s: %s",
            _name(leased, job), elapsed, pause, _short(exc),
        )  # fmt: skip

    async def _fail(self, run: _Run, job: Job | None, exc: BaseException) -> None:
        leased = run.leased
        if isinstance(exc, WorkerLost) and await self._is_finished(leased):
            _log.warning(
                "%s is not declared lost: an earlier worker has finished it", _name(leased, job)
            )
            return
        attempts = leased.attempt - isinstance(exc, WorkerLost)
        failed = failed_job(exc, job=job, key=leased.key, queue=leased.queue, attempts=attempts)
        await leased.fail(failure_of(failed, leased.payload))
        self.counters.count("failed")
        _log.error(
            "%s failed permanently in %.3f s: %s", _name(leased, job), run.elapsed, _short(exc)
        )

    async def _hand_back(self, run: _Run) -> None:
        run.check_lease(self._lease)
        if run.is_lost:
            _log.info("a job of queue %s is left, because its lease has ended", run.leased.queue)
            return
        await self.hand_back(run.leased)

    async def hand_back(self, leased: LeasedJob) -> None:
        await leased.hand_back()
        self.counters.count("handed_back")
        _log.info("a job of queue %s is handed back", leased.queue)

    # Leases

    async def keep_leases(self, store: QueueStore) -> None:
        """Extend the leases of running jobs, and notice those that have ended."""
        self._store, self._lease = store, store.lease
        if not math.isfinite(self._lease):
            return
        self._awake = _Stamp.now()
        while True:
            await asyncio.sleep(self._lease / 3)
            if self._awake.age > self._lease:
                self._stale_until = time.monotonic() + STALE_S
                _log.warning(
                    "this worker was suspended for %.1f s, longer than the lease of %g s: its %d "
                    "running jobs may have been redelivered to others",
                    self._awake.age, self._lease, len(self._runs),
                )  # fmt: skip
            for run in list(self._runs.values()):
                run.check_lease(self._lease)
                if time.monotonic() < run.until and await run.leased.touch():
                    run.extended()
            self._awake = _Stamp.now()

    def _redelivered(self, run: _Run, leased: LeasedJob) -> None:
        """The broker redelivered a running job: its lease had ended, or the broker lost it."""
        _log.warning(
            "job %s of queue %s was redelivered while it is running", leased.key, leased.queue
        )
        run.redelivered(leased)

    def _may_be_stale(self) -> bool:
        """Whether a job that arrives now may be from before a suspension of this worker."""
        return self._awake.age > self._lease or time.monotonic() < self._stale_until

    async def _is_ours(self, run: _Run) -> bool:
        """Whether to run a job that may be stale: another worker may have it, or had it."""
        leased = run.leased
        run.may_be_lost()
        try:
            job = read_job(leased.payload)
            if await leased.is_queued():
                # On its last attempt no one else runs it: another worker would declare it lost.
                # It is not lost if it was redelivered to this worker in the meantime.
                return not run.is_lost or leased.attempt >= job.tries
            if await self._is_declared_lost(job) and await self._require_store().retry(job.meta.id):
                _log.warning(
                    "%s was declared lost while this worker was suspended, and is queued again",
                    _name(leased, job),
                )
        except InvalidPayload:
            return True  # it fails in any worker
        except DriverError as exc:
            _log.warning("a job of queue %s may have been lost: %s", leased.queue, exc)
        return False

    async def _is_finished(self, leased: LeasedJob) -> bool:
        try:
            return not await leased.is_queued()
        except DriverError:
            return False

    async def _withdraw(self, job: Job) -> None:
        """Remove a job that is done from the failed jobs, if it was declared lost."""
        try:
            if await self._is_declared_lost(job) and await self._require_store().forget(
                job.meta.id
            ):
                _log.warning(
                    "event %r, id %s, was declared lost while its worker was suspended, and is "
                    "done: it was removed from the failed jobs",
                    job.event[:MAX_EVENT], job.meta.id,
                )  # fmt: skip
        except DriverError as exc:
            _log.error(
                "event %r, id %s, is done, and may still be listed as a lost job: %s",
                job.event[:MAX_EVENT], job.meta.id, exc,
            )  # fmt: skip

    async def _is_declared_lost(self, job: Job) -> bool:
        failure = await self._require_store().failure(job.meta.id)
        return failure is not None and read_failure(failure).error == _LOST

    def _require_store(self) -> QueueStore:
        assert self._store is not None, "without a store no lease ends"
        return self._store


def _event_for(leased: LeasedJob, job: Job) -> Event:
    """The event of a job. Raises errors that a retry cannot fix, such as too many attempts."""
    if leased.attempt > job.tries:
        raise WorkerLost(
            f"taken {leased.attempt - 1} times and never finished: its workers were killed, or "
            "lost their connection"
        )
    return event_of(job)


def _name(leased: LeasedJob, job: Job | None) -> str:
    """A job in the log: never with its data."""
    if job is None:
        return f"job {leased.key} of queue {leased.queue}, attempt {leased.attempt},"
    return (
        f"event {job.event[:MAX_EVENT]!r}, id {job.meta.id}, queue {leased.queue}, "
        f"attempt {leased.attempt} of {job.tries},"
    )


def _short(exc: BaseException) -> str:
    """An exception's type; its message only if it is ours, for others may contain user data."""
    return ", ".join(map(_short_one, members_of(exc)))


def _short_one(exc: BaseException) -> str:
    name = valid_text(type(exc).__qualname__, MAX_EVENT)
    if isinstance(exc, InvalidPayload):
        return f"{name}: {exc.reason}"
    return f"{name}: {text_of(exc)}" if isinstance(exc, EventBusError) else name
