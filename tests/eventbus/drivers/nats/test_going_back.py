"""A stream that goes back in time: its store is an earlier copy, and offsets are assigned again."""

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
from eventbus.drivers.nats.direct import StoredSubject
from eventbus.drivers.nats.jetstream import Stream
from eventbus.drivers.nats.subscriptions.subscription import NatsSubscription
from eventbus.errors import ConnectionFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts import Inbox
from tests.eventbus.drivers.nats.conftest import opened, until

pytestmark = pytest.mark.server

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

    async def keep_copy(self, *, again=False):
        """Copy the store as it is now."""
        await self.stop()
        if again:
            shutil.rmtree(self._copy)
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


async def publish(driver, texts, subject=EVENT):
    return [await driver.publish(subject, str(text).encode()) for text in texts]


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


async def go_back(broker, *drivers, new):
    """Restore the copy of the store, publish new messages, and wait for the drivers."""
    losses = [driver.counters["losses"] for driver in drivers]
    await broker.stop()
    broker.put_back()
    await broker.start()
    async with opened(broker.settings) as other:
        await publish(other, [f"new {number}" for number in range(new)])
    for driver, before in zip(drivers, losses, strict=True):
        await until(
            lambda driver=driver, before=before: (
                driver.counters["losses"] > before and driver.is_connected
            )
        )


async def arrived(inbox, count):
    """Wait until messages have arrived; a driver that failed to read them pauses for 5 s."""
    await until(lambda: len(inbox.deliveries) >= count, PATIENCE_S)


def marked(delivery):
    return MarkedPosition(*delivery.position, delivery.time)


async def test_reader_of_what_was_lost_is_not_whole_although_nobody_saw_the_stream_go_back(broker):
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
    """A quiet channel's reader has the position of another channel's message."""
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
    """The message at the position is gone, but later messages precede it."""
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


async def test_connected_clients_get_all_new_messages_under_another_epoch(broker):
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
                # A reader from before, who received nothing that was lost, continues.
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
            assert stayed._stream.identity.epoch == epoch  # and it keeps it


async def test_each_time_that_the_stream_goes_back_has_an_epoch_of_its_own(broker):
    """Also for a process that did not notice the time before, since it had got nothing of that."""
    seen = Inbox()
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    async with opened(broker.settings) as first, opened(broker.settings) as second:
        await first.subscribe(LIVE, seen)
        unseen = Inbox()
        await second.subscribe("own.live.quiet", unseen)
        await publish(first, range(20))
        await arrived(seen, 20)
        await go_back(broker, first, second, new=30)
        await arrived(seen, 50)
        [noticed] = await publish(first, ["noticed"])
        await second.subscribe(LIVE, unseen)
        await broker.keep_copy(again=True)
        lost = await publish(first, range(10))
        await arrived(unseen, 10)
        assert {receipt.position.epoch for receipt in lost} == {noticed.position.epoch}
        await first.aclose()
        await go_back(broker, second, new=30)
        await arrived(unseen, 40)
        assert unseen.deliveries[-1].position.epoch != noticed.position.epoch


async def test_restart_without_a_loss_keeps_the_epoch(broker):
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
        await until(lambda: driver._stream.identity.epoch != before[0].position.epoch)


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


async def test_user_that_may_only_publish_sends_no_forbidden_requests(tmp_path):
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
            assert not driver._stream.identity.is_stale
            assert driver.counters["refusals"] == 0


class Gate:
    """Stops a read of stored messages after its query of the stream, before its messages."""

    def __init__(self, monkeypatch):
        self.reached, self._is_open = asyncio.Event(), asyncio.Event()
        self._stops = False
        for name in ("after", "last"):
            monkeypatch.setattr(StoredSubject, name, self._gated(getattr(StoredSubject, name)))

    def _gated(self, read):
        async def gated(subject, *arguments):
            if self._stops:
                self._stops = False
                self.reached.set()
                await self._is_open.wait()
            return await read(subject, *arguments)

        return gated

    def stop_next(self):
        self._stops = True

    def open(self):
        self._is_open.set()


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


@pytest.fixture
def missed(monkeypatch):
    """A payload that does not reach subscribers."""
    receive = NatsSubscription.receive

    def receive_others(subscription, subject, payload, headers):
        if payload != b"missed":
            receive(subscription, subject, payload, headers)

    monkeypatch.setattr(NatsSubscription, "receive", receive_others)
    return "missed"


@contextlib.asynccontextmanager
async def following(broker, subject, inbox):
    """A driver with a subscriber that has got 20 messages more than the copy of the store has."""
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        await driver.subscribe(subject, inbox)
        await publish(driver, range(80, 100))
        await arrived(inbox, 20)
        yield driver


@pytest.mark.parametrize("new", [3, 30])
@pytest.mark.parametrize("subject", [LIVE, "own.live.>"])
async def test_subscriber_gets_one_history_after_another_if_it_reads_while_they_change(
    broker, gate, missed, subject, new
):
    """What it was reading is of a history that is gone, and so is what waited for that."""
    inbox = Inbox()
    async with following(broker, subject, inbox) as driver:
        epoch = inbox.deliveries[-1].position.epoch
        gate.stop_next()
        await publish(driver, [missed, "pending 0", "pending 1", "pending 2"])
        await asyncio.wait_for(gate.reached.wait(), PATIENCE_S)
        await go_back(broker, driver, new=new)
        gate.open()
        await publish(driver, ["end"])
        await until(lambda: inbox.payloads[-1] == b"end", PATIENCE_S)
        assert inbox.payloads[20:] == [*(b"new %d" % i for i in range(new)), b"end"]
        assert inbox.offsets[20:] == list(range(81, 82 + new))
        after = {delivery.position.epoch for delivery in inbox.deliveries[20:]}
        assert len(after) == 1
        assert epoch not in after


async def test_quiet_subscriber_is_notified_at_once_of_what_it_may_have_missed(broker):
    """It has got nothing that was lost, but something may have been on its way."""
    inbox, gaps = Inbox(), []
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        quiet = await driver.subscribe("own.live.quiet", Inbox())
        quiet.on_gap = lambda: gaps.append(quiet.position)
        await driver.subscribe(LIVE, inbox)
        await publish(driver, range(20))
        await arrived(inbox, 20)
        await go_back(broker, driver, new=3)
        await arrived(inbox, 23)
        assert gaps == [Position(80, inbox.deliveries[-1].position.epoch)]


async def test_lost_message_counts_although_others_have_taken_its_place_since(broker):
    """When the driver reconnects, nothing new has been stored that could prove the loss."""
    inbox, others = Inbox(), Inbox()
    async with opened(broker.settings) as driver:
        await publish(driver, range(80))
    await broker.keep_copy()
    async with opened(broker.settings) as driver:
        await driver.subscribe(LIVE, inbox)
        await driver.subscribe("own.live.b", others)
        async with opened(broker.settings) as publisher:
            await publish(publisher, range(20))
            await arrived(inbox, 20)
        await go_back(broker, driver, new=0)
        await until(lambda: driver._subscriptions.is_verified, PATIENCE_S)
        async with opened(broker.settings) as publisher:
            await publish(publisher, range(30), "own.event.b")
            await arrived(others, 30)
            await publish(publisher, ["new"])
            await until(lambda: inbox.payloads[-1] == b"new", PATIENCE_S)
        assert inbox.deliveries[-1].position.epoch != inbox.deliveries[0].position.epoch
        await until(lambda: others.offsets[-30:] == list(range(81, 111)), PATIENCE_S)


async def test_late_answer_of_an_earlier_history_does_not_count(broker, monkeypatch):
    """It must not give the offsets of that history under the epoch of the next one."""
    reached, is_open = asyncio.Event(), asyncio.Event()
    require_info = Stream.require_info

    async def answer_late(stream, request=None):
        info = await require_info(stream, request)
        if not reached.is_set():
            reached.set()
            await is_open.wait()
        return info

    inbox = Inbox()
    async with following(broker, LIVE, inbox) as driver:
        monkeypatch.setattr(Stream, "require_info", answer_late)
        reading = asyncio.create_task(driver.read(LIVE, after=None, limit=1))
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        await go_back(broker, driver, new=3)
        await arrived(inbox, 23)  # so the driver has noticed
        is_open.set()
        page = await asyncio.wait_for(reading, PATIENCE_S)
        assert page.position == inbox.deliveries[-1].position
        assert page.position.offset == 83
        assert [one.payload for one in page.messages] == [b"new 2"]
        assert page.complete


@pytest.mark.parametrize("kind", ["resume", "pattern", "last"])
async def test_page_is_of_one_history_if_the_stream_goes_back_while_it_is_read(broker, gate, kind):
    inbox = Inbox()
    async with following(broker, LIVE, inbox) as driver:
        kept = (await driver.read(LIVE, after=79, limit=1)).messages[0]
        gate.stop_next()
        if kind == "resume":
            read = driver.resume(LIVE, marked(kept), 500)
        elif kind == "pattern":
            read = driver.read_pattern("own.live.>", marked(kept), limit=500, max_bytes=10**6)
        else:
            read = driver.read(LIVE, after=None, limit=30)
        reading = asyncio.create_task(read)
        await asyncio.wait_for(gate.reached.wait(), PATIENCE_S)
        await go_back(broker, driver, new=30)
        gate.open()
        page = await asyncio.wait_for(reading, PATIENCE_S)
        assert page.complete
        assert page.position.offset == 110
        assert page.position.epoch != kept.position.epoch
        assert [one.payload for one in page.messages] == [b"new %d" % i for i in range(30)]
        assert {one.position.epoch for one in page.messages} == {page.position.epoch}
