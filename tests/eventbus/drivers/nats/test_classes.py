"""Retention classes on NATS: streams of their own, which copy from the stream of events."""

import asyncio
import contextlib
import logging

import msgspec
import nats
import pytest

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.nats.history import ReaderPosition

LONG = "orders.>:50/1h/4MiB"


@contextlib.asynccontextmanager
async def opened(settings):
    driver = NatsDriver(settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.aclose()


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
    answer = await raw.request("$JS.API.STREAM.NAMES", b"{}", timeout=5)
    return sorted(msgspec.json.decode(answer.data)["streams"])


async def class_info(raw):
    (name,) = [name for name in await names(raw) if name.startswith("OWN_EVENTS_")]
    answer = await raw.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=5)
    return msgspec.json.decode(answer.data)


async def publish(driver, subjects, channel, count):
    made = [await driver.publish(subjects.event(channel), b"{}") for _ in range(count)]
    return [one.position.offset for one in made]


async def until_forgotten(raw):
    """Wait until the stream of events has nothing, and the classes are heard of."""
    async with asyncio.timeout(20):
        while True:
            answer = await raw.request("$JS.API.STREAM.INFO.OWN_EVENTS", b"", timeout=5)
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


async def test_what_the_class_has_lost_by_its_count_is_told(brief, subjects, raw):
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


async def test_streams_of_classes_that_are_not_configured_are_told_and_left_alone(
    brief, subjects, raw, caplog
):
    async with opened(brief):
        name = (await class_info(raw))["config"]["name"]
    caplog.clear()
    told = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: told.set() if name in record.getMessage() else None
    logger = logging.getLogger("eventbus.drivers.nats.classes")
    logger.addHandler(handler)
    try:
        async with opened(msgspec.structs.replace(brief, retention="other.*:1/1h/1MiB")):
            async with asyncio.timeout(10):
                await told.wait()
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


async def test_a_class_of_a_stream_that_is_made_anew_is_made_anew(brief, subjects, raw):
    async with opened(brief) as driver:
        await publish(driver, subjects, "orders.42", 10)
        await until_forgotten(raw)
        created = (await class_info(raw))["created"]
        await raw.request("$JS.API.STREAM.DELETE.OWN_EVENTS", b"", timeout=5)
        await raw.request(
            (await class_info(raw))["config"]["name"].join(["$JS.API.STREAM.PURGE.", ""]), b"",
            timeout=5,
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
        await raw.request(f"$JS.API.STREAM.DELETE.{name}", b"", timeout=5)
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


async def test_reading_over_the_seam_under_load_misses_and_doubles_nothing(brief, subjects, raw):
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
