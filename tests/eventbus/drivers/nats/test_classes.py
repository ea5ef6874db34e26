"""Retention classes on NATS: streams of their own, which copy from the stream of events."""

import asyncio
import logging

import msgspec
import nats
import pytest

from eventbus.channels import Pattern, Subjects
from eventbus.config import Settings
from eventbus.drivers.base import Position
from eventbus.drivers.nats.history import ReaderPosition
from tests.eventbus.drivers.nats.conftest import opened

LONG = "orders.>:50/1h/4MiB"


@pytest.fixture
def subjects():
    return Subjects("own")


@pytest.fixture
def brief(own_nats_server):
    """The stream of events forgets after a second, and the class does not."""
    return Settings(
        nats_url=own_nats_server.url,
        namespace="own",
        history_bytes=4 * 1024**2,
        history_seconds=1,
        retention=LONG,
    )


@pytest.fixture
async def raw(own_nats_server):
    client = await nats.connect(own_nats_server.url)
    yield client
    await client.close()


async def names(raw):
    answer = await raw.request("$JS.API.STREAM.NAMES", b"{}", timeout=30)
    return sorted(msgspec.json.decode(answer.data)["streams"])


async def class_info(raw):
    (name,) = [name for name in await names(raw) if name.startswith("OWN_EVENTS_")]
    answer = await raw.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=30)
    return msgspec.json.decode(answer.data)


async def publish(driver, subjects, channel, count):
    made = [await driver.publish(subjects.event(channel), b"{}") for _ in range(count)]
    return [one.position.offset for one in made]


async def until_forgotten(raw):
    """Wait until the event stream is empty, and the classes have reported."""
    async with asyncio.timeout(20):
        while True:
            answer = await raw.request("$JS.API.STREAM.INFO.OWN_EVENTS", b"", timeout=30)
            active = (await class_info(raw))["sources"][0]["active"]
            if not msgspec.json.decode(answer.data)["state"]["messages"] and active >= 0:
                return
            await asyncio.sleep(0.05)


def offsets(page):
    return [one.position.offset for one in page.messages]


async def test_a_class_outlives_the_stream_of_events(brief, subjects, raw):
    async with opened(brief) as driver:
        before = await publish(driver, subjects, "chat", 3)
        given = await publish(driver, subjects, "orders.42", 10)
        live = subjects.live("orders.42")
        await until_forgotten(raw)
        page = await driver.read(live, after=None, limit=100)
        assert offsets(page) == given
        assert page.position.offset == given[-1]
        assert {one.subject for one in page.messages} == {live}
        assert offsets(await driver.read(live, after=None, limit=1)) == given[-1:]
        for index in (0, 4, 9):
            page = await driver.read(live, after=given[index], limit=100)
            assert offsets(page) == given[index + 1 :]
            assert page.complete
        assert offsets(await driver.read(live, after=given[0], limit=3)) == given[1:4]
        assert (await driver.read(live, after=before[0], limit=100)).complete
        others = await driver.read(subjects.live("chat"), after=before[0], limit=100)
        assert (others.messages, others.complete) == ((), False)


async def test_messages_that_a_class_evicted_by_count_are_reported(brief, subjects, raw):
    async with opened(brief) as driver:
        given = await publish(driver, subjects, "orders.42", 60)
        await until_forgotten(raw)
        live = subjects.live("orders.42")
        for index, complete in ((0, False), (8, False), (10, True), (40, True)):
            page = await driver.read(live, after=given[index], limit=100)
            assert offsets(page) == given[max(index + 1, 10) :]
            assert page.complete is complete, index


async def test_the_class_and_what_is_newer_are_one(brief, subjects, raw):
    async with opened(brief) as driver:
        given = await publish(driver, subjects, "orders.42", 10)
        await until_forgotten(raw)
        given += await publish(driver, subjects, "orders.42", 10)
        live = subjects.live("orders.42")
        page = await driver.read(live, after=given[3], limit=100)
        assert offsets(page) == given[4:]
        assert page.complete
        assert offsets(await driver.read(live, after=None, limit=15)) == given[-15:]


async def test_the_last_of_many_messages_are_found_in_either_stream(brief, subjects, raw):
    settings = msgspec.structs.replace(brief, history_seconds=3, retention="orders.>:3000/1h/16MiB")
    async with opened(settings) as driver:
        publishing = (driver.publish(subjects.event("orders.42"), b"{}") for _ in range(3000))
        given = sorted(one.position.offset for one in await asyncio.gather(*publishing))
        live = subjects.live("orders.42")
        for _ in ("of events", "of the class"):
            for limit in (1, 2, 10, 700, 2999, 3000, 5000):
                page = await driver.read(live, after=None, limit=limit)
                assert offsets(page) == given[-limit:], limit
            for index in (0, 1, 1500, 2998):
                page = await driver.read(live, after=given[index], limit=7)
                assert offsets(page) == given[index + 1 : index + 8], index
                assert page.complete
            await until_forgotten(raw)


async def test_streams_of_classes_that_are_not_configured_are_reported_and_left_alone(
    brief, subjects, raw, caplog
):
    async with opened(brief):
        name = (await class_info(raw))["config"]["name"]
    caplog.clear()
    notified = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: notified.set() if name in record.getMessage() else None
    logger = logging.getLogger("eventbus.drivers.nats.classes")
    logger.addHandler(handler)
    try:
        async with opened(msgspec.structs.replace(brief, retention="other.*:1/1h/1MiB")):
            async with asyncio.timeout(30):
                await notified.wait()
    finally:
        logger.removeHandler(handler)
    assert name in await names(raw)
    (record,) = [one for one in caplog.records if name in one.getMessage()]
    assert "nats stream rm" in record.getMessage()


async def test_listeners_that_missed_messages_get_what_there_still_is(brief, subjects):
    """A listener is promised every message; a class bounds what is read of the past."""
    settings = msgspec.structs.replace(
        brief, history_seconds=600, history_messages=100, retention="orders.>:3/1m"
    )
    async with opened(settings) as driver:
        given = await publish(driver, subjects, "orders.42", 10)
        live = subjects.live("orders.42")
        assert offsets(await driver.read(live, after=given[0], limit=100)) == given[-3:]
        page = await driver._reader.read(
            live, after=ReaderPosition(given[0]), limit=100, whole=True
        )
        assert offsets(page) == given[1:]
        assert page.complete


async def test_publishers_that_know_nothing_of_us_are_kept_too(brief, subjects, raw):
    async with opened(brief) as driver:
        for i in range(5):
            await raw.publish("own.event.orders.raw", b'{"i":%d}' % i)
        await raw.flush()
        await until_forgotten(raw)
        page = await driver.read(subjects.live("orders.raw"), after=None, limit=100)
        assert [one.payload for one in page.messages] == [b'{"i":%d}' % i for i in range(5)]


async def test_direct_gets_of_the_stream_of_events_are_its_own(brief, subjects, raw):
    """A filtered mirror would answer half of them, and would not have the message."""
    async with opened(msgspec.structs.replace(brief, history_seconds=600)) as driver:
        given = await publish(driver, subjects, "chat", 3)
        for _ in range(100):
            page = await driver.read(subjects.live("chat"), after=0, limit=100)
            assert offsets(page) == given


async def test_changed_limits_change_the_stream_in_place(brief, subjects, raw):
    async with opened(brief) as driver:
        given = await publish(driver, subjects, "orders.42", 10)
        await until_forgotten(raw)
    created = (await class_info(raw))["created"]
    changed = msgspec.structs.replace(brief, retention="orders.>:200/2h/8MiB")
    async with opened(changed) as driver:
        info = await class_info(raw)
        assert info["created"] == created
        assert info["config"]["max_msgs_per_subject"] == 200 + 1
        assert info["config"]["max_age"] == 7200 * 10**9
        assert info["config"]["max_bytes"] == 8 * 1024**2
        page = await driver.read(subjects.live("orders.42"), after=None, limit=100)
        assert offsets(page) == given


async def test_an_existing_stream_of_events_gets_room_for_the_class(brief, subjects, raw):
    plain = msgspec.structs.replace(brief, retention="", history_messages=5)
    async with opened(plain) as driver:
        await publish(driver, subjects, "orders.42", 5)
    async with opened(msgspec.structs.replace(brief, history_messages=5)) as driver:
        given = await publish(driver, subjects, "orders.42", 20)
        page = await driver.read(subjects.live("orders.42"), after=given[0], limit=100)
        assert offsets(page) == given[1:]
        assert page.complete
        others = await publish(driver, subjects, "chat", 20)
        page = await driver.read(subjects.live("chat"), after=None, limit=100)
        assert offsets(page) == others[-5:]


async def test_a_class_of_a_stream_that_is_recreated_is_recreated_too(brief, subjects, raw):
    async with opened(brief) as driver:
        await publish(driver, subjects, "orders.42", 10)
        await until_forgotten(raw)
        created = (await class_info(raw))["created"]
        await raw.request("$JS.API.STREAM.DELETE.OWN_EVENTS", b"", timeout=30)
        await raw.request(
            (await class_info(raw))["config"]["name"].join(["$JS.API.STREAM.PURGE.", ""]), b"",
            timeout=30,
        )  # fmt: skip
    async with opened(brief) as driver:
        assert (await class_info(raw))["created"] != created
        given = await publish(driver, subjects, "orders.42", 3)
        assert given == [1, 2, 3]
        await until_forgotten(raw)
        page = await driver.read(subjects.live("orders.42"), after=None, limit=100)
        assert offsets(page) == given


async def test_a_class_stream_that_is_removed_comes_back_with_the_next_reading(
    brief, subjects, raw
):
    async with opened(msgspec.structs.replace(brief, history_seconds=600)) as driver:
        given = await publish(driver, subjects, "orders.42", 3)
        name = (await class_info(raw))["config"]["name"]
        await raw.request(f"$JS.API.STREAM.DELETE.{name}", b"", timeout=30)
        page = await driver.read(subjects.live("orders.42"), after=None, limit=100)
        assert offsets(page) == given
        assert (await class_info(raw))["config"]["name"] == name


async def test_a_purged_channel_of_a_class_stays_purged(brief, subjects, raw):
    async with opened(brief) as driver:
        given = await publish(driver, subjects, "orders.42", 5)
        other = await publish(driver, subjects, "orders.43", 5)
        await until_forgotten(raw)
        await driver.purge(subjects.live("orders.42"))
        page = await driver.read(subjects.live("orders.42"), after=given[0], limit=100)
        assert (page.messages, page.complete) == ((), False)
        page = await driver.read(subjects.live("orders.43"), after=None, limit=100)
        assert offsets(page) == other


async def test_reading_over_the_seam_under_load_has_no_gaps_and_no_duplicates(brief, subjects, raw):
    """2,000 messages a second on one channel, of which the stream of events keeps a second."""
    settings = msgspec.structs.replace(brief, retention="orders.>:10000/1h/64MiB")
    async with opened(settings) as driver:
        given = await publish(driver, subjects, "orders.42", 1)

        async def load():
            loop = asyncio.get_running_loop()
            start, sent = loop.time(), 0
            while loop.time() < start + 4:
                due = int((loop.time() - start) * 2000) - sent
                made = await asyncio.gather(
                    *(driver.publish(subjects.event("orders.42"), b"{}") for _ in range(due))
                )
                given.extend(one.position.offset for one in made)
                sent += due
                await asyncio.sleep(0.01)

        publishing = asyncio.create_task(load())
        live, seen, pages = subjects.live("orders.42"), [], 0
        first, first_seen = given[0], 0
        while not publishing.done() or len(seen) < len(given) - 1:
            # From the very first message on: the class's stream, then that of events.
            page = await driver.read(live, after=first + first_seen, limit=500)
            assert page.complete, (first_seen, pages)
            pages += 1
            if page.messages:
                seen += offsets(page)
                first_seen = seen[-1] - first
            await asyncio.sleep(0.12)
        await publishing
        assert seen == sorted(given)[1:]
        every = await driver.read(live, after=first, limit=10_000)
        assert every.complete
        assert offsets(every) == sorted(given)[1:]


# Patterns


async def read_pattern(driver, subjects, pattern, after):
    """The offsets of a page, and whether it is complete."""
    position = Position(after, driver._stream.identity.epoch)
    live = subjects.live_filter(Pattern(pattern))
    page = await driver.read_pattern(live, position, limit=1000, max_bytes=10**6)
    assert page.complete or not page.messages
    return offsets(page), page.complete


async def test_pattern_within_a_class_is_read_from_its_stream(brief, subjects, raw):
    async with opened(brief) as driver:
        (start,) = await publish(driver, subjects, "chat", 1)
        given = []
        for _ in range(3):
            given += await publish(driver, subjects, "orders.42", 1)
            given += await publish(driver, subjects, "orders.eu.7", 1)
        await until_forgotten(raw)
        newer = await publish(driver, subjects, "orders.42", 2)
        for pattern in ("orders.>", "orders.*"):
            wanted = given + newer if pattern == "orders.>" else given[::2] + newer
            assert await read_pattern(driver, subjects, pattern, start) == (wanted, True)
            late = [offset for offset in wanted if offset > given[2]]
            assert await read_pattern(driver, subjects, pattern, given[2]) == (late, True)


async def test_pattern_beyond_a_class_is_incomplete_once_the_event_stream_has_forgotten(
    brief, subjects, raw
):
    async with opened(brief) as driver:
        (start,) = await publish(driver, subjects, "chat", 1)
        given = await publish(driver, subjects, "orders.42", 3)
        assert await read_pattern(driver, subjects, ">", start) == (given, True)
        await until_forgotten(raw)
        for pattern in (">", "*.42"):
            assert await read_pattern(driver, subjects, pattern, start) == ([], False)
        newer = await publish(driver, subjects, "chat", 1)
        assert await read_pattern(driver, subjects, ">", given[-1]) == (newer, True)


async def test_pattern_is_incomplete_if_a_class_keeps_fewer_messages_than_were_missed(
    own_nats_server, subjects
):
    settings = Settings(
        nats_url=own_nats_server.url,
        namespace="own",
        history_bytes=4 * 1024**2,
        retention="orders.vip:2/1h orders.>:50/1h chat.*:100/5s",
    )
    async with opened(settings) as driver:
        (start,) = await publish(driver, subjects, "orders.1", 1)
        given = await publish(driver, subjects, "orders.vip", 2)
        assert await read_pattern(driver, subjects, "orders.*", start) == (given, True)
        await publish(driver, subjects, "orders.vip", 1)
        assert await read_pattern(driver, subjects, "orders.*", start) == ([], False)
        (start,) = await publish(driver, subjects, "chat.1", 1)
        given = await publish(driver, subjects, "chat.1", 1)
        assert await read_pattern(driver, subjects, "chat.*", start) == (given, True)
        async with asyncio.timeout(20):
            while (await read_pattern(driver, subjects, "chat.*", start))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # until the message is older than its class keeps any


async def test_purged_channel_of_a_class_is_a_gap_for_patterns(brief, subjects, raw):
    async with opened(brief) as driver:
        (start,) = await publish(driver, subjects, "orders.1", 1)
        await publish(driver, subjects, "orders.2", 1)
        (last,) = await publish(driver, subjects, "orders.1", 1)
        await until_forgotten(raw)
        assert (await read_pattern(driver, subjects, "orders.*", start))[1]
        await driver.purge(subjects.live("orders.2"))
        assert await read_pattern(driver, subjects, "orders.*", start) == ([], False)
        newer = await publish(driver, subjects, "orders.2", 1)
        assert await read_pattern(driver, subjects, "orders.*", last) == (newer, True)
