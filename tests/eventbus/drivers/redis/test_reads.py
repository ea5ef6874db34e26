"""Reading and subscribing change nothing in Redis; retention is what writers say."""

import asyncio

import pytest

from eventbus.channels import Pattern
from eventbus.testing.contracts.driver import Inbox


@pytest.fixture(params=["server", "cluster"])
def settings(request, redis_settings):
    if request.param == "cluster":
        return request.getfixturevalue("cluster_settings")
    return redis_settings


async def test_reader_with_a_smaller_history_does_not_trim(make_redis, settings, subjects):
    writer = await make_redis(settings, history_messages=1000)
    for _ in range(500):
        await writer.publish(subjects.event("orders.1"), b"x")
    reader = await make_redis(settings, history_messages=100, history_seconds=0.1)
    live = subjects.live("orders.1")
    for limit in (0, 1, 50, 1000):
        await reader.read(live, after=None, limit=limit)
        await reader.read(live, after=0, limit=limit)
    subscription = await reader.subscribe(live, Inbox())
    await subscription.aclose()
    assert await reader.stored(subjects.live_filter(Pattern("orders.*")), 10) == {live: 500}
    assert len((await reader.read(live, after=None, limit=1000)).messages) == 500
    assert len((await writer.read(live, after=0, limit=1000)).messages) == 500


async def test_writers_with_different_histories_keep_what_the_larger_one_asks_for(
    make_redis, settings, subjects
):
    wide = await make_redis(settings, history_messages=200, history_seconds=600)
    narrow = await make_redis(settings, history_messages=5, history_seconds=60)
    for _ in range(30):
        await wide.publish(subjects.event("a"), b"x")
    for _ in range(30):
        await narrow.publish(subjects.event("a"), b"x")
    for driver in (wide, narrow):
        page = await driver.read(subjects.live("a"), after=None, limit=1000)
        assert len(page.messages) == 60


async def test_smaller_history_holds_when_the_larger_ones_messages_are_past_their_age(
    make_redis, redis_settings, subjects
):
    wide = await make_redis(redis_settings, history_messages=200, history_seconds=0.3)
    narrow = await make_redis(redis_settings, history_messages=5, history_seconds=60)
    await wide.publish(subjects.event("a"), b"x")
    async with asyncio.timeout(20):
        while True:
            for _ in range(10):
                await narrow.publish(subjects.event("a"), b"x")
            if len((await narrow.read(subjects.live("a"), after=None, limit=999)).messages) == 5:
                break


async def test_keys_stay_as_they_are_when_they_are_read(
    make_redis, redis_server, namespace, subjects
):
    writer = await make_redis(history_messages=1000, history_seconds=1000)
    for _ in range(20):
        await writer.publish(subjects.event("a"), b"x")
    await writer.subscribe(subjects.live("a"), Inbox())

    async def dump():
        keys = sorted((await redis_server.command("KEYS", f"*{namespace}*")).split())
        values = [await redis_server.command("--no-raw", "DUMP", key) for key in keys]
        expiries = [await redis_server.command("PEXPIRETIME", key) for key in keys]
        return list(zip(keys, values, expiries, strict=True))

    before = await dump()
    reader = await make_redis(history_messages=1, history_seconds=0.1)
    for after in (None, 0, 10, 2**53):
        await reader.read(subjects.live("a"), after=after, limit=5)
        await reader.read(subjects.live("never"), after=after, limit=5)
    for name in ("a", "never", "another"):
        await reader.subscribe(subjects.live(name), Inbox())
    await reader.subscribe(subjects.live_filter(Pattern(">")), Inbox())
    await reader.stored(subjects.live_filter(Pattern(">")), 10)
    await reader.state.entries(">")
    await reader.state.watch(">", lambda key, value: None)
    assert await dump() == before


async def test_reads_and_subscriptions_of_empty_channels_leave_no_keys(
    make_redis, redis_server, namespace, subjects
):
    driver = await make_redis()
    for i in range(50):
        page = await driver.read(subjects.live(f"empty.{i}"), after=None, limit=10)
        assert not page.messages
    assert await redis_server.command("KEYS", f"*{namespace}*") == ""
    subscriptions = await asyncio.gather(
        *(driver.subscribe(subjects.live(f"empty.{i}"), Inbox()) for i in range(50))
    )
    assert len({subscription.position.epoch for subscription in subscriptions}) == 1
    # One key of the namespace, however many channels there are.
    assert await redis_server.command("KEYS", f"*{namespace}*") == f"{{{namespace}.live.}}:e"


async def test_message_past_its_age_is_not_read_although_no_writer_has_removed_it(
    make_redis, redis_server, subjects
):
    driver = await make_redis(history_seconds=0.5)
    live, page = subjects.live("a"), None
    async with asyncio.timeout(40):
        while page is None or len(page.messages) == 8 or not page.messages:
            if page is None or not page.messages:  # nothing yet, or it was not seen in part
                stored = []
                for i in range(8):
                    stored.append(await driver.publish(subjects.event("a"), str(i).encode()))
                    await asyncio.sleep(0.05)  # the ages of messages are what is tested
            page = await driver.read(live, after=None, limit=99)
    kept = [delivery.position for delivery in page.messages]
    assert kept == [result.position for result in stored[-len(kept) :]]


async def test_epoch_of_a_channel_without_messages_is_the_one_of_its_first_message(
    make_redis, settings, subjects
):
    driver = await make_redis(settings)
    inboxes = {name: Inbox() for name in ("a", "b", "c")}
    starts = {}
    for name, inbox in inboxes.items():
        starts[name] = (await driver.subscribe(subjects.live(name), inbox)).position
    for name, inbox in inboxes.items():
        first = await driver.publish(subjects.event(name), b"x")
        assert first.position.epoch == starts[name].epoch
        assert first.position.offset > starts[name].offset
        [delivery] = await inbox.until(1)
        assert (delivery.position, delivery.previous) == (first.position, 0)
        page = await driver.read(subjects.live(name), after=starts[name].offset, limit=9)
        assert (len(page.messages), page.complete) == (1, True)
    assert driver.counters["gaps"] == 0
