"""The redis driver on one server: the contract, offsets and epochs, ids, reading, frames."""

import asyncio
from functools import partial

import pytest

from eventbus.channels import Pattern, Subjects
from eventbus.drivers.base import Position
from eventbus.drivers.redis import store as redis_store
from eventbus.drivers.redis.wire import MAX_MESSAGE
from eventbus.errors import ConnectionFailed, EncodingError, InvalidChannel, InvalidPattern
from eventbus.messages import HEADER_ID
from eventbus.testing.contracts import DriverContract
from eventbus.testing.contracts.driver import Inbox


class TestContractOnOneServer(DriverContract):
    """Offsets and epochs are each channel's own: see RedisDriver."""

    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, make_redis):
        return make_redis


class TestContractOnACluster(TestContractOnOneServer):
    """Nor is there an order between channels, whose nodes are different servers."""

    @pytest.fixture
    def make_driver(self, make_redis, cluster_settings):
        return partial(make_redis, cluster_settings)

    @pytest.mark.parametrize("root", ["event", "live"])
    async def test_filters_deliver_what_they_match_and_nothing_else(
        self, make_driver, subjects, root
    ):
        driver = await make_driver()
        star, rest, every = Inbox(), Inbox(), Inbox()
        for pattern, inbox in (("a.*", star), ("a.>", rest), (">", every)):
            await driver.subscribe(subjects.live_filter(Pattern(pattern)), inbox)
        for channel in ("a", "a.b", "a.b.c", "b.a"):
            await driver.publish(getattr(subjects, root)(channel), channel.encode())
        await every.until(4)
        await rest.until(2)
        await star.until(1)
        for channel in ("a.b", "b.a"):  # whose nodes have sent all before, once
            await self.settled(driver, every, subjects.live(channel))
        assert sorted(every.payloads) == [b"a", b"a.b", b"a.b.c", b"b.a"]
        assert sorted(p for p in rest.payloads if p.startswith(b"a.")) == [b"a.b", b"a.b.c"]
        assert star.payloads[0] == b"a.b"
        assert star.deliveries[0].subject == subjects.live("a.b")


async def test_namespaces_do_not_receive_or_read_each_others_messages(make_redis, subjects):
    one, two, inbox = await make_redis(), await make_redis(namespace="another"), Inbox()
    await one.subscribe(subjects.live_filter(Pattern(">")), inbox)
    await one.subscribe(subjects.live("room"), inbox)
    await two.publish("another.event.room", b"theirs")
    await one.publish(subjects.event("room"), b"ours")
    await inbox.until(2)
    assert inbox.payloads == [b"ours", b"ours"]
    assert [
        d.payload for d in (await one.read(subjects.live("room"), after=0, limit=9)).messages
    ] == [b"ours"]


async def test_foreign_publish_is_a_bare_payload(make_redis, redis_server, subjects):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("general"), inbox)
    payloads = ['{"hello":1}', "", "eb1 1 2"]
    for payload in payloads:
        await redis_server.command("PUBLISH", subjects.live("general"), payload)
    await inbox.until(3)
    assert inbox.payloads == [payload.encode() for payload in payloads]
    assert all(d.position is None and not d.headers for d in inbox.deliveries)


async def test_every_key_is_of_the_namespace_and_expires(
    make_redis, redis_server, namespace, subjects
):
    driver = await make_redis(history_seconds=30)
    await driver.publish(subjects.event("room"), b"x")
    await driver.subscribe(subjects.live("quiet"), Inbox())
    await driver.read(subjects.live("never"), after=None, limit=1)
    keys = (await redis_server.command("KEYS", f"*{namespace}*")).split()
    lives = {key: int(await redis_server.command("TTL", key)) for key in keys}
    tag, of_all = f"{{{namespace}.live.room}}:", f"{{{namespace}.live.}}:e"
    assert set(keys) == {tag + "s", tag + "m", tag + "i", of_all}
    assert 0 < lives[tag + "s"] <= 30
    assert 120 < lives[tag + "i"] <= 240
    assert 30 < lives[tag + "m"] <= 7 * 86_400
    assert 30 * 86_400 < lives[of_all] <= 366 * 86_400


async def test_epoch_of_a_quiet_channel_stays_when_it_is_asked_for(make_redis, subjects):
    driver = await make_redis()
    first = await driver.subscribe(subjects.live("quiet"), Inbox())
    second = await driver.subscribe(subjects.live("quiet"), Inbox())
    published = await driver.publish(subjects.event("quiet"), b"x")
    assert first.position == second.position == Position(0, published.position.epoch)
    page = await driver.read(subjects.live("quiet"), after=0, limit=9)
    assert (len(page.messages), page.complete) == (1, True)


async def test_ids_that_are_remembered_have_a_bound(
    make_redis, redis_server, subjects, monkeypatch
):
    monkeypatch.setattr(redis_store, "MAX_IDS", 5)
    driver = await make_redis()
    stored = [
        await driver.publish(subjects.event("room"), b"x", {HEADER_ID: f"id-{i}"})
        for i in range(12)
    ]
    first = stored[0].position.offset
    tag = f"{{{subjects.live('room')}}}"
    assert await redis_server.command("HLEN", f"{tag}:i") == "2"
    assert await redis_server.command("HLEN", f"{tag}:j") == "5"
    known = await driver.publish(subjects.event("room"), b"x", {HEADER_ID: "id-5"})
    forgotten = await driver.publish(subjects.event("room"), b"x", {HEADER_ID: "id-4"})
    assert (known.duplicate, known.position.offset) == (True, first + 5)
    assert (forgotten.duplicate, forgotten.position.offset) == (False, first + 12)


async def test_one_id_on_two_channels_is_two_messages(make_redis, subjects):
    driver = await make_redis()
    results = [
        await driver.publish(subjects.event(channel), b"x", {HEADER_ID: "one"})
        for channel in ("a", "b")
    ]
    assert [result.duplicate for result in results] == [False, False]


async def test_messages_past_their_age_are_gone_and_the_page_says_so(make_redis, subjects):
    driver = await make_redis(history_seconds=0.3)
    live = subjects.live("room")
    old = await driver.publish(subjects.event("room"), b"old")
    while (page := await driver.read(live, after=0, limit=9)).messages:
        assert page.complete
    assert not page.complete
    assert page.position == old.position
    assert (await driver.read(live, after=old.position.offset, limit=9)).complete
    new = await driver.publish(subjects.event("room"), b"new")
    assert new.position == Position(old.position.offset + 1, page.position.epoch)
    page = await driver.read(live, after=0, limit=9)
    assert [(d.payload, d.previous) for d in page.messages] == [(b"new", old.position.offset)]
    assert not page.complete


async def test_old_messages_go_while_new_ones_keep_the_stream(make_redis, subjects):
    driver = await make_redis(history_seconds=0.5)
    live, count = subjects.live("busy"), 0
    while count < 3 or len((await driver.read(live, after=None, limit=999)).messages) == count:
        await driver.publish(subjects.event("busy"), b"x")
        count += 1
        await asyncio.sleep(0.05)  # the ages of messages are what is tested
    while True:  # until no message expires between these reads
        await driver.publish(subjects.event("busy"), b"x")
        count += 1
        page = await driver.read(live, after=None, limit=999)
        if not page.messages:
            continue
        offsets = [d.position.offset for d in page.messages]
        gap = await driver.read(live, after=offsets[0] - 2, limit=1)
        rest = await driver.read(live, after=offsets[0] - 1, limit=1)
        if rest.messages and rest.messages[0].position.offset == offsets[0]:
            break
    assert offsets == list(range(offsets[0], page.position.offset + 1))
    assert len(offsets) < count
    assert not gap.complete
    assert rest.complete


async def test_script_flush_harms_nobody(make_redis, redis_server, subjects):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    await redis_server.command("SCRIPT", "FLUSH")
    await driver.publish(subjects.event("room"), b"x")
    await redis_server.command("SCRIPT", "FLUSH")
    assert len((await driver.read(subjects.live("room"), after=0, limit=9)).messages) == 1
    await inbox.until(1)


async def test_message_that_would_disconnect_listeners_is_refused(make_redis, subjects):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    for subject in (subjects.event("room"), subjects.live("room")):
        with pytest.raises(EncodingError, match="8388608 bytes"):
            await driver.publish(subject, bytes(MAX_MESSAGE))
        await driver.publish(subject, bytes(MAX_MESSAGE - 10))
    await inbox.until(2)


@pytest.mark.parametrize("subject", ["", "eb.event.", "eb.event.a..b", "eb.live.*", "a b", "é"])
async def test_bad_subjects_never_reach_the_server(make_redis, subject):
    driver = await make_redis()
    with pytest.raises(InvalidChannel):
        await driver.publish(subject, b"x")
    with pytest.raises(InvalidChannel):
        await driver.read(subject, after=None, limit=1)


@pytest.mark.parametrize("subject", ["", "eb.live.", "eb.>.a", "eb.live.a\r\nQUIT", "eb.[ab]"])
async def test_bad_filters_never_reach_the_server(make_redis, subject):
    driver = await make_redis()
    with pytest.raises(InvalidPattern):
        await driver.subscribe(subject, Inbox())


async def test_driver_opens_once(make_redis):
    driver = await make_redis()
    with pytest.raises(ConnectionFailed, match="not new"):
        await driver.open()


async def test_unsubscribed_channels_are_not_sent(make_redis, redis_server, subjects):
    driver = await make_redis()
    subscriptions = [await driver.subscribe(subjects.live("room"), Inbox()) for _ in range(2)]
    pattern = await driver.subscribe(subjects.live_filter(Pattern("room.*")), Inbox())
    numsub = ("PUBSUB", "NUMSUB", subjects.live("room"))
    assert (await redis_server.command(*numsub)).split()[-1] == "1"
    for subscription in (*subscriptions, pattern):
        await subscription.aclose()
    again = await driver.subscribe(subjects.live("other"), Inbox())  # after the earlier request
    assert (await redis_server.command(*numsub)).split()[-1] == "0"
    await again.aclose()
    assert driver._listeners._listeners == {}


async def test_joining_and_leaving_at_once_ends_as_the_last_call_says(make_redis, subjects):
    driver, inboxes = await make_redis(), []
    for _ in range(20):
        inboxes.append(Inbox())
        subscription = await driver.subscribe(subjects.live("room"), inboxes[-1])
        await subscription.aclose()
    inboxes.append(Inbox())
    await driver.subscribe(subjects.live("room"), inboxes[-1])
    await driver.publish(subjects.event("room"), b"x")
    await inboxes[-1].until(1)
    assert not any(inbox.deliveries for inbox in inboxes[:-1])
