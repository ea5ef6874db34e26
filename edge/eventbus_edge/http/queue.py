"""What the HTTP API tells of queued events: those that failed for good, and how many wait."""

import datetime
import re
from typing import (
    Annotated,
    Final,
)

import msgspec

from eventbus.drivers.queues import QueueStore
from eventbus.queue import failed_jobs
from eventbus_edge.problem import Problem

__all__ = ["FailedJobs", "FailedQuery", "JobDone", "done", "failed_answer", "job_id"]


_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_MAX_FAILED: Final = 200


class FailedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of the failed jobs."""

    limit: Annotated[
        int, msgspec.Meta(ge=1, le=_MAX_FAILED, description="How many at most, oldest first.")
    ] = 50


class JobFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A queued event that is not tried again by itself."""

    id: str
    queue: str
    event: Annotated[str, msgspec.Meta(description="Empty for a job that could not be read.")]
    attempts: int
    failed_at: datetime.datetime
    error: Annotated[str, msgspec.Meta(description="The exception's type.")]
    message: str
    traceback: Annotated[str, msgspec.Meta(description="Its end.")]


class QueueLength(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs a queue has."""

    queue: str
    ready: int
    taken: Annotated[int, msgspec.Meta(description="Worked on, or waiting for the next try.")]
    delayed: int


class FailedJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The queued events that failed, the oldest first, and the queues."""

    jobs: list[JobFailure]
    count: Annotated[int, msgspec.Meta(description="How many have failed in all.")]
    queues: list[QueueLength]


class JobDone(msgspec.Struct, frozen=True, kw_only=True):
    """The job was one that had failed, and is not among those any more."""

    id: str


async def failed_answer(store: QueueStore, limit: int) -> FailedJobs:
    """What is told. Raises ConnectionFailed."""
    return FailedJobs(
        jobs=[
            msgspec.convert(job, JobFailure, from_attributes=True)
            for job in await failed_jobs(store, limit)
        ],
        count=await store.failure_count(),
        queues=[QueueLength(**each._asdict()) for each in await store.stats()],
    )


def job_id(given: str) -> str:
    """Give the id back when it may be one. Raises Problem."""
    if _JOB_ID.fullmatch(given):
        return given
    raise Problem("bad_request", "that is no job's id: 1 to 100 of A-Z a-z 0-9 _ - are")


def done(job: str, *, was_there: bool) -> JobDone:
    """The answer. Raises Problem for a job that was not there."""
    if not was_there:
        raise Problem("not_found", f"no failed job has the id {job}")
    return JobDone(id=job)
