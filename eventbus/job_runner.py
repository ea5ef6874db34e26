"""One try of one job, from its bytes to its end: done, tried again, failed or handed back."""

import asyncio
import logging
from typing import Final, Protocol

import msgspec

from eventbus import tracing
from eventbus.drivers.base import Taken
from eventbus.errors import (
    EventBusError,
    InvalidPayload,
    JobRejected,
    JobRetry,
    JobTimeout,
    WorkerLost,
)
from eventbus.events import Event
from eventbus.jobs import (
    Job,
    event_of,
    failed_job,
    failure_of,
    read_job,
)

__all__ = ["Counters", "JobRunner", "Processor", "is_cancelled"]

_log = logging.getLogger(__name__)

STUBBORN_S: Final = 5.0
"""After its timeout, how long a job that does not let itself be cancelled keeps its lease."""


class Counters(msgspec.Struct):
    """What a worker has done since it was made; each job ends in one of the last four."""

    taken: int = 0
    done: int = 0
    retried: int = 0
    failed: int = 0
    handed_back: int = 0


class Processor(Protocol):
    """What carries out a queued event: a bus, or somebody who knows what to do with one type."""

    async def process(self, event: Event) -> object:
        """Carry out one event; what it raises is the job's failure."""


class JobRunner:
    """Runs jobs on a bus, as many at once as it is asked to."""

    def __init__(self, bus: Processor, system: str = "eventbus") -> None:
        """`system` is what traces call the broker."""
        self.counters = Counters()
        self._bus = bus
        self._system = system
        self._leases: dict[Taken, float] = {}
        """The jobs under way, and the loop's time to which their leases may be extended."""
        self._keys: set[tuple[str, str]] = set()

    async def run(self, taken: Taken) -> None:
        """One try of one job, to its end."""
        # A broker that was killed may have forgotten that it gave us the job; it has one end.
        key = (taken.queue, taken.key)
        if key in self._keys:
            _log.warning(
                "job %s of queue %s came again while it is under way", taken.key, taken.queue
            )
            return
        self._keys.add(key)
        try:
            await self._run(taken)
        finally:
            self._keys.discard(key)

    async def _run(self, taken: Taken) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._leases[taken] = float("inf")
        job: Job | None = None
        hopeless = True
        try:
            job = read_job(taken.payload)
            event = _event_for(taken, job)
            hopeless = False
            self._leases[taken] = begun + job.timeout + STUBBORN_S
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
                await self.hand_back(taken)
                raise
            cause = _only(exc)
            hopeless = hopeless or isinstance(cause, JobRejected)
            if job is None or hopeless or taken.attempt >= job.tries:
                await self._fail(taken, job, cause, loop.time() - begun)
            else:
                await self._retry(taken, job, cause, loop.time() - begun)
        else:
            await taken.done()
            self.counters.done += 1
            _log.info("%s done in %.3f s", _name(taken, job), loop.time() - begun)
        finally:
            del self._leases[taken]

    async def _process(self, event: Event, seconds: float) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._bus.process(event)
        except TimeoutError:
            if not limit.expired():  # the listener's own
                raise
        if limit.expired():  # also when a listener swallowed it
            raise JobTimeout(f"not done within {seconds:g} s")

    async def _retry(self, taken: Taken, job: Job, exc: BaseException, took: float) -> None:
        pause = job.pause_after(taken.attempt)
        if isinstance(exc, JobRetry):
            pause = max(pause, exc.after_s)
        await taken.retry(pause)
        self.counters.retried += 1
        _log.warning(
            "%s failed in %.3f s, next try in %g s: %s",
            _name(taken, job), took, pause, _short(exc),
        )  # fmt: skip

    async def _fail(self, taken: Taken, job: Job | None, exc: BaseException, took: float) -> None:
        attempts = taken.attempt - isinstance(exc, WorkerLost)
        failed = failed_job(exc, job=job, key=taken.key, queue=taken.queue, attempts=attempts)
        await taken.fail(failure_of(failed, taken.payload))
        self.counters.failed += 1
        _log.error("%s failed for good in %.3f s: %s", _name(taken, job), took, _short(exc))

    async def hand_back(self, taken: Taken) -> None:
        await taken.hand_back()
        self.counters.handed_back += 1
        _log.info("a job of queue %s is handed back", taken.queue)

    async def keep_leases(self, lease: float) -> None:
        """Extend the leases of the jobs that are under way."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(lease / 3)
            for taken, until in list(self._leases.items()):
                if loop.time() < until:
                    await taken.touch()


def is_cancelled() -> bool:
    """Whether somebody wants this task to end; a listener may raise CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _only(exc: BaseException) -> BaseException:
    """What one listener raised, where it was the only one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


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
        f"event {job.event!r}, id {job.meta.id}, queue {taken.queue}, "
        f"attempt {taken.attempt} of {job.tries},"
    )


def _short(exc: BaseException) -> str:
    """An exception's type, and its message where it is ours: others' may hold anybody's data."""
    if isinstance(exc, BaseExceptionGroup):
        return ", ".join(_short(one) for one in exc.exceptions)
    name = type(exc).__qualname__
    if isinstance(exc, InvalidPayload):
        return f"{name}: {exc.reason}"
    return f"{name}: {exc}" if isinstance(exc, EventBusError) else name
