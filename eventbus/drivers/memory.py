"""Messages within one process: the reference of what a driver does, and the double for tests."""

import asyncio
import collections
import itertools
import logging
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
    Position,
    Published,
)
from eventbus.errors import ConnectionFailed
from eventbus.message import HEADER_ID

__all__ = ["MemoryBroker", "MemoryDriver"]

_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
"""How long a message id is remembered, as a NATS stream does by default."""
MAX_REMEMBERED_IDS: Final = 100_000


class _Stored(NamedTuple):
    expires: float
    delivery: Delivery


class MemoryBroker:
    """The messages and listeners that several MemoryDrivers of one event loop share."""

    def __init__(
        self,
        subjects: Subjects | None = None,
        *,
        history_messages: int = 100,
        history_seconds: float = 600.0,
    ) -> None:
        """`history_messages` and `history_seconds` bound what is kept of each channel."""
        self.subjects = subjects or Subjects()
        self.epoch = uuid_utils.uuid4().hex[:12]
        self.last_offset = 0
        self._history_messages = history_messages
        self._history_seconds = history_seconds
        self._stored: dict[str, collections.deque[_Stored]] = {}
        self._ids: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()
        self._exact: dict[str, dict[int, MemorySubscription]] = {}
        self._filters: dict[int, tuple[Pattern, MemorySubscription]] = {}
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
        kept = self._retained(live, now)
        previous = kept[-1].delivery.position if kept else None
        self.last_offset += 1
        position = Position(self.last_offset, self.epoch)
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        delivery = Delivery(
            live, payload, headers, position, previous.offset if previous else 0, stamp
        )
        kept.append(_Stored(now + self._history_seconds, delivery))
        self._stored[live] = kept
        if message_id:
            self._remember(message_id, now)
        self._deliver(delivery)
        return Published(position, duplicate=False)

    def add(self, subject: str, handler: Handler) -> "MemorySubscription":
        """Listen to a subject or a filter."""
        key = next(self._keys)
        pattern = Pattern(subject)
        in_stream = subject.startswith(f"{self.subjects.namespace}.live.")
        position = Position(self.last_offset, self.epoch) if in_stream else None
        subscription = MemorySubscription(self, subject, key, handler, position)
        if pattern.is_exact:
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

    def _deliver(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        for subscription in self._exact.get(delivery.subject, {}).values():
            loop.call_soon(subscription.receive, delivery)
        for pattern, subscription in self._filters.values():
            if pattern.match(delivery.subject) is not None:
                loop.call_soon(subscription.receive, delivery)

    def _retained(self, live: str, now: float) -> collections.deque[_Stored]:
        kept = self._stored.pop(live, None)
        if kept is None:
            self._expire_oldest(now)
            return collections.deque(maxlen=self._history_messages)
        while kept and kept[0].expires <= now:
            kept.popleft()
        return kept

    def _expire_oldest(self, now: float) -> None:
        """Forget channels whose messages have all expired; the map is ordered by last publish."""
        while self._stored:
            live, kept = next(iter(self._stored.items()))
            if kept and kept[-1].expires > now:
                return
            del self._stored[live]

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
    capabilities = frozenset({Capability.HISTORY})

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        """Without `broker`, the driver has one of its own."""
        self.broker = broker or MemoryBroker()
        self._subscriptions: weakref.WeakSet[MemorySubscription] = weakref.WeakSet()
        self.is_connected = False

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
        self._require_open()
        subscription = self.broker.add(subject, handler)
        self._subscriptions.add(subscription)
        return subscription

    async def aclose(self) -> None:
        """Close what is left of this driver's subscriptions."""
        self.is_connected = False
        for subscription in list(self._subscriptions):
            await subscription.aclose()

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the memory driver is not open", driver=self.name)
