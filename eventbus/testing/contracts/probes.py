"""Handlers that record deliveries and state changes, for the tests of drivers."""

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

import pytest

from eventbus.channels import Subjects
from eventbus.drivers import Capability, Delivery, Driver
from eventbus.messages import new_id

__all__ = ["TIMEOUT_S", "Changes", "Contract", "Inbox", "MakeDriver"]


MakeDriver = Callable[[], Awaitable[Driver]]
TIMEOUT_S: Final = 30.0


class Inbox:
    """A handler that records its deliveries."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._arrived = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._arrived.set()

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of all deliveries, in order."""
        return [delivery.payload for delivery in self.deliveries]

    @property
    def offsets(self) -> list[int]:
        """The offsets of the deliveries that have one."""
        return [d.position.offset for d in self.deliveries if d.position is not None]

    async def until(self, count: int) -> list[Delivery]:
        """Wait for `count` deliveries, and return all."""
        await self.until_payload(lambda payloads: len(payloads) >= count)
        return self.deliveries

    async def until_payload(self, enough: Callable[[list[bytes]], bool]) -> None:
        """Wait until `enough` returns True for the payloads."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not enough(self.payloads):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"only {len(self.deliveries)} messages arrived") from None


class Changes:
    """A watcher that records state changes."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes | None]] = []
        self._arrived = asyncio.Event()

    def __call__(self, key: str, value: bytes | None) -> None:
        self.received.append((key, value))
        self._arrived.set()

    async def until(self, key: str, value: bytes | None) -> None:
        """Wait for a change."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while (key, value) not in self.received:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{key} {value!r} is not in {self.received}") from None


class Contract:
    """Base class of the suites. Subclasses define `make_driver`, and `subjects` if it differs."""

    @pytest.fixture
    def subjects(self) -> Subjects:
        """The namespace of the drivers under test."""
        return Subjects()

    async def driver_with(self, capability: Capability, make_driver: MakeDriver) -> Driver:
        """A driver; skips the test if it does not have the capability."""
        driver = await make_driver()
        if capability not in driver.capabilities:
            pytest.skip(f"the driver {driver.name} does not have {capability.name}")
        return driver

    async def settled(self, driver: Driver, inbox: Inbox, subject: str) -> None:
        """Wait for everything published on `driver` so far, by publishing one more message."""
        last = new_id().encode()
        await driver.publish(subject, last)
        await inbox.until_payload(lambda payloads: last in payloads)
        inbox.deliveries[:] = [d for d in inbox.deliveries if d.payload != last]
