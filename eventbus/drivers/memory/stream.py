"""The stored messages of a memory broker: the reference for histories."""

import collections
import operator
import time
from datetime import (
    UTC,
    datetime,
)
from typing import (
    Final,
    NamedTuple,
)

import uuid_utils

from eventbus.channels import (
    Pattern,
    Subjects,
)
from eventbus.drivers.base import (
    Delivery,
    Headers,
    Page,
    Position,
    Published,
)
from eventbus.drivers.marks import (
    mark_of,
    nanoseconds,
)
from eventbus.messages import HEADER_ID
from eventbus.retention import (
    Retention,
    RetentionClass,
)

__all__ = ["MemoryStream"]


DUPLICATE_WINDOW_S: Final = 120.0
"""How long a message id is remembered, as a NATS stream does by default."""
MAX_REMEMBERED_IDS: Final = 100_000


class _Stored(NamedTuple):
    expires: float
    delivery: Delivery
    offset: int


class _Channel:
    """The stored messages of one channel, oldest first, and the last evicted offset."""

    __slots__ = ("began", "evicted", "kept")

    def __init__(self, evicted: int) -> None:
        self.kept: collections.deque[_Stored] = collections.deque()
        self.evicted = self.began = evicted

    def expire(self, now: float) -> None:
        while self.kept and self.kept[0].expires <= now:
            self.evicted = self.kept.popleft().offset

    def clear(self) -> int:
        """Evict all; returns how many."""
        count = len(self.kept)
        if count:
            self.evicted = self.kept[-1].offset
            self.kept.clear()
        return count

    def add(self, stored: _Stored, limit: int) -> None:
        if len(self.kept) >= limit:
            self.evicted = self.kept.popleft().offset
        self.kept.append(stored)


class MemoryStream:
    """Numbers messages, and stores those of each channel according to its retention class."""

    def __init__(self, subjects: Subjects, retention: Retention) -> None:
        self.epoch = uuid_utils.uuid4().hex[:12]
        self.last_offset = 0
        self._retention = retention
        self._root = len(f"{subjects.namespace}.live.")
        self._channels: dict[str, _Channel] = {}
        # The channels of each class, in the order of their last messages.
        self._order: dict[RetentionClass, dict[str, None]] = {}
        self._forgotten = 0  # the last offset of channels that were dropped
        self._ids: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()

    @property
    def position(self) -> Position:
        """The end of the stream."""
        return Position(self.last_offset, self.epoch)

    def append(
        self, live: str, payload: bytes, headers: Headers
    ) -> tuple[Published, Delivery | None]:
        """Store a message of a live subject; returns its position and what to deliver.

        A message with a recently stored id has the position of that one, and is not delivered.
        """
        now = time.monotonic()
        message_id = headers.get(HEADER_ID)
        if message_id and (known := self._known(message_id, now)):
            return Published(Position(known, self.epoch), duplicate=True), None
        retention = self._retention.of(live[self._root :])
        channel = self._channels.get(live) or _Channel(self._forgotten)
        channel.expire(now)
        self._forget_expired(now)
        previous = channel.kept[-1].offset if channel.kept else 0
        self.last_offset += 1
        position = Position(self.last_offset, self.epoch)
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        delivery = Delivery(live, payload, headers, position, previous, stamp)
        channel.add(
            _Stored(now + retention.seconds, delivery, self.last_offset), retention.messages
        )
        self._channels[live] = channel
        order = self._order.setdefault(retention, {})
        order.pop(live, None)
        order[live] = None
        if message_id:
            self._ids[message_id] = (now + DUPLICATE_WINDOW_S, self.last_offset)
        return Published(position, duplicate=False), delivery

    def read(self, live: str, after: int | None, limit: int) -> Page:
        """Stored messages of a live subject; see HistoryDriver.read."""
        position = self.position
        channel = self._channels.get(live)
        if channel is None:
            return Page((), position, after is None or after >= self._forgotten)
        channel.expire(time.monotonic())
        deliveries = [stored.delivery for stored in channel.kept]
        if after is None:
            return Page(tuple(deliveries[-limit:] if limit else ()), position, complete=True)
        later = [stored.delivery for stored in channel.kept if stored.offset > after]
        return Page(tuple(later[:limit]), position, after >= channel.evicted)

    def stored(self, pattern: Pattern, limit: int) -> dict[str, int]:
        """The number of stored messages of up to `limit` live subjects that match."""
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
        """Delete the stored messages of a live subject; returns how many."""
        if (channel := self._channels.get(live)) is None:
            return 0
        channel.expire(time.monotonic())
        return channel.clear()

    def retained(self, pattern: Pattern, after: int) -> list[Delivery]:
        """The stored messages of matching live subjects after that offset, in order."""
        now = time.monotonic()
        found: list[tuple[int, Delivery]] = []
        for live, channel in self._channels.items():
            if channel.kept and channel.kept[-1].offset > after and pattern.match(live) is not None:
                channel.expire(now)
                found += [(one.offset, one.delivery) for one in channel.kept if one.offset > after]
        return [delivery for _, delivery in sorted(found, key=operator.itemgetter(0))]

    def read_pattern(
        self, pattern: Pattern, position: Position, limit: int, max_bytes: int
    ) -> Page:
        """All stored messages of matching live subjects; see PatternHistoryDriver.read_pattern."""
        after, end = position.offset, self.position
        found = self.retained(pattern, after - 1)
        mark = mark_of(position)
        if found and found[0].position == position:
            if mark and nanoseconds(found[0].time or "") != nanoseconds(mark):
                return Page((), end, complete=False)
            del found[0]
        complete = (
            position.epoch == end.epoch
            and self._forgotten <= after <= end.offset
            and not any(
                channel.evicted > after
                for live, channel in self._channels.items()
                if pattern.match(live) is not None
            )
            and len(found) <= limit
            and sum(len(delivery.payload) for delivery in found) <= max_bytes
        )
        return Page(tuple(found) if complete else (), end, complete)

    def evicted(self, pattern: Pattern, after: int) -> dict[str, int]:
        """The last evicted offset of each matching live subject that evicted any after `after`."""
        now = time.monotonic()
        found: dict[str, int] = {}
        for live, channel in self._channels.items():
            if pattern.match(live) is not None:
                channel.expire(now)
                if channel.evicted > max(after, channel.began):
                    found[live] = channel.evicted
        return found

    def _forget_expired(self, now: float) -> None:
        """Drop channels whose messages have all expired, the least recently used first."""
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
