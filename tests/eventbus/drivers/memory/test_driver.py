import asyncio

import pytest

from eventbus.channels import Subjects
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import ConnectionFailed, InvalidPattern
from eventbus.testing.contracts.driver import Inbox


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


async def test_broker_forgets_listeners_that_left():
    broker = MemoryBroker()
    driver = await opened(broker)
    subscriptions = [await driver.subscribe(s, Inbox()) for s in ("eb.live.a", "eb.live.>")]
    subscriptions.append(await driver.subscribe_group("eb.live.a", "workers", Inbox()))
    assert broker.listeners.count == 3
    for subscription in subscriptions:
        await subscription.aclose()
    assert broker.listeners.count == 0


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
async def test_invalid_filter_is_refused(subject):
    driver = await opened()
    with pytest.raises(InvalidPattern):
        await driver.subscribe(subject, Inbox())
