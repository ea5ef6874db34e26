"""A stream that goes back in time: its store is a copy of before, and offsets are given again."""

import asyncio
import contextlib
import shutil

import pytest
from msgspec.structs import replace

from eventbus.config import Settings
from eventbus.drivers.base import Position
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.marks import (
    MarkedPosition,
    read_from,
)
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.nats.jetstream import Stream
from eventbus.errors import ConnectionFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts import Inbox

EVENT, LIVE = "own.event.a", "own.live.a"
PATIENCE_S = 30.0


class Broker:
    """A nats-server whose store is copied, and put back later."""

    def __init__(self, folder):
        self._data, self._copy = folder / "nats", folder / "copy"
        self._server = NatsServer(self._data)

    async def start(self):
        await self._server.start()
        self.settings = Settings(
            nats_url=self._server.url,
            namespace="own",
            history_bytes=4 * 1024**2,
            history_messages=200,
        )

    async def stop(self):
        await self._server.stop()

    async def keep_copy(self):
        """Copy the store as it is now."""
        await self.stop()
        shutil.copytree(self._data / "jetstream", self._copy)
        await self.start()

    def put_back(self):
        """Make the store of the stopped server what it was when it was copied."""
        shutil.rmtree(self._data / "jetstream")
        shutil.copytree(self._copy, self._data / "jetstream")


@pytest.fixture
async def broker(tmp_path):
    made = Broker(tmp_path)
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def opened(settings):
    driver = NatsDriver(settings)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.aclose()


async def publish(driver, texts, subject=EVENT):
    return [await driver.publish(subject, str(text).encode()) for text in texts]


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


async def filled(broker):
    """80 messages, a copy of that, and 20 more: all that a reader has got."""
    inbox = Inbox()
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        await driver.subscribe(LIVE, inbox)
        await publish(driver, range(80, 100))
        await inbox.until(20)
    return inbox.deliveries


def marked(delivery):
    return MarkedPosition(*delivery.position, delivery.time)


async def test_reader_of_what_was_lost_is_not_whole_though_nobody_saw_the_stream_go_back(broker):
    read = await filled(broker)
    assert read[-1].position.offset == 100
    await broker.stop()
    broker.put_back()
    await broker.start()
    async with opened(broker.settings) as driver:
        sent = await publish(driver, range(30))
        assert sent[-1].position.offset == 110
    async with opened(broker.settings) as driver:  # one that has not even seen the 30 come
        page = await driver.resume(LIVE, marked(read[-1]), 500)
        assert not page.complete
        assert page.position == sent[-1].position
        kept = await driver.read(LIVE, after=79, limit=1)  # before it went back
        page = await driver.resume(LIVE, marked(kept.messages[0]), 500)
        assert page.complete
        assert len(page.messages) == 30


async def test_end_of_the_stream_that_was_lost_is_known_by_its_time(broker):
    """A quiet channel's reader stands at another channel's message."""
    async with opened(broker.settings) as driver:
        await publish(driver, range(80), "own.event.busy")
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        await publish(driver, range(20), "own.event.busy")
        subscription = await driver.subscribe(LIVE, Inbox())
        position = subscription.position
        assert position.offset == 100
        page = await driver.resume(LIVE, position, 500)
        assert page.complete
    await broker.stop()
    broker.put_back()
    await broker.start()
    async with opened(broker.settings) as driver:
        await publish(driver, range(5))  # of the reader's channel, at 81 to 85
        await publish(driver, range(25), "own.event.busy")
        assert not (await driver.resume(LIVE, position, 500)).complete


async def test_lost_end_is_known_where_its_offsets_are_evicted_again(broker):
    """What stands at the position is gone, but later messages stand before it."""
    small = replace(broker.settings, history_messages=10)
    async with opened(small) as driver:
        await publish(driver, range(80), "own.event.busy")
    await broker.keep_copy()
    small = replace(broker.settings, history_messages=10)
    async with opened(small) as driver:
        await publish(driver, range(20), "own.event.busy")
        position = (await driver.subscribe(LIVE, Inbox())).position
    await broker.stop()
    broker.put_back()
    await broker.start()
    small = replace(broker.settings, history_messages=10)
    async with opened(small) as driver:
        await publish(driver, range(5))
        await publish(driver, range(50), "own.event.busy")
        assert not (await driver.resume(LIVE, position, 500)).complete


async def test_those_who_stayed_get_all_that_is_new_under_another_epoch(broker):
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    one, every, gaps = Inbox(), Inbox(), []
    async with opened(broker.settings) as stayed:
        await stayed.subscribe(LIVE, one)
        subscription = await stayed.subscribe("own.live.>", every)
        subscription.on_gap = lambda: gaps.append(len(every.deliveries))
        sent = await publish(stayed, range(20))
        await one.until(20)
        await every.until(20)
        await broker.stop()
        broker.put_back()
        await broker.start()
        async with opened(broker.settings) as driver:
            await publish(driver, [f"new {i}" for i in range(30)])
            await one.until(50)
            await every.until(50)
            for inbox in (one, every):
                assert inbox.payloads[20:] == [b"new %d" % i for i in range(30)]
                assert inbox.offsets[20:] == list(range(81, 111))
            epochs = {delivery.position.epoch for delivery in one.deliveries[20:]}
            assert len(epochs) == 1
            assert sent[0].position.epoch not in epochs
            assert gaps == [20]
            # By the stream itself, others know the epoch too.
            [receipt] = await publish(stayed, ["last"])
            async with opened(broker.settings) as later:
                page = await later.read(LIVE, after=None, limit=1)
                assert page.messages[0].position == receipt.position
                assert {receipt.position.epoch} == epochs
                # Who read before it went back, and nothing that was lost, goes on.
                kept = (await later.read(LIVE, after=49, limit=1)).messages[0]
                old = MarkedPosition(50, sent[0].position.epoch, kept.time)
                assert (await later.resume(LIVE, old, 500)).complete
                assert not (await later.resume(LIVE, Position(*old), 500)).complete


async def test_stream_that_went_back_while_nobody_could_change_it_is_known_to_each_process(
    broker, monkeypatch
):

    async def denied(self, config):
        raise ConnectionFailed("no permission to publish", driver="nats")

    monkeypatch.setattr(Stream, "update", denied)
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    inbox = Inbox()
    async with opened(broker.settings) as stayed:
        await stayed.subscribe(LIVE, inbox)
        await publish(stayed, range(20))
        await inbox.until(20)
        await broker.stop()
        broker.put_back()
        await broker.start()
        async with opened(broker.settings) as driver:
            await publish(driver, range(30))
            await inbox.until(50)
            assert inbox.offsets[20:] == list(range(81, 111))
            epoch = inbox.deliveries[-1].position.epoch
            assert epoch != inbox.deliveries[0].position.epoch
            # Another process has another name for it: a mark is known under either.
            assert (await driver.resume(LIVE, marked(inbox.deliveries[30]), 500)).complete
            assert not (await driver.resume(LIVE, marked(inbox.deliveries[19]), 500)).complete
            await stayed._stream.state()
            assert stayed._stream.epoch == epoch  # and it keeps it


async def test_restart_without_a_loss_is_no_other_epoch(broker):
    inbox = Inbox()
    async with opened(broker.settings) as driver:
        await driver.subscribe(LIVE, inbox)
        first = await publish(driver, range(10))
        for _ in range(2):
            await broker.stop()
            await broker.start()
            first += await publish(driver, range(10))
        await inbox.until(30)
        assert {delivery.position.epoch for delivery in inbox.deliveries} == {
            first[0].position.epoch
        }
        assert driver.counters["gaps"] == 0


async def test_durable_consumer_gets_what_is_new_in_a_stream_that_went_back(broker):
    settings = ConsumerSettings(from_start=True)

    async def take(consumer, count):
        taken = []
        async with asyncio.timeout(PATIENCE_S):
            while len(taken) < count:
                for held in await consumer.take(count - len(taken)):
                    await held.ack()
                    taken.append(held.delivery)
        return taken

    async with opened(broker.settings) as driver:
        consumer = await driver.consume("group", LIVE, settings)
        await publish(driver, range(80))
        await take(consumer, 80)
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        consumer = await driver.consume("group", LIVE, settings)
        await publish(driver, range(20))
        before = await take(consumer, 20)
        await broker.stop()
        broker.put_back()
        await broker.start()
        async with opened(broker.settings) as other:
            await publish(other, [f"new {i}" for i in range(30)])
        new = {delivery.payload for delivery in await take(consumer, 30)}
        assert new == {b"new %d" % i for i in range(30)}
        await until(lambda: driver._stream.epoch != before[0].position.epoch)


async def test_position_of_other_drivers_is_checked_by_its_message(broker):
    """Without a check of the driver's own, the message at the position is read and compared."""
    async with opened(broker.settings) as driver:

        class Plain:
            read = driver.read

        await publish(driver, range(5))
        third = (await driver.read(LIVE, after=2, limit=1)).messages[0]
        assert (await read_from(Plain(), LIVE, marked(third), 9)).complete
        other = MarkedPosition(*third.position, "2020-01-01T00:00:00Z")
        assert not (await read_from(Plain(), LIVE, other, 9)).complete
        foreign = MarkedPosition(3, "another", third.time)
        assert not (await read_from(Plain(), LIVE, foreign, 9)).complete


async def test_class_that_keeps_more_than_its_origin_knows_what_was_lost(broker):
    """The messages of a class's stream are copies, and have later times than their originals."""

    def settings():
        return replace(broker.settings, retention="a:200/1h/4MiB", history_seconds=1)

    async def expired(driver):
        """Wait until the stream of events has nothing more, and its copy all."""
        async with asyncio.timeout(PATIENCE_S):
            while (await driver._stream.of_subject(EVENT)).messages:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async with opened(settings()) as driver:
        await publish(driver, range(80))
        await expired(driver)
    await broker.keep_copy()
    inbox = Inbox()
    async with opened(settings()) as driver:
        await driver.subscribe(LIVE, inbox)
        await publish(driver, range(20))
        await inbox.until(20)
        await expired(driver)
    read = inbox.deliveries
    async with opened(settings()) as driver:
        page = await driver.resume(LIVE, marked(read[4]), 500)
        assert (len(page.messages), page.complete) == (15, True)
    await broker.stop()
    broker.put_back()
    await broker.start()
    async with opened(settings()) as driver:
        await publish(driver, range(30))
        await expired(driver)
    async with opened(settings()) as driver:
        assert not (await driver.resume(LIVE, marked(read[-1]), 500)).complete
        kept = (await driver.read(LIVE, after=69, limit=1)).messages[0]
        page = await driver.resume(LIVE, marked(kept), 500)
        assert (len(page.messages), page.complete) == (40, True)


async def test_user_that_may_only_publish_asks_for_nothing_that_it_may_not(tmp_path):
    allowed = [f"{EVENT}", "_INBOX.publisher.>", "$JS.API.STREAM.INFO.*"]
    users = [
        {"user": "admin", "password": "pw"},
        {
            "user": "publisher",
            "password": "pw",
            "permissions": {
                "publish": {"allow": allowed},
                "subscribe": {"allow": ["_INBOX.publisher.>"]},
            },
        },
    ]
    config = {"authorization": {"users": users}}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        url = server.url.replace("://", "://{}:pw@")
        settings = Settings(nats_url=url.format("admin"), namespace="own", history_bytes=2**22)
        async with opened(settings) as driver:
            await publish(driver, range(3))
        limited = replace(
            settings, nats_url=url.format("publisher"), nats_inbox_prefix="_INBOX.publisher"
        )
        async with opened(limited) as driver:
            await publish(driver, range(3))
            for losses in (1, 2):
                await driver._connection.client.force_reconnect()
                await until(
                    lambda losses=losses: (
                        driver.counters["losses"] == losses and driver.is_connected
                    )
                )
                [sent] = await publish(driver, ["after"])
            assert sent.position.offset == 8
            assert not driver._stream.is_stale
            assert driver.counters["refusals"] == 0
