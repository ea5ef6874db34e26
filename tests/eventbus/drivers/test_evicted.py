"""Durable groups that lose messages, since the history is too small, say so."""

import asyncio

import msgspec
import pytest

from eventbus.channels import Subjects
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver

GROUP = ConsumerSettings(30.0)


@pytest.fixture(params=["nats", "memory"])
def make_driver(request, settings, namespace):
    """Makes a driver whose channels keep so many messages."""

    def make(messages):
        if request.param == "nats":
            return NatsDriver(msgspec.structs.replace(settings, history_messages=messages))
        return MemoryDriver(MemoryBroker(Subjects(namespace), history_messages=messages))

    return make


async def publish(driver, namespace, channel, count):
    for n in range(count):
        await driver.publish(f"{namespace}.event.{channel}", b'{"n":%d}' % n)


async def take(consumer, count):
    taken = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            for held in await consumer.take(count - len(taken)):
                taken.append(held.delivery.payload)
                await held.ack()
    return taken


async def test_group_that_was_away_for_too_long_says_which_channel_it_missed(
    make_driver, opened, namespace, caplog
):
    driver = await opened(make_driver(5))
    group = await driver.consume("group", f"{namespace}.live.a.*", GROUP)
    await publish(driver, namespace, "a.x", 1)
    await publish(driver, namespace, "a.y", 1)
    await take(group, 2)
    assert group.evicted == 0
    await group.aclose()
    await publish(driver, namespace, "a.x", 12)
    await publish(driver, namespace, "a.y", 3)
    await publish(driver, namespace, "other", 12)
    group = await driver.consume("group", f"{namespace}.live.a.*", GROUP)
    before = group.evicted
    # A NATS stream keeps one message more than readers get.
    first = 6 if isinstance(driver, NatsDriver) else 7
    expected = [b'{"n":%d}' % n for n in (*range(first, 12), 0, 1, 2)]
    assert await take(group, len(expected)) == expected
    assert before in {0, 1}
    assert group.evicted == 1
    (line,) = [r.getMessage() for r in caplog.records if r.name.endswith("drivers.consumers")]
    assert "group" in line
    assert f"{namespace}.live.a.x" in line
    assert "BROADCAST_HISTORY_MESSAGES" in line
    await group.aclose()


@pytest.mark.parametrize("messages", [1, 3])
async def test_group_that_missed_nothing_says_nothing(make_driver, opened, namespace, messages):
    driver = await opened(make_driver(messages))
    group = await driver.consume("group", f"{namespace}.live.a.*", GROUP)
    await publish(driver, namespace, "a.x", 1)
    await take(group, 1)
    await group.aclose()
    # Of each channel as many as it may have, the last ones of others between them.
    for channel in ("a.x", "b", "a.y", "a.z", "c"):
        await publish(driver, namespace, channel, messages)
    group = await driver.consume("group", f"{namespace}.live.a.*", GROUP)
    await take(group, 3 * messages)
    assert group.evicted == 0
    await group.aclose()


async def test_group_that_keeps_up_with_a_small_history_says_nothing(
    make_driver, opened, namespace
):
    driver = await opened(make_driver(2))
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    for _ in range(20):
        await publish(driver, namespace, "a", 2)
        if isinstance(driver, NatsDriver):
            group.invalidate()  # looks at once, rather than after ten seconds
        await take(group, 2)
    assert group.evicted == 0
    await group.aclose()


async def test_group_that_fell_behind_says_so_with_the_next_message(
    make_driver, opened, namespace, caplog
):
    driver = await opened(make_driver(3))
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    await publish(driver, namespace, "a", 1)
    await take(group, 1)
    await publish(driver, namespace, "a", 12)
    await take(group, 3)
    async with asyncio.timeout(20):
        while not group.evicted:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)
    assert group.evicted == 1
    assert f"messages of {namespace}.live.a " in caplog.text
    await group.aclose()


async def test_group_that_waited_for_room_and_missed_nothing_says_nothing(
    opened, settings, namespace
):
    driver = await opened(NatsDriver(msgspec.structs.replace(settings, history_messages=3)))
    group = await driver.consume("group", f"{namespace}.live.a.*", GROUP)
    await publish(driver, namespace, "a.x", 1)
    await take(group, 1)
    await publish(driver, namespace, "b", 12)  # most of which are gone
    await publish(driver, namespace, "a.x", 2)
    await publish(driver, namespace, "a.y", 3)
    await take(group, 5)
    await group._tasks.join(20)
    assert group.evicted == 0
    await group.aclose()


async def test_group_reports_events_evicted_by_age(opened, settings, namespace, caplog):
    settings = msgspec.structs.replace(settings, history_seconds=4.0)
    driver = await opened(NatsDriver(settings))
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    await publish(driver, namespace, "a", 1)
    await take(group, 1)
    await group.aclose()
    await publish(driver, namespace, "a", 3)
    async with asyncio.timeout(20):
        while await driver.stored(f"{namespace}.live.a", 10):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.1)
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    assert group.evicted == 1
    assert driver.counters["evicted"] == 1
    assert "by age or size" in caplog.text
    await group.aclose()


async def test_message_that_is_gone_before_its_next_try_is_counted(opened, settings, namespace):
    driver = await opened(NatsDriver(msgspec.structs.replace(settings, history_messages=3)))
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    await publish(driver, namespace, "a", 1)
    async with asyncio.timeout(20):
        (held,) = await group.take(1)
    await held.retry(4.0)
    await publish(driver, namespace, "a", 4)  # the stream keeps one more than readers get
    await take(group, 4)
    async with asyncio.timeout(20):
        while not group.evicted:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)
    assert group.evicted == 1
    await group.aclose()


async def test_message_that_waits_for_its_next_try_is_not_counted(opened, settings, namespace):
    driver = await opened(NatsDriver(settings))
    group = await driver.consume("group", f"{namespace}.live.a", GROUP)
    await publish(driver, namespace, "a", 1)
    async with asyncio.timeout(20):
        (held,) = await group.take(1)
        await held.retry(0.5)
        (again,) = await group.take(1)
    assert again.attempt == 2
    await again.ack()
    assert group.evicted == 0
    await group.aclose()
