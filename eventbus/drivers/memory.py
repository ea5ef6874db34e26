"""Messages within one process: the reference of what a driver does, and the double for tests."""

import asyncio
import collections
import itertools
import logging
import operator
import time
import weakref
from datetime import UTC, datetime
from typing import Final, NamedTuple

import uuid_utils

from eventbus.channels import Pattern, Subjects
from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Delivery,
    Handler,
    Headers,
    Page,
    Position,
    Published,
)
from eventbus.drivers.base_consumer import ConsumerSettings
from eventbus.drivers.memory_consumer import ConsumerPlace, MemoryConsumer
from eventbus.drivers.memory_queue import MemoryQueues
from eventbus.drivers.memory_state import MemoryState
from eventbus.errors import ConnectionFailed
from eventbus.message import HEADER_ID
from eventbus.retention import Retention, RetentionClass

__all__ = ["MemoryBroker", "MemoryDriver"]

_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
"""How long a message id is remembered, as a NATS stream does by default."""
MAX_REMEMBERED_IDS: Final = 100_000


class _Stored(NamedTuple):
    expires: float
    delivery: Delivery
    offset: int


class _Channel:
    """What is kept of one channel, oldest first, and the last offset that is kept no more."""

    __slots__ = ("evicted", "kept")

    def __init__(self, evicted: int) -> None:
        self.kept: collections.deque[_Stored] = collections.deque()
        self.evicted = evicted

    def expire(self, now: float) -> None:
        while self.kept and self.kept[0].expires <= now:
            self.evicted = self.kept.popleft().offset

    def add(self, stored: _Stored, limit: int) -> None:
        if len(self.kept) >= limit:
            self.evicted = self.kept.popleft().offset
        self.kept.append(stored)


class MemoryBroker:
    """The messages and listeners that several MemoryDrivers of one event loop share."""

    def __init__(
        self,
        subjects: Subjects | None = None,
        *,
        history_messages: int = 100,
        history_seconds: float = 600.0,
        retention: str = "",
    ) -> None:
        """`history_messages` and `history_seconds` bound what is kept of each channel.

        `retention` gives other bounds to classes of channels, as the setting does; the bytes of a
        class are not bounded here. Raises ConfigError.
        """
        self.subjects = subjects or Subjects()
        self.epoch = uuid_utils.uuid4().hex[:12]
        self.last_offset = 0
        self.queues = MemoryQueues()
        self.state = MemoryState()
        self._retention = Retention(retention, count=history_messages, seconds=history_seconds)
        self._root = len(f"{self.subjects.namespace}.live.")
        self._channels: dict[str, _Channel] = {}
        # The channels of each class, in the order of their last messages.
        self._order: dict[RetentionClass, dict[str, None]] = {}
        self._forgotten = 0  # the last offset of the channels that are kept no more
        self._ids: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()
        self._exact: dict[str, dict[int, MemorySubscription]] = {}
        self._filters: dict[int, tuple[Pattern, MemorySubscription]] = {}
        self._groups: dict[tuple[str, str], tuple[Pattern, dict[int, MemorySubscription]]] = {}
        self._places: dict[str, ConsumerPlace] = {}
        self._keys = itertools.count()

    def publish(self, subject: str, payload: bytes, headers: Headers) -> Published | None:
        """Store and deliver one message, as the subject asks."""
        live = self.subjects.live_of(subject)
        if live is None:
            self._deliver(Delivery(subject, payload, headers))
            return None
        now = time.monotonic()
        message_id = headers.get(HEADER_ID)
        if message_id and (known := self._known(message_id, now)):
            return Published(Position(known, self.epoch), duplicate=True)
        kept = self._retention.of(live[self._root :])
        channel = self._channels.get(live) or _Channel(self._forgotten)
        channel.expire(now)
        self._forget_expired(now)
        previous = channel.kept[-1].offset if channel.kept else 0
        self.last_offset += 1
        position = Position(self.last_offset, self.epoch)
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        delivery = Delivery(live, payload, headers, position, previous, stamp)
        channel.add(_Stored(now + kept.seconds, delivery, self.last_offset), kept.messages)
        self._channels[live] = channel
        order = self._order.setdefault(kept, {})
        order.pop(live, None)
        order[live] = None
        if message_id:
            self._remember(message_id, now)
        self._deliver(delivery)
        return Published(position, duplicate=False)

    def read(self, live: str, after: int | None, limit: int) -> Page:
        """Stored messages of a live subject; see HistoryDriver.read."""
        position = Position(self.last_offset, self.epoch)
        channel = self._channels.get(live)
        if channel is None:
            return Page((), position, after is None or after >= self._forgotten)
        channel.expire(time.monotonic())
        deliveries = [kept.delivery for kept in channel.kept]
        if after is None:
            return Page(tuple(deliveries[-limit:] if limit else ()), position, complete=True)
        later = [kept.delivery for kept in channel.kept if kept.offset > after]
        return Page(tuple(later[:limit]), position, after >= channel.evicted)

    def stored(self, pattern: Pattern, limit: int) -> dict[str, int]:
        """How many messages are kept of the live subjects that match, for up to `limit` of them."""
        now = time.monotonic()
        found: dict[str, int] = {}
        for live, channel in self._channels.items():
            if len(found) >= limit:
                break
            if pattern.match(live) is not None:
                channel.expire(now)
                if channel.kept:
                    found[live] = len(channel.kept)
        return found

    def purge(self, live: str) -> int:
        """Keep nothing of a live subject; how many messages it was."""
        if (channel := self._channels.get(live)) is None:
            return 0
        channel.expire(time.monotonic())
        count = len(channel.kept)
        if count:
            channel.evicted = channel.kept[-1].offset
            channel.kept.clear()
        return count

    def retained(self, pattern: Pattern, after: int) -> list[Delivery]:
        """What is stored on the live subjects that match, in order, after that offset."""
        now = time.monotonic()
        found: list[tuple[int, Delivery]] = []
        for live, channel in self._channels.items():
            if channel.kept and channel.kept[-1].offset > after and pattern.match(live) is not None:
                channel.expire(now)
                found += [(one.offset, one.delivery) for one in channel.kept if one.offset > after]
        return [delivery for _, delivery in sorted(found, key=operator.itemgetter(0))]

    def consumer(self, name: str, settings: ConsumerSettings) -> ConsumerPlace:
        """The place that `name` has in what is stored, made where there is none."""
        if (place := self._places.get(name)) is None:
            start = 0 if settings.from_start else self.last_offset
            place = self._places[name] = ConsumerPlace(self, start)
        return place

    def add(self, subject: str, handler: Handler, group: str = "") -> "MemorySubscription":
        """Listen to a subject or a filter; with a group, as one of its members."""
        key = next(self._keys)
        pattern = Pattern(subject)
        in_stream = subject.startswith(f"{self.subjects.namespace}.live.")
        position = Position(self.last_offset, self.epoch) if in_stream else None
        subscription = MemorySubscription(self, subject, key, handler, position)
        if group:
            self._groups.setdefault((group, subject), (pattern, {}))[1][key] = subscription
        elif pattern.is_exact:
            self._exact.setdefault(subject, {})[key] = subscription
        else:
            self._filters[key] = (pattern, subscription)
        return subscription

    def remove(self, subject: str, key: int) -> None:
        """Stop listening; unknown keys are ignored."""
        self._filters.pop(key, None)
        if (listeners := self._exact.get(subject)) is not None:
            listeners.pop(key, None)
            if not listeners:
                del self._exact[subject]
        for name, (_, members) in list(self._groups.items()):
            if members.pop(key, None) is not None and not members:
                del self._groups[name]

    def _deliver(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        for subscription in self._exact.get(delivery.subject, {}).values():
            loop.call_soon(subscription.receive, delivery)
        for pattern, subscription in self._filters.values():
            if pattern.match(delivery.subject) is not None:
                loop.call_soon(subscription.receive, delivery)
        for pattern, members in self._groups.values():
            if pattern.match(delivery.subject) is not None:
                key = next(iter(members))
                members[key] = member = members.pop(key)  # the next message is another one's
                loop.call_soon(member.receive, delivery)
        if delivery.position is not None:
            for place in self._places.values():
                place.wake()

    def _forget_expired(self, now: float) -> None:
        """Forget channels whose messages have all expired, from the one longest without any."""
        for order in self._order.values():
            while order:
                live = next(iter(order))
                channel = self._channels[live]
                channel.expire(now)
                if channel.kept:
                    break
                self._forgotten = max(self._forgotten, channel.evicted)
                del self._channels[live], order[live]

    def _known(self, message_id: str, now: float) -> int | None:
        while self._ids:
            oldest = next(iter(self._ids))
            if self._ids[oldest][0] > now and len(self._ids) <= MAX_REMEMBERED_IDS:
                break
            del self._ids[oldest]
        found = self._ids.get(message_id)
        return found[1] if found else None

    def _remember(self, message_id: str, now: float) -> None:
        self._ids[message_id] = (now + DUPLICATE_WINDOW_S, self.last_offset)


class MemorySubscription:
    """One listener of a MemoryBroker."""

    def __init__(
        self,
        broker: MemoryBroker,
        subject: str,
        key: int,
        handler: Handler,
        position: Position | None,
    ) -> None:
        self.position = position
        self._broker = broker
        self._subject = subject
        self._key = key
        self._handler: Handler | None = handler

    def receive(self, delivery: Delivery) -> None:
        """Hand a message to the handler, unless the subscription was closed meanwhile."""
        if self._handler is None:
            return
        try:
            self._handler(delivery)
        except Exception:  # noqa: BLE001 - one listener's fault is not another's
            _log.exception("a handler of %s failed", self._subject)

    async def aclose(self) -> None:
        """Stop listening."""
        self._handler = None
        self._broker.remove(self._subject, self._key)


class MemoryDriver:
    """A driver over a MemoryBroker; drivers of one broker see each other's messages."""

    name = "memory"
    capabilities = frozenset(Capability)

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        """Without `broker`, the driver has one of its own."""
        self.broker = broker or MemoryBroker()
        self._subscriptions: weakref.WeakSet[MemorySubscription] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[MemoryConsumer] = weakref.WeakSet()
        self.is_connected = False

    @property
    def queues(self) -> MemoryQueues:
        """The broker's queues."""
        self._require_open()
        return self.broker.queues

    @property
    def state(self) -> MemoryState:
        """The broker's entries."""
        self._require_open()
        return self.broker.state

    async def open(self) -> None:
        """Nothing to connect to."""
        self.is_connected = True

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Store and deliver in the same loop turn."""
        self._require_open()
        return self.broker.publish(subject, payload, headers)

    async def subscribe(self, subject: str, handler: Handler) -> MemorySubscription:
        """Listen from this moment on."""
        return await self.subscribe_group(subject, "", handler)

    async def subscribe_group(
        self, subject: str, group: str, handler: Handler
    ) -> MemorySubscription:
        """Listen as a member of a group; its members take turns."""
        self._require_open()
        subscription = self.broker.add(subject, handler, group)
        self._subscriptions.add(subscription)
        return subscription

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> MemoryConsumer:
        """Join a consumer, whose place lasts as long as the broker."""
        self._require_open()
        place = self.broker.consumer(name, settings)
        place.set_up(Pattern(subject), settings)
        consumer = MemoryConsumer(place, name)
        self._consumers.add(consumer)
        return consumer

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """What the broker keeps of a live subject."""
        self._require_open()
        return self.broker.read(subject, after, limit)

    async def stored(self, pattern: str, limit: int) -> dict[str, int]:
        """What the broker keeps; see MaintenanceDriver."""
        self._require_open()
        return self.broker.stored(Pattern(pattern), limit)

    async def purge(self, subject: str) -> int:
        """Keep nothing of a live subject; see MaintenanceDriver."""
        self._require_open()
        return self.broker.purge(subject)

    async def aclose(self) -> None:
        """Close what is left of this driver's subscriptions."""
        self.is_connected = False
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        for consumer in list(self._consumers):
            await consumer.aclose()

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the memory driver is not open", driver=self.name)
