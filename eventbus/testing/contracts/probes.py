"""What the contracts of drivers are tested with: handlers that keep what they get."""

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

import pytest

from eventbus.channels import Subjects
from eventbus.drivers.base import (
    Delivery,
    Driver,
)
from eventbus.messages import new_id

__all__ = ["TIMEOUT_S", "Changes", "Contract", "Inbox", "MakeDriver"]


MakeDriver = Callable[[], Awaitable[Driver]]
TIMEOUT_S: Final = 10.0


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._arrived = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        """What came, in its order."""
        return [delivery.payload for delivery in self.deliveries]

    @property
    def offsets(self) -> list[int]:
        """The offsets of what came and has one."""
        return [d.position.offset for d in self.deliveries if d.position is not None]

    async def until(self, count: int) -> list[Delivery]:
        """All deliveries, as soon as there are `count` of them."""
        await self.until_payload(lambda payloads: len(payloads) >= count)
        return self.deliveries

    async def until_payload(self, enough: Callable[[list[bytes]], bool]) -> None:
        """Wait until what came is enough."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not enough(self.payloads):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"only {len(self.deliveries)} messages came") from None


class Changes:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes | None]] = []
        self._arrived = asyncio.Event()

    def __call__(self, key: str, value: bytes | None) -> None:
        self.told.append((key, value))
        self._arrived.set()

    async def until(self, key: str, value: bytes | None) -> None:
        """Wait until that change was told."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while (key, value) not in self.told:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{key} {value!r} is not in {self.told}") from None


class Contract:
    """A suite to inherit; a subclass gives `make_driver`, and `subjects` where it differs."""

    @pytest.fixture
    def subjects(self) -> Subjects:
        """The namespace of the drivers under test."""
        return Subjects()

    async def settled(self, driver: Driver, inbox: Inbox, subject: str) -> None:
        """Wait until what was published before on `driver` has come, by one message more."""
        last = new_id().encode()
        await driver.publish(subject, last)
        await inbox.until_payload(lambda payloads: last in payloads)
        inbox.deliveries[:] = [d for d in inbox.deliveries if d.payload != last]
