"""What drivers may offer to listeners that share messages: groups, and durable consumers."""

import logging
from collections.abc import (
    Callable,
    Sequence,
)
from typing import (
    NamedTuple,
    Protocol,
)

from eventbus.drivers.base import (
    Delivery,
    Driver,
    Handler,
    Subscription,
)
from eventbus.ratelimit import RateLimitedLog

__all__ = ["Consumer", "ConsumerDriver", "ConsumerSettings", "Evicted", "GroupDriver", "Held"]


class GroupDriver(Driver, Protocol):
    """A driver with GROUPS: listeners can share a subject's messages among them."""

    async def subscribe_group(self, subject: str, group: str, handler: Handler) -> Subscription:
        """Listen as `subscribe` does, as a member of `group`: each message goes to one of them.

        Whoever is no member of the group is not concerned by it. Raises ConnectionFailed.
        """


class ConsumerSettings(NamedTuple):
    """How a consumer hands messages out."""

    ack_wait: float = 30.0
    """Seconds in which a message is answered for; then it is handed out again, to any member."""
    from_start: bool = False
    """Where a consumer that is new begins: with what is stored already, or with what comes."""


class Held(Protocol):
    """A message that a consumer has handed out, and that wants one answer."""

    @property
    def delivery(self) -> Delivery:
        """The message, as one on its live subject; its `previous` is not known."""

    @property
    def attempt(self) -> int:
        """The how manieth time it is handed out, from 1."""

    async def ack(self) -> None:
        """It is done, and never handed out again. Raises DriverError."""

    async def retry(self, seconds: float = 0.0) -> None:
        """Hand it out again after so many seconds. Raises DriverError."""

    async def discard(self) -> None:
        """It cannot be done, and is never handed out again. Raises DriverError."""


class Consumer(Protocol):
    """One member of those that take messages from the same place in the stream."""

    @property
    def evicted(self) -> int:
        """How often messages of a channel were found to be gone before they were handled."""

    async def take(self, limit: int) -> Sequence[Held]:
        """Wait for a message; gives up to `limit` of those that are there, in order.

        For one caller at a time. It waits out a lost connection, and a consumer or a stream that
        was removed is made anew. Raises ConnectionFailed once this is closed.
        """

    async def aclose(self) -> None:
        """Take no more; what was fetched and not handed out goes to others at once."""


class ConsumerDriver(Driver, Protocol):
    """A driver with CONSUMERS: it keeps by a name how far the stored messages were processed."""

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> Consumer:
        """Join the consumer `name` over the stored messages of a live subject or filter.

        The broker keeps its place while no member is there. A message is handed out to one member,
        and again until it is answered for: at least once. `name` has letters, digits, _ and -.
        A consumer that exists takes on `subject` and `ack_wait`. Raises ConnectionFailed, and
        StreamMismatch where one of that name exists that cannot be used.
        """


_log = logging.getLogger(__name__)


class Evicted:
    """Counts and logs such losses of one consumer; a log line at most every ten seconds."""

    def __init__(self, consumer: str, on_found: Callable[[], object] = lambda: None) -> None:
        """`on_found` is called for each loss."""
        self.count = 0
        """How often messages of a channel were found to be gone."""
        self._consumer = consumer
        self._on_found = on_found
        self._log = RateLimitedLog(_log)

    def found(self, subject: str, what: str) -> None:
        """Messages of a live subject or filter are gone, or may be: `what` says which and why."""
        self.count += 1
        self._on_found()
        self._log.log(
            logging.ERROR,
            "consumer %s: messages of %s %s; see BROADCAST_HISTORY_MESSAGES, _SECONDS and _BYTES",
            self._consumer,
            subject,
            what,
        )
