"""What a driver offers to subscribers that share messages: groups and durable consumers."""

import logging
from collections.abc import (
    Callable,
    Sequence,
)
from typing import (
    NamedTuple,
    Protocol,
)

from eventbus.attempts import RateLimitedLog
from eventbus.drivers.base import (
    Delivery,
    Driver,
    Handler,
    Subscription,
)

__all__ = [
    "Consumer",
    "ConsumerDriver",
    "ConsumerSettings",
    "EvictionLog",
    "GroupDriver",
    "UnackedDelivery",
]

_log = logging.getLogger(__name__)


class GroupDriver(Driver, Protocol):
    """A driver with GROUPS: subscribers can share the messages of a subject."""

    async def subscribe_group(self, subject: str, group: str, handler: Handler) -> Subscription:
        """Subscribe like `subscribe`, as a member of `group`: each message goes to one member.

        Subscribers outside the group are not affected. Raises ConnectionFailed.
        """


class ConsumerSettings(NamedTuple):
    """How a consumer delivers messages."""

    ack_wait: float = 30.0
    """Seconds until an unanswered message is delivered again, to any member; at least the time of
    the member that has it."""
    from_start: bool = False
    """Whether a new consumer begins with the stored messages, or only with later ones."""


class UnackedDelivery(Protocol):
    """A message that a consumer has delivered; it expects exactly one answer."""

    @property
    def delivery(self) -> Delivery:
        """The message, as on its live subject; its `previous` is not known."""

    @property
    def attempt(self) -> int:
        """The delivery attempt, starting at 1."""

    async def ack(self) -> None:
        """Acknowledge the message: it is not delivered again. Raises DriverError."""

    async def retry(self, seconds: float = 0.0) -> None:
        """Deliver the message again after so many seconds. Raises DriverError."""

    async def discard(self) -> None:
        """Reject the message for good: it is not delivered again. Raises DriverError."""


class Consumer(Protocol):
    """One member of a durable consumer, whose members share one position in the stream."""

    @property
    def evicted(self) -> int:
        """How many times messages of a channel were evicted before they were handled."""

    async def take(self, limit: int) -> Sequence[UnackedDelivery]:
        """Wait for messages; returns up to `limit` of those available, in order.

        Supports one caller at a time. It waits while the connection is lost, and creates a consumer
        or stream again that was removed. Raises ConnectionFailed once this is closed.
        """

    async def aclose(self) -> None:
        """Stop; messages that were fetched but not returned by `take` go to other members."""


class ConsumerDriver(Driver, Protocol):
    """A driver with CONSUMERS: it stores, under a name, how far messages were processed."""

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> Consumer:
        """Join the consumer `name` on the stored messages of a live subject or filter.

        The broker keeps the consumer's position while it has no members. Delivery is at least once:
        a message goes to one member at a time, until one has answered it. `name` consists of
        letters, digits, _ and -. An existing consumer adopts `subject`. The longest `ack_wait` of
        its members applies. Raises ConnectionFailed, and StreamMismatch when an existing consumer
        of that name cannot be used.
        """


class EvictionLog:
    """Counts and logs the messages that one consumer lost to eviction."""

    def __init__(self, consumer: str, on_loss: Callable[[], object] = lambda: None) -> None:
        """`on_loss` is called for each loss."""
        self.count = 0
        """How many times messages of a channel were found to be gone."""
        self._consumer = consumer
        self._on_loss = on_loss
        self._log = RateLimitedLog(_log)

    def report(self, subject: str, what: str) -> None:
        """Report lost messages of a live subject or filter; `what` says which, and why."""
        self.count += 1
        self._on_loss()
        self._log.log(
            logging.ERROR,
            "consumer %s: messages of %s %s; see BROADCAST_HISTORY_MESSAGES, _SECONDS and _BYTES",
            self._consumer,
            subject,
            what,
        )
