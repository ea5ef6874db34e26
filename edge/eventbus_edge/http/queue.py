"""Failed jobs and queue lengths over the HTTP API."""

import datetime
import re
from typing import (
    Annotated,
    Final,
)

import msgspec

from eventbus.drivers import QueueStore
from eventbus.queue import failed_jobs
from eventbus_edge.problem import Problem

__all__ = ["FailedJobs", "FailedQuery", "JobDone", "JobId", "done", "failed_answer", "job_id"]


_ID: Final = r"[A-Za-z0-9_-]{1,100}"
_JOB_ID: Final = re.compile(_ID, re.ASCII)
JobId = Annotated[str, msgspec.Meta(pattern=f"^{_ID}$")]
"""An id in a path, as the API's description shows it; `job_id` checks it."""
_MAX_FAILED: Final = 200


class FailedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a list of failed jobs."""

    limit: Annotated[
        int, msgspec.Meta(ge=1, le=_MAX_FAILED, description="The maximum number, oldest first.")
    ] = 50


class JobFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A queued event that failed and is not retried automatically."""

    id: str
    queue: str
    event: Annotated[str, msgspec.Meta(description="Empty for a job that could not be read.")]
    attempts: int
    failed_at: datetime.datetime
    error: Annotated[str, msgspec.Meta(description="The exception's type.")]
    message: str
    traceback: Annotated[str, msgspec.Meta(description="The end of the traceback.")]


class QueueLength(msgspec.Struct, frozen=True, kw_only=True):
    """The number of jobs in a queue."""

    queue: str
    ready: int
    taken: Annotated[int, msgspec.Meta(description="Being worked on, or waiting to be retried.")]
    delayed: int


class FailedJobs(msgspec.Struct, frozen=True, kw_only=True):
    """Queued events that failed, oldest first, and the queues."""

    jobs: list[JobFailure]
    count: Annotated[int, msgspec.Meta(description="The total number of failed jobs.")]
    queues: list[QueueLength]


class JobDone(msgspec.Struct, frozen=True, kw_only=True):
    """The job is no longer among the failed ones."""

    id: str


async def failed_answer(store: QueueStore, limit: int) -> FailedJobs:
    """The oldest failed jobs, at most `limit`, and the queues. Raises ConnectionFailed."""
    return FailedJobs(
        jobs=[
            msgspec.convert(job, JobFailure, from_attributes=True)
            for job in await failed_jobs(store, limit)
        ],
        count=await store.failure_count(),
        queues=[QueueLength(**each._asdict()) for each in await store.stats()],
    )


def job_id(given: str) -> str:
    """Check a job id and return it. Raises Problem."""
    if _JOB_ID.fullmatch(given):
        return given
    raise Problem(
        "bad_request", "the job id is not valid: it has 1 to 100 characters of A-Z a-z 0-9 _ -"
    )


def done(job: str, *, was_there: bool) -> JobDone:
    """The answer for a job. Raises Problem if it did not exist."""
    if not was_there:
        raise Problem("not_found", f"no failed job has the id {job}")
    return JobDone(id=job)
