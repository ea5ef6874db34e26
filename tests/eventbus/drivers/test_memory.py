import asyncio

import pytest

from eventbus.channels import Subjects
from eventbus.drivers import memory
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import ConnectionFailed, InvalidPattern
from eventbus.testing.driver_contract import Inbox


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(memory, "time", clock)
    return clock


async def opened(broker=None):
    driver = MemoryDriver(broker)
    await driver.open()
    return driver


async def test_driver_that_was_not_opened_is_an_error():
    driver = MemoryDriver()
    assert not driver.is_connected
    with pytest.raises(ConnectionFailed, match="not open"):
        await driver.publish("eb.event.a", b"x")


async def test_drivers_of_different_brokers_do_not_see_each_other():
    one, two, inbox = await opened(), await opened(), Inbox()
    await two.subscribe("eb.live.a", inbox)
    await one.publish("eb.event.a", b"x")
    await two.publish("eb.event.a", b"y")
    await inbox.until(1)
    assert inbox.payloads == [b"y"]


async def test_handler_is_called_later_and_never_from_publish():
    driver, inbox = await opened(), Inbox()
    await driver.subscribe("eb.live.a", inbox)
    await driver.publish("eb.event.a", b"x")
    assert inbox.deliveries == []
    await inbox.until(1)


async def test_previous_is_the_last_message_retained_on_the_subject(clock):
    driver, inbox = await opened(MemoryBroker(history_seconds=10)), Inbox()
    await driver.subscribe("eb.live.a", inbox)
    await driver.publish("eb.event.a", b"1")
    await driver.publish("eb.event.a", b"2")
    clock.now += 10
    await driver.publish("eb.event.a", b"3")
    await inbox.until(3)
    assert [d.previous for d in inbox.deliveries] == [0, 1, 0]
    assert inbox.offsets == [1, 2, 3]


async def test_history_of_a_channel_is_bounded_by_count():
    driver = await opened(MemoryBroker(history_messages=3))
    for i in range(10):
        await driver.publish("eb.event.a", str(i).encode())
    page = await driver.read("eb.live.a", after=None, limit=100)
    assert [d.payload for d in page.messages] == [b"7", b"8", b"9"]
    assert page.position.offset == 10


async def test_channels_whose_messages_expired_are_forgotten(clock):
    broker = MemoryBroker(history_seconds=10)
    driver = await opened(broker)
    for i in range(50):
        await driver.publish(f"eb.event.c{i}", b"x")
    clock.now += 11
    await driver.publish("eb.event.new", b"x")
    assert list(broker._channels) == ["eb.live.new"]
    assert [list(order) for order in broker._order.values()] == [["eb.live.new"]]


async def test_message_ids_are_remembered_for_the_window_only(clock):
    broker = MemoryBroker()
    driver = await opened(broker)
    headers = {"Nats-Msg-Id": "1"}
    assert not (await driver.publish("eb.event.a", b"x", headers)).duplicate
    clock.now += memory.DUPLICATE_WINDOW_S - 1
    assert (await driver.publish("eb.event.a", b"x", headers)).duplicate
    clock.now += 2
    assert not (await driver.publish("eb.event.a", b"x", headers)).duplicate


async def test_remembered_ids_are_bounded(monkeypatch):
    monkeypatch.setattr(memory, "MAX_REMEMBERED_IDS", 5)
    broker = MemoryBroker()
    driver = await opened(broker)
    for i in range(50):
        await driver.publish("eb.event.a", b"x", {"Nats-Msg-Id": str(i)})
    assert len(broker._ids) <= 6


async def test_broker_forgets_listeners_that_left():
    broker = MemoryBroker()
    driver = await opened(broker)
    subscriptions = [await driver.subscribe(s, Inbox()) for s in ("eb.live.a", "eb.live.>")]
    for subscription in subscriptions:
        await subscription.aclose()
    assert not broker._exact
    assert not broker._filters


async def test_listener_may_leave_and_join_from_its_handler():
    driver, late = await opened(), Inbox()
    tasks = []

    def handler(_):
        tasks.append(asyncio.ensure_future(subscription.aclose()))
        tasks.append(asyncio.ensure_future(driver.subscribe("eb.live.a", late)))

    subscription = await driver.subscribe("eb.live.a", handler)
    await driver.publish("eb.event.a", b"1")
    await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    await driver.publish("eb.event.a", b"2")
    await late.until(1)
    assert late.payloads == [b"2"]
    assert len(tasks) == 2


async def test_namespace_decides_what_is_stored():
    driver = await opened(MemoryBroker(Subjects("other")))
    assert await driver.publish("eb.event.a", b"x") is None
    assert (await driver.publish("other.event.a", b"x")).position.offset == 1


@pytest.mark.parametrize("subject", ["", "a..b", "a.>.b", "a b"])
async def test_filter_that_is_none_is_refused(subject):
    driver = await opened()
    with pytest.raises(InvalidPattern):
        await driver.subscribe(subject, Inbox())
