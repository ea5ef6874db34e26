"""Subscriptions that are made in an open bus while its broker is away."""

import asyncio
import os
import signal

import pytest

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import ConnectionFailed, StreamMismatch, SubscribeDenied
from eventbus.events import Event, ShouldBroadcast

KINDS = [{}, {"group": "g"}, {"group": "g", "durable": True}]


class Placed(Event, ShouldBroadcast, name="outage.placed", channel="outage.{number}"):
    number: int


class Received:
    def __init__(self):
        self.numbers = []
        self._arrived = asyncio.Event()

    async def __call__(self, event):
        self.numbers.append(event.number)
        self._arrived.set()

    async def until(self, number):
        async with asyncio.timeout(20):
            while number not in self.numbers:
                self._arrived.clear()
                await self._arrived.wait()


@pytest.fixture
async def bus(own_nats_server):
    """A bus that soon gives up what needs its broker."""
    settings = Settings(
        nats_url=own_nats_server.url, namespace="own", history_bytes=2**22, connect_timeout=0.5
    )
    async with EventBus(settings) as bus:
        yield bus


async def lose_broker(bus, server):
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while bus.driver.is_connected:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    await server.stop()


@pytest.mark.parametrize("options", KINDS)
async def test_subscription_starts_when_the_broker_is_back(bus, own_nats_server, options, caplog):
    received = Received()
    await lose_broker(bus, own_nats_server)
    subscription = bus.subscribe(Placed, received, **options)
    ready = asyncio.create_task(bus.ready())
    async with asyncio.timeout(30):
        while "cannot start yet" not in caplog.text:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    assert not ready.done()
    await own_nats_server.start()
    async with asyncio.timeout(20):
        await ready
        await subscription
    assert "has started, after" in caplog.text
    await bus.dispatch(Placed(number=7))
    await received.until(7)


async def test_subscription_that_waits_for_the_broker_can_be_closed(bus, own_nats_server):
    await lose_broker(bus, own_nats_server)
    subscription = bus.subscribe(Placed, Received(), group="g")
    await asyncio.sleep(0)
    await subscription.aclose()
    again = bus.subscribe(Placed, Received(), group="g")
    await own_nats_server.start()
    async with asyncio.timeout(20):
        await again


class Refusing(MemoryDriver):
    """A driver that refuses the subscriptions of its faults, one after another."""

    def __init__(self, *faults):
        super().__init__(MemoryBroker(Subjects("eb")))
        self.faults = list(faults)

    async def subscribe_group(self, subject, group, handler):
        if self.faults:
            raise self.faults.pop(0)
        return await super().subscribe_group(subject, group, handler)


@pytest.mark.parametrize(
    "fault",
    [SubscribeDenied("no permission", driver="memory"), StreamMismatch("wrong", driver="memory")],
)
async def test_subscription_that_is_refused_has_ended_and_can_be_made_again(fault):
    driver = Refusing(fault)
    async with EventBus(Settings(driver="memory"), driver) as bus:
        received = Received()
        with pytest.raises(type(fault)):
            await bus.subscribe(Placed, received, group="g")
        with pytest.raises(type(fault)):
            await bus.ready()
        await bus.subscribe(Placed, received, group="g")
        await bus.ready()
        await bus.dispatch(Placed(number=1))
        await received.until(1)
        assert received.numbers == [1]


async def test_subscription_made_before_the_bus_opens_fails_with_it():
    bus = EventBus(Settings(driver="memory"), Refusing(ConnectionFailed("away", driver="memory")))
    bus.subscribe(Placed, Received(), group="g")
    with pytest.raises(ConnectionFailed, match="away"):
        await bus.open()
    assert bus.state == "closed"
