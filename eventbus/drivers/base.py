"""What every driver is: it moves subjects, headers and bytes, and never sees an event object."""

import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, runtime_checkable

__all__ = [
    "NO_HEADERS",
    "Announced",
    "AnnouncingDriver",
    "Capability",
    "CheckedDriver",
    "CountingDriver",
    "Delivery",
    "Driver",
    "Failure",
    "Handler",
    "Headers",
    "HistoryDriver",
    "Page",
    "Position",
    "PreparedDriver",
    "Published",
    "QueueDriver",
    "QueueReader",
    "QueueStats",
    "QueueStore",
    "StateDriver",
    "StateHandler",
    "StateStore",
    "Subscription",
    "Taken",
    "check_of",
    "counters_of",
]

Headers = Mapping[str, str]
NO_HEADERS: Final[Headers] = MappingProxyType({})


class Capability(enum.Enum):
    """What a driver can do beside carrying messages to those who listen at the moment."""

    HISTORY = "history"
    PRESENCE = "presence"
    QUEUE = "queue"
    GROUPS = "groups"
    CONSUMERS = "consumers"
    MAINTENANCE = "maintenance"


class Position(NamedTuple):
    """A place in a stream: the offset of a message, and the epoch that says which stream it is.

    Offsets start again when a stream is made anew; then its epoch is another. A stream may hold one
    channel or all of them: offsets compare within a channel.
    """

    offset: int
    epoch: str


class Published(NamedTuple):
    """What is known of a message that the broker has stored."""

    position: Position
    duplicate: bool
    """The stream held a message of this id already and dropped this copy."""


class Delivery(NamedTuple):
    """One message as it arrives.

    `position` is None for a message that no stream holds (a volatile one). `previous` is the offset
    of the message that the stream retained before it on the same subject (0 when there was none):
    when it is greater than the last offset that a listener saw, the listener has missed messages.
    `time` is when the stream stored the message, RFC 3339.
    """

    subject: str
    payload: bytes
    headers: Headers = NO_HEADERS
    position: Position | None = None
    previous: int | None = None
    time: str | None = None


class Page(NamedTuple):
    """Stored messages of one channel, in order, as deliveries on its live subject."""

    messages: tuple[Delivery, ...]
    position: Position
    """Where the stream stood when it was read: a later message has a greater offset."""
    complete: bool
    """Nothing stored after the asked offset has been evicted. False when it cannot be
    proved: whoever resumes must then be told that messages may be missing."""


Handler = Callable[[Delivery], None]
"""Called in the event loop for each message, in order. It must neither block nor raise; what it
raises is logged, and the next message is delivered all the same."""


class Subscription(Protocol):
    """Interest in a subject, until it is closed."""

    @property
    def position(self) -> Position | None:
        """Where this subscription begins: exactly the stored messages after it are delivered.

        None where the driver keeps no history, or the subject is not one of a stream.
        """

    async def aclose(self) -> None:
        """Stop: the handler is not called once this returns. Closing twice is harmless."""


class Driver(Protocol):
    """Carries messages over one system.

    The subject decides what happens to a message. One on an event subject
    (`Subjects.event(channel)`) is stored before `publish` returns, where the driver has HISTORY,
    and then delivered on the channel's live subject; without HISTORY it is delivered at once.
    One on any other subject goes to whoever listens to that subject at the moment. That nobody
    listens is no error.
    """

    @property
    def name(self) -> str:
        """The name by which settings choose the driver, and errors speak of it."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the driver can do."""

    @property
    def is_connected(self) -> bool:
        """Whether a message could be carried at this moment."""

    async def open(self) -> None:
        """Connect and check. Raises ConnectionFailed or StreamMismatch, in bounded time."""

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Carry one message; safe to call concurrently, in which case calls are pipelined.

        Returns its place in the stream for a stored message, None for others. A message with a
        header `Nats-Msg-Id` that the stream has seen lately is not stored again. Raises
        PublishFailed when the broker has not confirmed it within the driver's time, EncodingError
        when it is larger than the broker takes.
        """

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Listen to a subject or a filter (`*` for one token, `>` for the rest).

        When it returns, whatever is published from then on is delivered. Raises ConnectionFailed.
        """

    async def aclose(self) -> None:
        """Let what is in flight finish, in bounded time, and let go. Closing twice is harmless."""


class HistoryDriver(Driver, Protocol):
    """A driver with HISTORY: it can read what it has stored."""

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """The stored messages of a live subject: the first `limit` whose offset is above `after`.

        With `after` None, the last `limit`; then `complete` is True. Raises ConnectionFailed.
        """


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


class StateStore(Protocol):
    """Small entries that every process of the cluster sees.

    Keys are dot-separated tokens as channels are, and may have 300 bytes. How long entries last is
    the driver's to say: see `StateDriver.state` and `StateDriver.durable_state`.
    Writes of one key must be made one after another; those of others may be concurrent.
    """

    @property
    def losses(self) -> int:
        """How often, since the start, changes may have passed untold or entries may be lost.

        Whoever watches looks at it from time to time, and when it has risen reads `entries` again.
        """

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry; it ends after `ttl_s` seconds (at least 1) unless it is set again.

        Raises PublishFailed, and InvalidPattern for what is no key.
        """

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value; whether it has this one now.

        Of several that claim one key at once, one succeeds: with a value of its own, each can hold
        a lease so, and prolong it by claiming it again. Raises as `put` and `entries` do.
        """

    async def delete(self, key: str) -> None:
        """End an entry; one that is not there is no error. Raises as `put` does."""

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """The entries whose keys match a filter, as of now. Raises ConnectionFailed."""

    async def watch(self, pattern: str, handler: "StateHandler") -> Subscription:
        """Be told of each change from now on: key and value, None where an entry has ended.

        An entry whose time is over is told within a second; an end may be told twice. Changes that
        pass while there is no connection are not told: see `losses`. Raises ConnectionFailed.
        """


class StateDriver(Driver, Protocol):
    """A driver with PRESENCE: it keeps what nodes say of themselves."""

    @property
    def state(self) -> StateStore:
        """What nodes can report again, such as presence: it may be lost with the broker's memory.

        Raises ConnectionFailed when the driver is not open.
        """

    @property
    def durable_state(self) -> StateStore:
        """What must outlive a restart of all nodes and of the broker, such as revocations.

        It is as durable as anything that the broker keeps. It may be the same store as `state`
        where that is so. Raises ConnectionFailed when the driver is not open.
        """


@runtime_checkable
class PreparedDriver(Protocol):
    """A driver that makes things at the broker before it can use them."""

    async def prepare(self) -> tuple[str, ...]:
        """Make all of them now, where they are not there yet; their names.

        Otherwise each is made when it is first needed, by who needs it: who prepares may have
        rights at the broker that services need not have. Raises a DriverError.
        """


class Announced(Protocol):
    """A service instance that the broker's own tools can see, until it is closed."""

    async def aclose(self) -> None:
        """Be seen no more. Closing twice is harmless."""


@runtime_checkable
class AnnouncingDriver(Protocol):
    """A driver whose broker knows services, and lists those that announce themselves."""

    async def announce(
        self,
        name: str,
        id: str,  # noqa: A002 - the instance's
        *,
        version: str,
        description: str,
        metadata: Mapping[str, str],
    ) -> Announced:
        """Let the broker's tools see an instance of a service. Raises ConnectionFailed."""


@runtime_checkable
class CountingDriver(Protocol):
    """A driver that counts what befalls it."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since the start, by what they count; which there are is the driver's.

        Common ones: `losses` of the connection, `errors` that the broker's client reported,
        `publish_retries`, and messages `filled` in that had been missed.
        """


@runtime_checkable
class CheckedDriver(Protocol):
    """A driver that can say whether its broker stores messages."""

    async def check(self) -> str:
        """What keeps messages from being stored, in words; empty where nothing does.

        Empty, too, where that cannot be known. Called every few seconds by each node.
        """


async def check_of(driver: Driver) -> str:
    """What a driver's broker lacks; empty for a driver that cannot say it."""
    return await driver.check() if isinstance(driver, CheckedDriver) else ""


def counters_of(driver: Driver) -> Mapping[str, int]:
    """What a driver counts; nothing for one that does not count."""
    return driver.counters if isinstance(driver, CountingDriver) else {}


StateHandler = Callable[[str, bytes | None], None]
"""Called in the event loop for each change, in the order of each key's changes."""
