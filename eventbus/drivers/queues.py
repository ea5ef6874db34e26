"""What a driver with queues offers: stored jobs, each leased to one worker at a time."""

from collections.abc import Sequence
from typing import (
    NamedTuple,
    Protocol,
)

from eventbus.drivers.base import (
    Driver,
    Published,
)

__all__ = ["Failure", "LeasedJob", "QueueDriver", "QueueReader", "QueueStats", "QueueStore"]


class LeasedJob(Protocol):
    """A job that a reader has leased; `done`, `retry`, `hand_back` or `fail` ends the lease.

    A lease that is neither ended nor extended in time expires, and another reader gets the job.
    None of the methods raises DriverError: what the broker does not confirm is logged, and the job
    is delivered again.
    """

    @property
    def queue(self) -> str:
        """The queue that holds the job."""

    @property
    def key(self) -> str:
        """Identifies the job where its payload cannot; unique within the queue's life."""

    @property
    def payload(self) -> bytes:
        """The bytes that were pushed."""

    @property
    def attempt(self) -> int:
        """The delivery attempt, starting at 1; deliveries that were handed back do not count."""

    async def done(self) -> None:
        """Remove the job: it succeeded."""

    async def retry(self, seconds: float) -> None:
        """Deliver the job again after that time."""

    async def hand_back(self) -> None:
        """Deliver the job again, as if it had not been leased."""

    async def fail(self, failure: "Failure") -> None:
        """Move the job to the failures."""

    async def touch(self) -> bool:
        """Extend the lease. False when the broker cannot be reached."""

    async def is_queued(self) -> bool:
        """Whether the job is still in its queue. Raises ConnectionFailed."""

    def counts_as(self, attempt: int) -> None:
        """Count this delivery as that attempt: some deliveries before it were none."""


class Failure(NamedTuple):
    """A job that is not retried automatically."""

    id: str
    """Up to 100 of A-Z a-z 0-9 _ and -. A second failure with the same id replaces the first."""
    queue: str
    info: str
    """Details of the failure, in ASCII; drivers do not interpret them."""
    payload: bytes


class QueueStats(NamedTuple):
    """How many jobs a queue has."""

    queue: str
    ready: int
    taken: int
    """Running, or waiting for their next attempt."""
    delayed: int


class QueueReader(Protocol):
    """Leases jobs of one queue. Each method supports one call at a time."""

    async def fetch(self, limit: int) -> Sequence[LeasedJob]:
        """Lease up to about `limit` jobs that are ready. Raises ConnectionFailed, StreamMismatch.

        Does not wait for jobs.
        """

    async def wait(self) -> LeasedJob | None:
        """Lease the next job; None after some seconds without one. Raises like `fetch`.

        A job that arrives after the call was cancelled is handed back.
        """

    async def aclose(self) -> None:
        """Stop leasing jobs. Closing twice is harmless."""


class QueueStore(Protocol):
    """The queues of a driver, and the jobs that failed."""

    @property
    def lease(self) -> float:
        """Seconds until a lease that nobody extends expires; infinite where leases never do."""

    async def push(self, queue: str, id: str, payload: bytes, delay: float) -> Published:  # noqa: A002
        """Store a job that becomes ready after `delay` seconds; a known id is not stored again.

        Raises PublishFailed, NotSupported (for a delay), EncodingError, StreamMismatch.
        """

    def reader(self, queue: str) -> QueueReader:
        """A reader of one queue."""

    async def stats(self) -> Sequence[QueueStats]:
        """Every queue with jobs or readers, by name. Raises ConnectionFailed."""

    async def failures(self, limit: int) -> Sequence[Failure]:
        """The oldest failures, up to `limit`. Raises ConnectionFailed."""

    async def failure(self, id: str) -> Failure | None:  # noqa: A002
        """The failure with that id, or None. Raises ConnectionFailed."""

    async def failure_count(self) -> int:
        """The number of failures. Raises ConnectionFailed."""

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Push a failed job again and delete the failure; False for an unknown id."""

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Delete a failure; False for an unknown id."""

    async def flush(self) -> int:
        """Delete all failures; returns how many there were."""


class QueueDriver(Driver, Protocol):
    """A driver with QUEUE: it stores jobs until a worker has done them."""

    @property
    def queues(self) -> QueueStore:
        """The driver's queues. Raises ConnectionFailed when the driver is not open."""
