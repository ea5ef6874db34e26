"""Durable consumers of the memory broker: the reference for deliveries and redeliveries."""

import asyncio
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.channels import Pattern
from eventbus.drivers.base import Delivery
from eventbus.drivers.consumers import EvictionLog
from eventbus.errors import ConnectionFailed

__all__ = ["ConsumerState", "MemoryConsumer", "MemoryUnackedDelivery", "RetainedMessages"]


_SOON_S: Final = 3600.0


class RetainedMessages(Protocol):
    """The stored messages."""

    def retained(self, pattern: Pattern, after: int) -> list[Delivery]:
        """The stored messages that match and have a greater offset, in order."""

    def evicted(self, pattern: Pattern, after: int) -> dict[str, int]:
        """The last evicted offset of each matching live subject that evicted any after `after`."""


class _Open(NamedTuple):
    """An unacknowledged message, and when to redeliver it."""

    due: float
    attempt: int
    delivery: Delivery


class ConsumerState:
    """The position of a consumer; it outlives its members, as long as the broker lasts."""

    def __init__(self, stream: RetainedMessages, name: str, start: int) -> None:
        """`start` is the offset after which it begins."""
        self.last = start
        self.open: dict[int, _Open] = {}
        self.pattern = Pattern(">")
        self.members: set[MemoryConsumer] = set()
        self.evicted = EvictionLog(name)
        self._known_evicted: dict[str, int] = {}
        self._stream = stream

    def set_up(self, pattern: Pattern) -> None:
        """Apply the pattern of the newest member."""
        self.pattern = pattern

    def hand_out(self, limit: int, now: float, ack_wait: float) -> list[tuple[int, int, Delivery]]:
        """Offset, attempt and message of up to `limit` deliveries, redeliveries first.

        The member that takes them has `ack_wait` seconds for each.
        """
        self._report_evicted()
        deliveries: list[tuple[int, int, Delivery]] = []
        due = sorted(offset for offset, one in self.open.items() if one.due <= now)
        for offset in due[:limit]:
            one = self.open[offset]
            deliveries.append((offset, one.attempt + 1, one.delivery))
        for delivery in self._stream.retained(self.pattern, self.last):
            if len(deliveries) >= limit:
                break
            assert delivery.position is not None
            self.last = delivery.position.offset
            deliveries.append((self.last, 1, delivery._replace(previous=None)))
        for offset, attempt, delivery in deliveries:
            self.open[offset] = _Open(now + ack_wait, attempt, delivery)
        return deliveries

    def _report_evicted(self) -> None:
        found = self._stream.evicted(self.pattern, self.last)
        for live, offset in found.items():
            if offset > self._known_evicted.get(live, 0):
                self.evicted.report(
                    live, "are lost: they were evicted before the consumer got them"
                )
        self._known_evicted = found

    def next_due(self) -> float | None:
        """When the next unacknowledged message is redelivered."""
        return min((one.due for one in self.open.values()), default=None)

    def settle(self, offset: int, attempt: int, due: float | None) -> None:
        """Acknowledge a message, or with `due`, redeliver it then.

        The answer to an earlier delivery of the message is ignored.
        """
        one = self.open.get(offset)
        if one is not None and one.attempt == attempt:
            if due is None:
                del self.open[offset]
            else:
                self.open[offset] = one._replace(due=due)
                self.wake()

    def wake(self) -> None:
        """Wake the members: there may be messages to take."""
        for member in self.members:
            member.woken.set()


class MemoryUnackedDelivery:
    """A message that waits for its acknowledgement."""

    def __init__(self, state: ConsumerState, offset: int, attempt: int, delivery: Delivery) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self._state = state
        self._offset = offset

    async def ack(self) -> None:
        """Acknowledge it."""
        self._state.settle(self._offset, self.attempt, None)

    async def retry(self, seconds: float = 0.0) -> None:
        """Redeliver it after that time."""
        due = asyncio.get_running_loop().time() + seconds
        self._state.settle(self._offset, self.attempt, due)

    async def discard(self) -> None:
        """Never redeliver it."""
        await self.ack()


class MemoryConsumer:
    """A member of a consumer of the memory broker."""

    def __init__(self, state: ConsumerState, name: str, ack_wait: float) -> None:
        self.woken = asyncio.Event()
        self._state = state
        self._name = name
        self._ack_wait = ack_wait
        self._closed = False
        state.members.add(self)

    async def take(self, limit: int) -> list[MemoryUnackedDelivery]:
        """See `Consumer.take`."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            self.woken.clear()
            if found := self._state.hand_out(limit, loop.time(), self._ack_wait):
                return [MemoryUnackedDelivery(self._state, *one) for one in found]
            due = self._state.next_due()
            wait = _SOON_S if due is None else max(0.0, due - loop.time())
            timer = loop.call_later(wait, self.woken.set)
            try:
                await self.woken.wait()
            finally:
                timer.cancel()
        raise ConnectionFailed(f"the consumer {self._name} is closed", driver="memory")

    @property
    def evicted(self) -> int:
        """See `Consumer.evicted`."""
        return self._state.evicted.count

    async def aclose(self) -> None:
        """Stop taking messages. Closing twice is harmless."""
        self._closed = True
        self.woken.set()
        self._state.members.discard(self)
