"""What every driver is: it moves subjects, headers and bytes, and never sees an event object."""

import enum
from collections.abc import (
    Callable,
    Mapping,
)
from types import MappingProxyType
from typing import (
    Final,
    NamedTuple,
    Protocol,
    runtime_checkable,
)

__all__ = [
    "NO_HEADERS",
    "Announced",
    "AnnouncingDriver",
    "Capability",
    "CheckedDriver",
    "CountingDriver",
    "Delivery",
    "Driver",
    "GapSubscription",
    "Handler",
    "Headers",
    "HistoryDriver",
    "MaintenanceDriver",
    "OnGap",
    "Page",
    "Position",
    "PreparedDriver",
    "Published",
    "StateHandler",
    "Subscription",
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

OnGap = Callable[[], None]


@runtime_checkable
class GapSubscription(Protocol):
    """A subscription to a filter that tells of gaps.

    A listener to one subject sees a gap itself, by `Delivery.previous`. For a filter it cannot,
    since offsets compare within a channel. A driver may also report that the history of one subject
    was replaced, before the next message shows it: the subscription's `position` is then in the new
    one.
    """

    on_gap: OnGap | None
    """Called in the event loop where messages may have been missed that are not read again, before
    whatever follows them is delivered. It must not raise. To be set when `subscribe` has returned,
    before the next await."""


class MaintenanceDriver(HistoryDriver, Protocol):
    """A driver with MAINTENANCE."""

    async def stored(self, pattern: str, limit: int) -> Mapping[str, int]:
        """How many messages are stored of each live subject that matches a filter.

        Up to `limit` subjects, whichever; those without messages are left out. Raises
        ConnectionFailed.
        """

    async def purge(self, subject: str) -> int:
        """Remove what is stored of a live subject; how many messages it was.

        Offsets go on from where they were, and whoever resumes from before a message that was
        removed is told so: see `Page.complete`. Raises ConnectionFailed.
        """
