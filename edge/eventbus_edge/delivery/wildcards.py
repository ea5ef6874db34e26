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
from eventbus.drivers import Capability, Delivery, Driver, Position
from eventbus.errors import InvalidChannel
from eventbus_edge.delivery.hub import (
    Backlog,
    Hub,
)
from eventbus_edge.delivery.interest import Interest
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.protocols import ChannelMessage, SubscribedPattern

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
        self._muted: dict[tuple[str, str], Backlog] = {}
        """Of connections that join a channel, by the channel."""
        self._held: dict[tuple[str, str], Backlog] = {}
        """Of connections that catch up with a pattern, by its filter."""
        self._ahead: dict[tuple[str, str], Position] = {}
        """How far connections have the messages of a filter from the history, if that is further
        than the bus has delivered."""
        self._has_positions = Capability.PATTERN_HISTORY in driver.capabilities
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

    async def join(self, pattern: Pattern, outbox: Outbox) -> Position | None:
        """Subscribe a connection to a pattern that it has not joined.

        Returns the position after which its messages follow, for callers that act before their next
        await; None if the channels of the bus have no common order. Raises a DriverError.
        """
        position = await self._interest.acquire(pattern.filter)
        self._subscribers.setdefault(pattern.filter, {})[outbox.connection_id] = outbox
        self._patterns.setdefault(outbox.connection_id, {})[pattern.filter] = pattern
        return position if self._has_positions else None

    def position(self, pattern: Pattern) -> Position | None:
        """The current position of a pattern with subscribers."""
        return self._interest.position(pattern.filter) if self._has_positions else None

    def has_nothing_after(self, pattern: Pattern, position: Position) -> bool:
        """Whether a pattern with subscribers certainly had no message after a position."""
        return self._has_positions and self._interest.has_nothing_after(pattern.filter, position)

    def hold(self, pattern: Pattern, connection_id: str, limit: int) -> Backlog:
        """Keep a pattern's messages for a connection that catches up, up to `limit` bytes."""
        held = self._held[pattern.filter, connection_id] = Backlog(pattern.filter, limit)
        return held

    def follow(self, pattern: Pattern, connection_id: str, ahead: Position | None) -> None:
        """Deliver live messages to a connection that has caught up.

        `ahead` is the last position that it has from the history, if the bus has not delivered up
        to there yet: it gets no message up to there.
        """
        del self._held[pattern.filter, connection_id]
        if ahead is not None:
            self._ahead[pattern.filter, connection_id] = ahead

    def leave(self, pattern: Pattern, connection_id: str) -> None:
        """Unsubscribe a connection from a pattern. Leaving again is harmless."""
        if pattern.filter not in self._patterns.get(connection_id, ()):
            return
        self._held.pop((pattern.filter, connection_id), None)
        self._ahead.pop((pattern.filter, connection_id), None)
        for table, key, inner in (
            (self._subscribers, pattern.filter, connection_id),
            (self._patterns, connection_id, pattern.filter),
        ):
            entry = table[key]
            del entry[inner]
            if not entry:
                del table[key]
        self._interest.release(pattern.filter)

    def mute(self, channel: str, connection_id: str, limit: int) -> None:
        """Keep the messages of a channel for a connection that is joining it, up to `limit` bytes.

        Once it has joined, it gets them as messages of the channel.
        """
        self._muted[channel, connection_id] = Backlog(channel, limit)

    def unmute(self, channel: str, connection_id: str, *, has_joined: bool) -> None:
        """Deliver what was kept, unless the connection has joined the channel."""
        backlog = self._muted.pop((channel, connection_id))
        pattern = self._first_match(channel, connection_id)
        if has_joined or pattern is None:
            return
        outbox = self._subscribers[pattern.filter][connection_id]
        if backlog.overflowed:
            self._on_gap()
            _log.warning("messages of %s have been lost for a subscriber of a pattern", channel)
            self._notify(pattern, outbox)
        for message in backlog.messages:
            assert isinstance(message, ChannelMessage), "nothing else is kept"
            self._hub.push(outbox, outbox.format.message(message))
            outbox.format.count(1)
            self._on_sent(1)

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
            self._notify(self._patterns[connection_id][filter_], outbox)

    def _notify(self, pattern: Pattern, outbox: Outbox) -> None:
        position = self.position(pattern)
        ahead = self._ahead.get((pattern.filter, outbox.connection_id))
        if position and ahead and ahead.epoch == position.epoch and ahead.offset > position.offset:
            position = ahead
        notice = SubscribedPattern(pattern.text, None, position, recovered=False)
        held = self._held.get((pattern.filter, outbox.connection_id)) if self._held else None
        if held is None:
            self._hub.push(outbox, outbox.format.reply(notice))
        else:
            held.note_gap(notice)

    def _deliver(
        self, filter_: str, message: ChannelMessage, subscribers: dict[str, Outbox]
    ) -> int:
        to = []
        for connection_id, outbox in subscribers.items():
            if connection_id == message.exclude or not self._is_due(
                filter_, message.channel, connection_id
            ):
                continue
            kept = self._muted.get((message.channel, connection_id)) if self._muted else None
            if kept is None and self._held:
                kept = self._held.get((filter_, connection_id))
            if kept is not None:
                kept.add(message)
            elif not self._ahead or not self._has_received(filter_, message, connection_id):
                to.append(outbox)
        return self._hub.send(message, to)

    def _has_received(self, filter_: str, message: ChannelMessage, connection_id: str) -> bool:
        """Whether a connection has a message from the history."""
        ahead, position = self._ahead.get((filter_, connection_id)), message.position
        if ahead is None or position is None:
            return False
        if position.epoch == ahead.epoch and position.offset < ahead.offset:
            return True
        del self._ahead[filter_, connection_id]
        return position == ahead

    def _is_due(self, filter_: str, channel: str, connection_id: str) -> bool:
        if self._hub.is_subscribed(channel, connection_id):
            return False
        if len(self._patterns[connection_id]) == 1:
            return True
        first = self._first_match(channel, connection_id)
        return first is not None and first.filter == filter_

    def _first_match(self, channel: str, connection_id: str) -> Pattern | None:
        """The pattern of a connection through which it gets a channel's messages."""
        for pattern in self._patterns.get(connection_id, {}).values():
            if pattern.match(channel) is not None:
                return pattern
        return None

    async def aclose(self) -> None:
        """End all subscriptions on the bus."""
        await self._interest.aclose()
