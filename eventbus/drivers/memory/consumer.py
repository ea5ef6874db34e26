"""Durable consumers of the memory broker: the reference of what one hands out, and how often."""

import asyncio
from typing import (
    Final,
    NamedTuple,
    Protocol,
)

from eventbus.channels import Pattern
from eventbus.drivers.base import Delivery
from eventbus.drivers.consumers import (
    ConsumerSettings,
    EvictionLog,
)
from eventbus.errors import ConnectionFailed

__all__ = ["ConsumerState", "MemoryConsumer", "MemoryUnackedDelivery", "RetainedMessages"]


_SOON_S: Final = 3600.0


class RetainedMessages(Protocol):
    """What is still stored."""

    def retained(self, pattern: Pattern, after: int) -> list[Delivery]:
        """The stored messages that match and have a greater offset, in order."""

    def evicted(self, pattern: Pattern, after: int) -> dict[str, int]:
        """The live subjects that match and have given up messages after an offset; up to which."""


class _Open(NamedTuple):
    """A message that was handed out, or is to be again."""

    due: float
    attempt: int
    delivery: Delivery


class ConsumerState:
    """How far a consumer has come; it outlives its members, as long as the broker lasts."""

    def __init__(self, stream: RetainedMessages, name: str, start: int) -> None:
        """`start` is the offset after which it begins."""
        self.last = start
        self.open: dict[int, _Open] = {}
        self.pattern = Pattern(">")
        self.ack_wait = 0.0
        self.members: set[MemoryConsumer] = set()
        self.evicted = EvictionLog(name)
        self._known_evicted: dict[str, int] = {}
        self._stream = stream

    def set_up(self, pattern: Pattern, settings: ConsumerSettings) -> None:
        """Take on what the newest member asks for."""
        self.pattern = pattern
        self.ack_wait = settings.ack_wait

    def hand_out(self, limit: int, now: float) -> list[tuple[int, int, Delivery]]:
        """Offset, attempt and message of up to `limit`: first those that are due again."""
        self._look_for_evicted()
        taken: list[tuple[int, int, Delivery]] = []
        due = sorted(offset for offset, one in self.open.items() if one.due <= now)
        for offset in due[:limit]:
            one = self.open[offset]
            taken.append((offset, one.attempt + 1, one.delivery))
        for delivery in self._stream.retained(self.pattern, self.last):
            if len(taken) >= limit:
                break
            assert delivery.position is not None
            self.last = delivery.position.offset
            taken.append((self.last, 1, delivery._replace(previous=None)))
        for offset, attempt, delivery in taken:
            self.open[offset] = _Open(now + self.ack_wait, attempt, delivery)
        return taken

    def _look_for_evicted(self) -> None:
        found = self._stream.evicted(self.pattern, self.last)
        for live, offset in found.items():
            if offset > self._known_evicted.get(live, 0):
                self.evicted.report(
                    live, "are lost: they were given up before the consumer got them"
                )
        self._known_evicted = found

    def next_due(self) -> float | None:
        """When a message is handed out again, if none is answered for."""
        return min((one.due for one in self.open.values()), default=None)

    def answer(self, offset: int, attempt: int, due: float | None) -> None:
        """It is done when `due` is None; the answer of one who took it earlier counts no more."""
        one = self.open.get(offset)
        if one is not None and one.attempt == attempt:
            if due is None:
                del self.open[offset]
            else:
                self.open[offset] = one._replace(due=due)
                self.wake()

    def wake(self) -> None:
        """Something may be there to take."""
        for member in self.members:
            member.woken.set()


class MemoryUnackedDelivery:
    """One message that its place waits to hear about."""

    def __init__(self, place: ConsumerState, offset: int, attempt: int, delivery: Delivery) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self._place = place
        self._offset = offset

    async def ack(self) -> None:
        """It is done."""
        self._place.answer(self._offset, self.attempt, None)

    async def retry(self, seconds: float = 0.0) -> None:
        """Hand it out again after that time."""
        due = asyncio.get_running_loop().time() + seconds
        self._place.answer(self._offset, self.attempt, due)

    async def discard(self) -> None:
        """It is never handed out again."""
        await self.ack()


class MemoryConsumer:
    """A member of a consumer of the memory broker."""

    def __init__(self, place: ConsumerState, name: str) -> None:
        self.woken = asyncio.Event()
        self._place = place
        self._name = name
        self._closed = False
        place.members.add(self)

    async def take(self, limit: int) -> list[MemoryUnackedDelivery]:
        """See `Consumer.take`."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            self.woken.clear()
            if found := self._place.hand_out(limit, loop.time()):
                return [MemoryUnackedDelivery(self._place, *one) for one in found]
            due = self._place.next_due()
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
        return self._place.evicted.count

    async def aclose(self) -> None:
        """Take no more."""
        self._closed = True
        self.woken.set()
        self._place.members.discard(self)
