"""The in-memory driver: the reference for other drivers, and a double for tests."""

import weakref

from eventbus.channels import (
    Pattern,
    Subjects,
)
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
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.local import (
    Listener,
    Listeners,
)
from eventbus.drivers.memory.consumer import (
    ConsumerState,
    MemoryConsumer,
)
from eventbus.drivers.memory.queue import MemoryQueues
from eventbus.drivers.memory.state import MemoryState
from eventbus.drivers.memory.stream import MemoryStream
from eventbus.errors import ConnectionFailed
from eventbus.retention import Retention

__all__ = ["MemoryBroker", "MemoryDriver"]


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
        """`history_messages` and `history_seconds` limit the stored messages per channel.

        `retention` sets other limits for classes of channels, as the setting does; the limit of a
        class's bytes does not apply here. Raises ConfigError.
        """
        self.subjects = subjects or Subjects()
        self.stream = MemoryStream(
            self.subjects, Retention(retention, count=history_messages, seconds=history_seconds)
        )
        self.listeners = Listeners()
        self.queues = MemoryQueues()
        self.state = MemoryState()
        self._consumers: dict[str, ConsumerState] = {}

    @property
    def epoch(self) -> str:
        """The epoch of the stream."""
        return self.stream.epoch

    @property
    def last_offset(self) -> int:
        """The offset of the last stored message; 0 if there is none."""
        return self.stream.last_offset

    def publish(self, subject: str, payload: bytes, headers: Headers) -> Published | None:
        """Store and deliver one message, according to its subject."""
        live = self.subjects.live_of(subject)
        if live is None:
            self.listeners.deliver(Delivery(subject, payload, headers))
            return None
        published, delivery = self.stream.append(live, payload, headers)
        if delivery is not None:
            self.listeners.deliver(delivery)
            for consumer in self._consumers.values():
                consumer.wake()
        return published

    def consumer(self, name: str, settings: ConsumerSettings) -> ConsumerState:
        """The state of the consumer called `name`, created if there is none."""
        if (consumer := self._consumers.get(name)) is None:
            start = 0 if settings.from_start else self.stream.last_offset
            consumer = self._consumers[name] = ConsumerState(self.stream, name, start)
        return consumer

    def add(self, subject: str, handler: Handler, group: str = "") -> Listener:
        """Listen to a subject or a filter; with a group, as one of its members."""
        in_stream = subject.startswith(f"{self.subjects.namespace}.live.")
        position = self.stream.position if in_stream else None
        return self.listeners.add(subject, handler, group=group, position=position)


class MemoryDriver:
    """A driver over a MemoryBroker; drivers of one broker see each other's messages."""

    name = "memory"
    capabilities = frozenset(Capability)

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        """Without `broker`, the driver has one of its own."""
        self.broker = broker or MemoryBroker()
        self._subscriptions: weakref.WeakSet[Listener] = weakref.WeakSet()
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

    @property
    def durable_state(self) -> MemoryState:
        """The same entries: the broker ends with this process."""
        return self.state

    async def open(self) -> None:
        """Open it; there is nothing to connect to."""
        self.is_connected = True

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = NO_HEADERS
    ) -> Published | None:
        """Store and deliver in the same loop turn."""
        self._require_open()
        return self.broker.publish(subject, payload, headers)

    async def subscribe(self, subject: str, handler: Handler) -> Listener:
        """Subscribe from now on."""
        return await self.subscribe_group(subject, "", handler)

    async def subscribe_group(self, subject: str, group: str, handler: Handler) -> Listener:
        """Subscribe as a member of a group, whose members take turns."""
        self._require_open()
        subscription = self.broker.add(subject, handler, group)
        self._subscriptions.add(subscription)
        return subscription

    async def consume(self, name: str, subject: str, settings: ConsumerSettings) -> MemoryConsumer:
        """Join a consumer, whose position lasts as long as the broker."""
        self._require_open()
        state = self.broker.consumer(name, settings)
        state.set_up(Pattern(subject))
        consumer = MemoryConsumer(state, name, settings.ack_wait)
        self._consumers.add(consumer)
        return consumer

    async def read(self, subject: str, *, after: int | None, limit: int) -> Page:
        """The stored messages of a live subject."""
        self._require_open()
        return self.broker.stream.read(subject, after, limit)

    async def read_pattern(
        self, subject: str, position: Position, *, limit: int, max_bytes: int
    ) -> Page:
        """The stored messages of all live subjects that a filter matches."""
        self._require_open()
        return self.broker.stream.read_pattern(Pattern(subject), position, limit, max_bytes)

    async def stored(self, pattern: str, limit: int) -> dict[str, int]:
        """The number of stored messages per live subject; see MaintenanceDriver."""
        self._require_open()
        return self.broker.stream.stored(Pattern(pattern), limit)

    async def purge(self, subject: str) -> int:
        """Delete the stored messages of a live subject; see MaintenanceDriver."""
        self._require_open()
        return self.broker.stream.purge(subject)

    async def aclose(self) -> None:
        """Close this driver's subscriptions and consumers."""
        self.is_connected = False
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        for consumer in list(self._consumers):
            await consumer.aclose()

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the memory driver is not open", driver=self.name)
