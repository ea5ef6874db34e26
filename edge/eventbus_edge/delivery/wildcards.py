"""Subscriptions to all channels of a pattern: one filter on the bus per pattern in use.

A connection receives each message once: through the channel itself if it is subscribed to that,
otherwise through the first of its patterns that matches.
"""

import logging
from collections.abc import Callable

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.drivers.base import (
    Delivery,
    Driver,
)
from eventbus.errors import InvalidChannel
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.interest import Interest
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    SubscribedPattern,
)

__all__ = ["Wildcards"]


_log = logging.getLogger(__name__)

ToMessage = Callable[[str, Delivery], ChannelMessage | None]


class Wildcards:
    """The subscribers of patterns on this node. Patterns are named by their filters."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        hub: Hub,
        to_message: ToMessage,
        *,
        on_sent: Callable[[int], None],
        on_gap: Callable[[], None],
        linger_s: float,
    ) -> None:
        """`to_message` checks a delivery, and returns None for one that is not a message.

        `on_sent` gets the number of recipients of each message.
        """
        self._subjects = subjects
        self._hub = hub
        self._to_message = to_message
        self._on_sent = on_sent
        self._on_gap = on_gap
        self._subscribers: dict[str, dict[str, Outbox]] = {}
        self._patterns: dict[str, dict[str, Pattern]] = {}
        self._muted: set[tuple[str, str]] = set()
        self._interest = Interest(
            driver,
            subjects,
            self._on_delivery,
            linger_s,
            on_filter_gap=self._notify_gap,
            subject_of=lambda text: subjects.live_filter(Pattern(text)),
        )

    def __len__(self) -> int:
        return len(self._interest)

    async def join(self, pattern: Pattern, outbox: Outbox) -> None:
        """Subscribe a connection to a pattern that it has not joined. Raises a DriverError."""
        await self._interest.acquire(pattern.filter)
        self._subscribers.setdefault(pattern.filter, {})[outbox.connection_id] = outbox
        self._patterns.setdefault(outbox.connection_id, {})[pattern.filter] = pattern

    def leave(self, pattern: Pattern, connection_id: str) -> None:
        """Unsubscribe a connection from a pattern."""
        for table, key, inner in (
            (self._subscribers, pattern.filter, connection_id),
            (self._patterns, connection_id, pattern.filter),
        ):
            entry = table[key]
            del entry[inner]
            if not entry:
                del table[key]
        self._interest.release(pattern.filter)

    def mute(self, channel: str, connection_id: str) -> None:
        """Deliver nothing of a channel to a connection that is joining it: its backlog keeps it."""
        self._muted.add((channel, connection_id))

    def unmute(self, channel: str, connection_id: str) -> None:
        """The join has succeeded or failed."""
        self._muted.discard((channel, connection_id))

    def _on_delivery(self, filter_: str, delivery: Delivery) -> None:
        subscribers = self._subscribers.get(filter_)
        if not subscribers:
            return
        try:
            channel = self._subjects.channel_of(delivery.subject)
        except (
            InvalidChannel
        ):  # anyone may publish to any subject; clients cannot join such a channel
            return
        message = self._to_message(channel, delivery)
        if message is not None:
            self._on_sent(self._deliver(filter_, message, subscribers))

    def _notify_gap(self, filter_: str) -> None:
        """Messages may be lost for good: notify each client, with the pattern that it sent."""
        self._on_gap()
        _log.warning("messages of the pattern %s may have been lost", filter_)
        for connection_id, outbox in self._subscribers.get(filter_, {}).items():
            pattern = self._patterns[connection_id][filter_]
            notice = SubscribedPattern(pattern.text, None, recovered=False)
            self._hub.push(outbox, outbox.format.reply(notice))

    def _deliver(
        self, filter_: str, message: ChannelMessage, subscribers: dict[str, Outbox]
    ) -> int:
        to = [
            outbox
            for connection_id, outbox in subscribers.items()
            if connection_id != message.exclude
            and self._is_due(filter_, message.channel, connection_id)
        ]
        return self._hub.fan_out(to, lambda wire: wire.message(message))

    def _is_due(self, filter_: str, channel: str, connection_id: str) -> bool:
        if self._hub.hears(channel, connection_id) or (channel, connection_id) in self._muted:
            return False
        patterns = self._patterns[connection_id]
        if len(patterns) == 1:
            return True
        first = next(name for name, p in patterns.items() if p.match(channel) is not None)
        return first == filter_

    async def aclose(self) -> None:
        """End all subscriptions on the bus."""
        await self._interest.aclose()
