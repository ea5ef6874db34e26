"""The messages of a node's channels: from the bus to its clients, and from them to the bus."""

import datetime
import functools
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from eventbus import tracing
from eventbus.bus import EventBus
from eventbus.channels import Pattern
from eventbus.drivers import Delivery, Position
from eventbus.errors import (
    EventBusError,
    InvalidPayload,
)
from eventbus.events import read_delivery
from eventbus.messages import HEADER_EXCEPT
from eventbus_edge.access import ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.bus_health import fault_for_client
from eventbus_edge.delivery.history import (
    MAX_PAGE_BYTES,
    CaughtUp,
    History,
    HistoryRead,
    OnRead,
    Stored,
    ignore,
)
from eventbus_edge.delivery.hub import (
    Backlog,
    Hub,
)
from eventbus_edge.delivery.interest import Interest
from eventbus_edge.delivery.quarantine import Quarantine
from eventbus_edge.delivery.wildcards import Wildcards
from eventbus_edge.metrics import Metrics
from eventbus_edge.protocols import (
    ChannelMessage,
    Subscribe,
    Subscribed,
    SubscribePattern,
    Whisper,
    encode_envelope,
)

__all__ = ["Traffic", "to_message"]


_log = logging.getLogger(__name__)

_new: Final = tuple.__new__
"""Makes a NamedTuple in half the time of its own constructor, which is a function of Python."""


class Traffic:
    """Subscribes to the channels in use; checks each message once before the hub delivers it."""

    def __init__(
        self,
        bus: EventBus,
        settings: EdgeSettings,
        hub: Hub,
        metrics: Metrics,
        *,
        quarantine: Quarantine,
        rules: ChannelRules,
    ) -> None:
        """`bus` is opened and closed by the caller."""
        self._bus = bus
        self._hub = hub
        self._metrics = metrics
        self._tally = metrics.tally
        self._quarantine = quarantine
        self._rules = rules
        self._on_message: Callable[[str], None] | None = None
        self._traces = tracing.is_loaded()
        self._max_backlog = settings.max_unsent_bytes
        self._interest = Interest(
            bus.driver,
            bus.subjects,
            self.take,
            settings.unsubscribe_after,
            on_gap=self._on_gap,
        )
        self.wildcards = Wildcards(
            bus.driver,
            bus.subjects,
            hub,
            self._matched_message,
            on_sent=metrics.tally.count_delivered,
            on_gap=metrics.gaps.inc,
            linger_s=settings.unsubscribe_after,
        )
        self._history = History(
            bus.driver,
            bus.subjects,
            _stored_message,
            lambda channel: rules.find(channel).most_history,
            self._interest.position,
        )

    @property
    def channels(self) -> int:
        """The number of channels with a subscription on the bus."""
        return len(self._interest)

    async def aclose(self) -> None:
        """End all subscriptions on the bus."""
        await self._interest.aclose()
        await self.wildcards.aclose()

    # Requests of connections

    async def acquire(self, channel: str) -> Position | None:
        """Subscribe to a channel on the bus; see Interest.acquire."""
        if self.acquire_active(channel):
            return self._interest.position(channel)
        begun = time.perf_counter()
        try:
            position = await self._interest.acquire(channel)
        finally:
            self._tally.joins.observe(time.perf_counter() - begun)
        self._metrics.subscriptions.inc()
        return position

    def acquire_active(self, channel: str) -> bool:
        """Subscribe to a channel that the node has already; False for any other."""
        if not self._interest.acquire_active(channel):
            return False
        self._tally.joins.observe(0.0)
        self._metrics.subscriptions.inc()
        return True

    def release(self, channel: str) -> None:
        """Undo one `acquire`."""
        self._interest.release(channel)
        self._metrics.subscriptions.dec()

    def position(self, channel: str) -> Position | None:
        """The current position of a subscribed channel."""
        return self._interest.position(channel)

    def hold(self, channel: str) -> Backlog:
        """Buffer the live messages of a channel for a client that catches up; see Hub.release."""
        return self._hub.hold(channel, self._max_backlog)

    async def catch_up(
        self,
        command: Subscribe,
        rule: Rule,
        position: Position | None,
        on_read: OnRead = ignore,
    ) -> CaughtUp:
        """What a new subscription gets first; see History.catch_up."""
        most = rule.most_history
        if most is not None:
            command = command._replace(history=min(command.history, most))
        if command.resume is None and not command.history and not rule.retain:
            return CaughtUp(position, Stored(), None, 0)
        last = command._replace(resume=None, history=max(command.history, int(rule.retain)))
        if command.resume is None:
            return await self._history.catch_up(last, position, on_read=on_read)
        caught_up = await self._history.catch_up(command, position, most=most, on_read=on_read)
        resume, channel = command.resume, command.channel
        if (
            caught_up.recovered is False
            and most != 0
            and resume.offset <= caught_up.last  # the last one that the stream returned
            and self._interest.has_nothing_after(channel, resume)
        ):
            # The channel's last message has expired; this node knows that none followed it.
            caught_up = CaughtUp(resume, Stored(), recovered=True, last=resume.offset)
        self._metrics.resumes.labels(str(caught_up.recovered).lower()).inc()
        if rule.retain and not caught_up.recovered:
            # A client that cannot recover starts again, and so gets the retained message.
            restarted = await self._history.catch_up(last, position, on_read=on_read)
            caught_up = restarted._replace(recovered=False)
        return caught_up

    async def catch_up_pattern(
        self,
        command: SubscribePattern,
        pattern: Pattern,
        position: Position | None,
        on_read: OnRead = ignore,
    ) -> CaughtUp:
        """What a new subscription to a pattern gets first; see History.catch_up_pattern."""
        resume = command.resume
        if resume is None:
            return CaughtUp(position, Stored(), None, 0)
        caught_up = await self._history.catch_up_pattern(pattern, resume, position, on_read=on_read)
        if (
            not caught_up.recovered
            and resume.offset <= caught_up.last
            and self.wildcards.has_nothing_after(pattern, resume)
        ):
            # The last message has expired; this node knows that none followed it.
            caught_up = CaughtUp(resume, Stored(), recovered=True, last=resume.offset)
        self._metrics.resumes.labels(str(caught_up.recovered).lower()).inc()
        return caught_up

    def hold_pattern(self, pattern: Pattern, connection_id: str) -> Backlog:
        """Buffer a pattern's live messages for a client that catches up; see Wildcards.follow."""
        return self.wildcards.hold(pattern, connection_id, self._max_backlog)

    async def read_history(
        self,
        channel: str,
        since: int | None,
        limit: int,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        on_read: OnRead = ignore,
    ) -> HistoryRead:
        """Stored messages, as far back as the channel's rule allows; see History.page.

        The caller checks that the rule allows any. Raises an EventBusError.
        """
        most = self._rules.find(channel).most_history
        read = functools.partial(self._history.page, max_bytes=max_bytes, on_read=on_read)
        if most is None:
            return await read(channel, since, limit)
        if since is None:
            return await read(channel, None, min(limit, most))
        page = await read(channel, None, most)
        later = [one for one in page.messages if one.position and one.position.offset > since]
        complete = len(later) < len(page.messages)
        if not complete and len(later) < most:  # nothing older may be read
            complete = (await read(channel, since, 1)).complete
        return HistoryRead(later[:limit], page.position, complete)

    async def whisper(
        self, command: Whisper, event: str, user_id: str | None, sender: str
    ) -> str | None:
        """Publish a client event to the channel's other connections; returns a fault as text."""
        now = datetime.datetime.now(datetime.UTC)
        data = msgspec.Raw(command.data)
        body = encode_envelope(command.channel, event, data, now, user_id=user_id)
        subject = self._bus.subjects.live(command.channel)
        try:
            await self._bus.driver.publish(subject, body, {HEADER_EXCEPT: sender})
        except EventBusError as exc:
            return fault_for_client("the client event could not be published", exc)
        return None

    # Messages from the bus

    def watch(self, on_message: Callable[[str], None]) -> Callable[[], None]:
        """Call `on_message` with the channel of each message; returns a function that stops it.

        There is at most one watcher: the hot path calls it directly.
        """
        assert self._on_message is None, "messages have a watcher already"
        self._on_message = on_message

        def unwatch() -> None:
            if self._on_message is on_message:
                self._on_message = None

        return unwatch

    def take(self, channel: str, delivery: Delivery) -> None:
        """The hot path: deliver one message of the bus to all connections of its channel."""
        try:
            message = to_message(channel, delivery)
        except InvalidPayload as exc:
            self._tally.count_received(len(delivery.payload))
            self._quarantine.put(channel, delivery.payload, exc)
            return
        if self._on_message is not None:
            self._on_message(channel)
        is_traced = self._traces and tracing.is_traced(delivery.headers)
        begun_ns = time.time_ns() if is_traced else 0
        clients = self._hub.deliver(message)
        self._tally.count(len(delivery.payload), clients, message.published)
        if is_traced:
            tracing.delivered(
                self._bus.driver.name,
                channel,
                headers=delivery.headers,
                begun_ns=begun_ns,
                clients=clients,
            )

    def _on_gap(self, channel: str, position: Position) -> None:
        """Messages are lost for good: notify the subscribers, so that they need not guess."""
        self._metrics.gaps.inc()
        _log.warning("channel %s has lost messages before offset %d", channel, position.offset + 1)
        kind = self._rules.find(channel).kind
        self._hub.announce_gap(Subscribed(channel, kind, position, recovered=False, ref=None))

    def _matched_message(self, channel: str, delivery: Delivery) -> ChannelMessage | None:
        """Check one message for the subscribers of a pattern.

        Where the channel has subscribers of its own, `take` counts it and its faults.
        """
        tally = self._tally
        tally.count_received(len(delivery.payload))
        is_first = not self._hub.count(channel)
        try:
            message = to_message(channel, delivery)
        except InvalidPayload as exc:
            if is_first:
                self._quarantine.put(channel, delivery.payload, exc)
            return None
        if is_first and message.published is not None:
            tally.latencies.since(message.published)
        if is_first and self._on_message is not None:
            self._on_message(channel)
        return message


def to_message(channel: str, delivery: Delivery) -> ChannelMessage:
    """Check a payload, once for all of its recipients. Raises InvalidPayload."""
    event, body, _, timestamp = read_delivery(channel, delivery)
    _, _, headers, position, _, time = delivery
    exclude = headers.get(HEADER_EXCEPT)
    mark = None if position is None else time
    return _new(ChannelMessage, (channel, event, body, position, exclude, time or timestamp, mark))


def _stored_message(channel: str, delivery: Delivery) -> ChannelMessage | None:
    """A message of the history; None for one that went into quarantine when it was live."""
    try:
        return to_message(channel, delivery)
    except InvalidPayload:
        return None
