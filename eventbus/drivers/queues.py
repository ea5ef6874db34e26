"""What every driver is: it moves subjects, headers and bytes, and never sees an event object."""

from collections.abc import Sequence
from typing import (
    NamedTuple,
    Protocol,
)

from eventbus.drivers.base import (
    Driver,
    Published,
)

__all__ = ["Failure", "QueueDriver", "QueueReader", "QueueStats", "QueueStore", "Taken"]


class Taken(Protocol):
    """A job that a reader has taken; it ends by one of `done`, `retry`, `hand_back` and `fail`.

    One that is not ended and not touched for the lease's time is given to another reader. None of
    the methods raises DriverError: what the broker does not confirm is logged, and comes again.
    """

    @property
    def queue(self) -> str:
        """The queue it was taken from."""

    @property
    def key(self) -> str:
        """A name for it where its payload tells none, unique within the queue's life."""

    @property
    def payload(self) -> bytes:
        """What was pushed."""

    @property
    def attempt(self) -> int:
        """How often it has been taken and not handed back, this time included; from 1."""

    async def done(self) -> None:
        """It has been done."""

    async def retry(self, seconds: float) -> None:
        """Give it to a reader again, after that time."""

    async def hand_back(self) -> None:
        """Give it to a reader again, as if it had not been taken."""

    async def fail(self, failure: "Failure") -> None:
        """Keep it among the failures."""

    async def touch(self) -> bool:
        """It is being worked on: its lease begins again. False where the broker is away."""

    async def is_queued(self) -> bool:
        """Whether nobody has ended it yet. Raises ConnectionFailed."""

    def continues(self, earlier: "Taken") -> None:
        """It is the same job as `earlier`, which is still worked on: it is no try of its own."""


class Failure(NamedTuple):
    """A job that is not tried again by itself."""

    id: str
    """Up to 100 of A-Z a-z 0-9 _ and -. A second failure of this id takes the first one's place."""
    queue: str
    info: str
    """What is known of it, as ASCII; the drivers do not look into it."""
    payload: bytes


class QueueStats(NamedTuple):
    """How many jobs a queue has."""

    queue: str
    ready: int
    taken: int
    """Being worked on, or waiting for their next try."""
    delayed: int


class QueueReader(Protocol):
    """Takes jobs from one queue; one call at a time of each method."""

    async def fetch(self, limit: int) -> Sequence[Taken]:
        """What is ready now, about `limit` at most. Raises ConnectionFailed, StreamMismatch."""

    async def wait(self) -> Taken | None:
        """The next job; None after some seconds without one. Raises as `fetch` does.

        A job that arrives when the call has been cancelled is handed back.
        """

    async def aclose(self) -> None:
        """Take no more. Closing twice is harmless."""


class QueueStore(Protocol):
    """The queues of a driver, and the jobs that failed."""

    @property
    def lease(self) -> float:
        """Seconds after which a job that is not touched is given to another reader.

        Infinite where that never happens.
        """

    async def push(self, queue: str, id: str, payload: bytes, delay: float) -> Published:  # noqa: A002
        """Store a job, to be taken after `delay` seconds; one of the same id is stored once.

        Raises PublishFailed, NotSupported (for a delay), EncodingError, StreamMismatch.
        """

    def reader(self, queue: str) -> QueueReader:
        """A reader of one queue."""

    async def stats(self) -> Sequence[QueueStats]:
        """Each queue that has jobs or readers, by name. Raises ConnectionFailed."""

    async def failures(self, limit: int) -> Sequence[Failure]:
        """The oldest failures, up to `limit`. Raises ConnectionFailed."""

    async def failure(self, id: str) -> Failure | None:  # noqa: A002
        """The failure of that id, or None. Raises ConnectionFailed."""

    async def failure_count(self) -> int:
        """How many failures are kept. Raises ConnectionFailed."""

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Push a failed job again and drop the failure; False for an unknown id."""

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Drop a failure; False for an unknown id."""

    async def flush(self) -> int:
        """Drop all failures; how many there were."""


class QueueDriver(Driver, Protocol):
    """A driver with QUEUE: it stores jobs until a worker has done them."""

    @property
    def queues(self) -> QueueStore:
        """Its queues. Raises ConnectionFailed when the driver is not open."""
