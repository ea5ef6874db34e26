"""Interfaces of drivers, which carry subjects, headers and bytes, and never see events."""

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
    "Announcement",
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
    "PatternHistoryDriver",
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
    """What a driver can do besides delivering messages to current subscribers."""

    HISTORY = "history"
    PATTERN_HISTORY = "pattern_history"
    PRESENCE = "presence"
    QUEUE = "queue"
    GROUPS = "groups"
    CONSUMERS = "consumers"
    MAINTENANCE = "maintenance"


class Position(NamedTuple):
    """A position in a stream: the offset of a message, and the epoch that identifies the stream.

    When a stream is created again, offsets start over and the epoch changes. A stream may hold one
    channel or all of them, so offsets can be compared only within a channel.
    """

    offset: int
    epoch: str


class Published(NamedTuple):
    """The broker's confirmation that it has stored a message."""

    position: Position
    duplicate: bool
    """The stream already had a message with this id, and dropped this copy."""


class Delivery(NamedTuple):
    """One message as it arrives.

    `position` is None for a volatile message, which no stream stores. `previous` is the offset of
    the message before it that the stream retained on the same subject, 0 when there was none. When
    `previous` is greater than the last offset that a subscriber saw, the subscriber has missed
    messages. `time` is when the stream stored the message, in RFC 3339.
    """

    subject: str
    payload: bytes
    headers: Headers = NO_HEADERS
    position: Position | None = None
    previous: int | None = None
    time: str | None = None


class Page(NamedTuple):
    """Stored messages of one channel, in order, as deliveries on its live subject.

    Or of all channels that a filter matches, in the order of their common stream.
    """

    messages: tuple[Delivery, ...]
    position: Position
    """The end of the stream when it was read: later messages have greater offsets."""
    complete: bool
    """Whether nothing stored after the requested offset has been evicted.

    False when this cannot be proved; a client that resumes must learn that messages may be missing.
    """


Handler = Callable[[Delivery], None]
"""Called in the event loop for each message, in order. It must neither block nor raise; an
exception is logged, and the next message is delivered anyway."""


class Subscription(Protocol):
    """A subscription to a subject, until it is closed."""

    @property
    def position(self) -> Position | None:
        """Where this subscription begins: it delivers exactly the stored messages after this.

        None when the driver has no history, or when no stream stores the subject.
        """

    async def aclose(self) -> None:
        """Unsubscribe: the handler is not called after this returns. Closing twice is harmless."""


class Driver(Protocol):
    """Carries messages over one messaging system.

    The subject decides what happens to a message. A driver with HISTORY stores a message on an
    event subject (`Subjects.event(channel)`) before `publish` returns, and delivers it on the
    channel's live subject; a driver without HISTORY only delivers it. A message on any other
    subject goes to the current subscribers of that subject. Having no subscribers is not an error.
    """

    @property
    def name(self) -> str:
        """The driver's name in settings and errors."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the driver can do."""

    @property
    def is_connected(self) -> bool:
        """Whether the driver could send a message now."""

    async def open(self) -> None:
        """Connect and check. Raises ConnectionFailed or StreamMismatch within bounded time."""

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Publish one message. Concurrent calls are pipelined.

        Returns the position of a stored message, None for others. A message whose `Nats-Msg-Id`
        header the stream has seen recently is not stored again. Raises PublishFailed when the
        broker does not confirm it within the driver's timeout, and EncodingError when it is larger
        than the broker accepts.
        """

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Subscribe to a subject or a filter (`*` for one token, `>` for the rest).

        Everything published after this returns is delivered. Raises ConnectionFailed.
        """

    async def aclose(self) -> None:
        """Finish what is in flight, within bounded time, and close. Closing twice is harmless."""


class HistoryDriver(Driver, Protocol):
    """A driver with HISTORY: it can read stored messages."""

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """The first `limit` stored messages of a live subject with an offset above `after`.

        With `after` None, the last `limit` messages; then `complete` is True. Raises
        ConnectionFailed.
        """


class PatternHistoryDriver(HistoryDriver, Protocol):
    """A driver with PATTERN_HISTORY: the stored messages of all channels have one order."""

    async def read_pattern(
        self, subject: str, position: Position, *, limit: int, max_bytes: int
    ) -> Page:
        """All stored messages after a reader's position of the live subjects that a filter matches.

        `complete` is False, and there need not be any messages, when one of them is or may be
        missing, when the position is or may be that of a different stream, and when there are more
        than `limit` messages or `max_bytes`. Raises ConnectionFailed.
        """


@runtime_checkable
class PreparedDriver(Protocol):
    """A driver that can create its streams at the broker in advance."""

    async def prepare(self) -> tuple[str, ...]:
        """Create everything that is missing now; returns the names.

        Otherwise each is created when it is first needed. The broker's user needs permissions for
        that, which services then do not need. Raises a DriverError.
        """


class Announcement(Protocol):
    """A service instance that the broker's own tools list, until this is closed."""

    async def aclose(self) -> None:
        """Remove the instance from the list. Closing twice is harmless."""


@runtime_checkable
class AnnouncingDriver(Protocol):
    """A driver whose broker lists the services that announce themselves."""

    async def announce(
        self,
        name: str,
        id: str,  # noqa: A002 - the instance's
        *,
        version: str,
        description: str,
        metadata: Mapping[str, str],
    ) -> Announcement:
        """List an instance of a service in the broker's tools. Raises ConnectionFailed."""


@runtime_checkable
class CountingDriver(Protocol):
    """A driver with counters."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since the start, by name; the names depend on the driver.

        Common ones: `losses` of the connection, `errors` that the broker's client reported,
        `publish_retries`, `unsent` volatile messages, and `filled`, the missed messages that were
        read from the stream.
        """


@runtime_checkable
class CheckedDriver(Protocol):
    """A driver that can check whether its broker stores messages."""

    async def check(self) -> str:
        """Why messages cannot be stored; empty when they can, or when that is not known.

        Every node calls it every few seconds.
        """


async def check_of(driver: Driver) -> str:
    """The result of `CheckedDriver.check`; empty for a driver without checks."""
    return await driver.check() if isinstance(driver, CheckedDriver) else ""


def counters_of(driver: Driver) -> Mapping[str, int]:
    """A driver's counters; empty for a driver without counters."""
    return driver.counters if isinstance(driver, CountingDriver) else {}


StateHandler = Callable[[str, bytes | None], None]
"""Called in the event loop for each change, in the order of each key's changes."""

OnGap = Callable[[], None]


@runtime_checkable
class GapSubscription(Protocol):
    """A subscription to a filter that reports gaps.

    A subscriber to one subject detects a gap itself, by `Delivery.previous`. A subscriber to a
    filter cannot, since offsets can be compared only within a channel. A driver may also report
    that a history was replaced, before the next message shows it: the subscription's `position` is
    then in the new history.
    """

    on_gap: OnGap | None
    """Called in the event loop when messages may have been missed for good, before the next one is
    delivered. It must not raise. Set it when `subscribe` has returned, before the next await."""


class MaintenanceDriver(HistoryDriver, Protocol):
    """A driver with MAINTENANCE."""

    async def stored(self, pattern: str, limit: int) -> Mapping[str, int]:
        """The number of stored messages per live subject that matches a filter.

        Returns any `limit` of the subjects that have messages. Raises ConnectionFailed.
        """

    async def purge(self, subject: str) -> int:
        """Delete the stored messages of a live subject; returns how many there were.

        Offsets continue. A client that resumes from before a deleted message learns that messages
        are missing: see `Page.complete`. Raises ConnectionFailed.
        """
