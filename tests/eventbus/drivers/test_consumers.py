"""Groups and durable consumers: what each driver that offers them must do."""

import asyncio
import json

import nats
import pytest

from eventbus.channels import Subjects
from eventbus.drivers.base import Capability
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats import consumer as nats_consumer
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConnectionFailed, StreamMismatch
from eventbus.testing.contracts.driver import Inbox

TIMEOUT = 30
ALL = ConsumerSettings(from_start=True)


@pytest.fixture(params=["memory", "nats"])
def make_driver(request, settings, opened):
    """Opened drivers that share a broker, and `make.subjects`."""
    if request.param == "memory":
        broker, subjects = MemoryBroker(), Subjects()
    else:
        subjects = Subjects(settings.namespace)

    def make():
        return opened(MemoryDriver(broker) if request.param == "memory" else NatsDriver(settings))

    make.subjects = subjects
    return make


@pytest.fixture
async def driver(make_driver):
    return await make_driver()


@pytest.fixture
def subjects(make_driver):
    return make_driver.subjects


async def _publish(driver, subjects, *payloads, channel="a.1"):
    for payload in payloads:
        await driver.publish(subjects.event(channel), payload)


async def _take(consumer, count=1):
    taken = []
    async with asyncio.timeout(TIMEOUT):
        while len(taken) < count:
            taken += await consumer.take(count - len(taken))
    return taken


async def _nothing_comes(consumer, seconds=0.3):
    try:
        async with asyncio.timeout(seconds):
            taken = await consumer.take(1)
    except TimeoutError:
        return True
    raise AssertionError(f"{taken[0].delivery} came")


class _Member(Inbox):
    """An inbox that shows what it gets to another one too."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def __call__(self, delivery):
        super().__call__(delivery)
        self.other(delivery)


# Groups


async def test_each_message_goes_to_one_member_of_a_group_and_to_all_outside_it(
    make_driver, subjects
):
    one, other = await make_driver(), await make_driver()
    assert Capability.GROUPS in one.capabilities
    all_of_group = Inbox()
    got = {
        "one": _Member(all_of_group),
        "other": _Member(all_of_group),
        "second group": Inbox(),
        "nobody's": Inbox(),
    }
    subject = f"{subjects.namespace}.live.a.*"
    await one.subscribe_group(subject, "g", got["one"])
    await other.subscribe_group(subject, "g", got["other"])
    await other.subscribe_group(subject, "h", got["second group"])
    await one.subscribe(subject, got["nobody's"])
    await _publish(one, subjects, *(str(n).encode() for n in range(100)))
    await got["second group"].until(100)
    await got["nobody's"].until(100)
    await all_of_group.until(100)
    assert sorted(map(int, all_of_group.payloads)) == list(range(100))
    assert got["one"].deliveries
    assert got["other"].deliveries
    assert list(map(int, got["second group"].payloads)) == list(range(100))
    assert list(map(int, got["nobody's"].payloads)) == list(range(100))


async def test_member_that_leaves_gets_nothing_more_and_the_others_all(make_driver, subjects):
    one, other = await make_driver(), await make_driver()
    got = asyncio.Queue()
    left = []
    leaving = await one.subscribe_group(subjects.live("a.1"), "g", left.append)
    await other.subscribe_group(subjects.live("a.1"), "g", got.put_nowait)
    await leaving.aclose()
    await leaving.aclose()
    await _publish(one, subjects, *(b"x" for _ in range(20)))
    async with asyncio.timeout(TIMEOUT):
        for _ in range(20):
            await got.get()
    assert left == []


# Durable consumers


async def test_message_is_delivered_as_published_with_its_position(driver, subjects):
    consumer = await driver.consume("c", subjects.live("a.1"), ConsumerSettings())
    published = await driver.publish(subjects.event("a.1"), b"x", {"Foo": "bar"})
    (held,) = await _take(consumer)
    assert held.delivery.subject == subjects.live("a.1")
    assert held.delivery.payload == b"x"
    assert held.delivery.headers["Foo"] == "bar"
    assert held.delivery.position == published.position
    assert held.delivery.time.endswith("Z")
    assert held.attempt == 1
    await held.ack()
    assert await _nothing_comes(consumer)


async def test_consumer_gets_only_what_its_filter_matches(driver, subjects):
    consumer = await driver.consume("c", f"{subjects.namespace}.live.a.*", ALL)
    await _publish(driver, subjects, b"no", channel="b.1")
    await _publish(driver, subjects, b"no", channel="a.1.2")
    await _publish(driver, subjects, b"yes")
    (held,) = await _take(consumer)
    assert held.delivery.payload == b"yes"
    await held.ack()
    assert await _nothing_comes(consumer)


@pytest.mark.parametrize(("from_start", "expected"), [(True, b"before"), (False, b"after")])
async def test_new_consumer_begins_at_the_start_or_with_what_comes(
    driver, subjects, from_start, expected
):
    await _publish(driver, subjects, b"before")
    consumer = await driver.consume(
        "c", subjects.live("a.1"), ConsumerSettings(from_start=from_start)
    )
    await _publish(driver, subjects, b"after")
    assert (await _take(consumer))[0].delivery.payload == expected


async def test_consumer_continues_where_it_left_off_when_all_its_members_were_gone(
    make_driver, subjects
):
    first = await make_driver()
    consumer = await first.consume("c", subjects.live("a.1"), ConsumerSettings())
    await _publish(first, subjects, b"1", b"2")
    for held in await _take(consumer, 2):
        await held.ack()
    await consumer.aclose()
    await first.aclose()
    second = await make_driver()
    await _publish(second, subjects, b"3")
    consumer = await second.consume("c", subjects.live("a.1"), ConsumerSettings())
    (held,) = await _take(consumer)
    assert (held.delivery.payload, held.attempt) == (b"3", 1)
    await held.ack()
    assert await _nothing_comes(consumer)


async def test_members_share_the_messages_and_names_do_not(make_driver, subjects):
    one, other = await make_driver(), await make_driver()
    members = [
        await driver.consume("c", subjects.live("a.1"), ConsumerSettings())
        for driver in (one, other)
    ]
    separate = await one.consume("d", subjects.live("a.1"), ConsumerSettings())
    await _publish(one, subjects, *(str(n).encode() for n in range(40)))
    got = Inbox()

    async def work(member):
        while True:
            for held in await member.take(3):
                got(held.delivery)
                await held.ack()

    tasks = [asyncio.create_task(work(member)) for member in members]
    await got.until(40)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(map(int, got.payloads)) == list(range(40))
    assert len(await _take(separate, 40)) == 40


async def test_retried_message_arrives_again_after_its_time_and_is_counted(driver, subjects):
    consumer = await driver.consume("c", subjects.live("a.1"), ConsumerSettings())
    await _publish(driver, subjects, b"x", b"y")
    x, y = await _take(consumer, 2)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await x.retry(0.3)
    await y.retry()
    (again,) = await _take(consumer)
    assert (again.delivery.payload, again.attempt) == (b"y", 2)
    await again.ack()
    (again,) = await _take(consumer)
    assert (again.delivery.payload, again.attempt) == (b"x", 2)
    assert loop.time() - before > 0.25
    assert again.delivery.position == x.delivery.position


async def test_discarded_message_never_arrives_again(driver, subjects):
    consumer = await driver.consume("c", subjects.live("a.1"), ConsumerSettings(ack_wait=0.2))
    await _publish(driver, subjects, b"x")
    await (await _take(consumer))[0].discard()
    assert await _nothing_comes(consumer, 0.6)


async def test_message_not_answered_for_in_time_goes_to_another_member(make_driver, subjects):
    one, other = await make_driver(), await make_driver()
    settings = ConsumerSettings(ack_wait=0.4)
    silent = await one.consume("c", subjects.live("a.1"), settings)
    await _publish(one, subjects, b"x")
    await _take(silent)
    working = await other.consume("c", subjects.live("a.1"), settings)
    (held,) = await _take(working)
    assert (held.delivery.payload, held.attempt) == (b"x", 2)


async def test_member_that_closes_hands_back_what_it_fetched_and_did_not_hand_out(
    make_driver, subjects
):
    one, other = await make_driver(), await make_driver()
    leaving = await one.consume("c", subjects.live("a.1"), ALL)
    await _publish(one, subjects, *(str(n).encode() for n in range(10)))
    (first,) = await _take(leaving)
    await first.ack()
    staying = await other.consume("c", subjects.live("a.1"), ALL)
    await leaving.aclose()
    await leaving.aclose()
    payloads = {held.delivery.payload for held in await _take(staying, 9)}
    assert payloads == {str(n).encode() for n in range(1, 10)}
    with pytest.raises(ConnectionFailed, match="closed"):
        await leaving.take(1)


async def test_take_that_waits_ends_when_the_consumer_is_closed(driver, subjects):
    consumer = await driver.consume("c", subjects.live("a.1"), ConsumerSettings())
    taking = asyncio.create_task(consumer.take(1))
    await asyncio.sleep(0.05)
    await consumer.aclose()
    with pytest.raises(ConnectionFailed, match="closed"):
        async with asyncio.timeout(TIMEOUT):
            await taking


async def test_never_more_is_handed_out_than_was_asked_for(driver, subjects):
    consumer = await driver.consume("c", subjects.live("a.1"), ALL)
    await _publish(driver, subjects, *(str(n).encode() for n in range(20)))
    got = []
    async with asyncio.timeout(TIMEOUT):
        while len(got) < 20:
            taken = await consumer.take(4)
            assert 1 <= len(taken) <= 4
            got += [int(held.delivery.payload) for held in taken]
    assert got == list(range(20))


# JetStream's own


@pytest.fixture
def make_nats_driver(settings, opened):
    return lambda: opened(NatsDriver(settings))


@pytest.fixture
async def nats_driver(make_nats_driver):
    return await make_nats_driver()


@pytest.fixture
async def jetstream(nats_server):
    client = await nats.connect(nats_server.url)
    yield client.jetstream()
    await client.close()


async def _consumer_says(jetstream, stream, condition):
    """Wait until the server says so of consumer `c`: it only answers requests."""
    async with asyncio.timeout(TIMEOUT):
        while not condition(await jetstream.consumer_info(stream, "c")):  # noqa: ASYNC110 - a server is asked
            await asyncio.sleep(0.01)


async def test_deleted_consumer_is_recreated_where_it_was(
    nats_driver, jetstream, monkeypatch, caplog
):
    monkeypatch.setattr(nats_consumer, "_REFRESH_S", 0.0)
    subjects, stream = nats_driver.subjects, f"{nats_driver.subjects.namespace.upper()}_EVENTS"
    consumer = await nats_driver.consume("c", subjects.live("a.1"), ALL)
    await _publish(nats_driver, subjects, b"1", b"2", b"3")
    for held in await _take(consumer, 3):
        await held.ack()
    await _consumer_says(jetstream, stream, lambda info: info.ack_floor.stream_seq == 3)
    taking = asyncio.create_task(_take(consumer, 1))  # looks for its place, and pulls
    await _consumer_says(jetstream, stream, lambda info: info.num_waiting == 1)
    assert await jetstream.delete_consumer(stream, "c")
    await _publish(nats_driver, subjects, b"4")
    (held,) = await taking
    assert held.delivery.payload == b"4"
    assert "recreated" in caplog.text
    info = await jetstream.consumer_info(stream, "c")
    assert info.config.deliver_policy == "by_start_sequence"


async def test_consumer_of_a_recreated_stream_gets_all_of_the_new_one(nats_driver, jetstream):
    subjects, stream = nats_driver.subjects, f"{nats_driver.subjects.namespace.upper()}_EVENTS"
    consumer = await nats_driver.consume("c", subjects.live("a.1"), ConsumerSettings())
    await _publish(nats_driver, subjects, b"old")
    (old,) = await _take(consumer)
    await old.ack()
    taking = asyncio.create_task(_take(consumer, 1))
    await _consumer_says(jetstream, stream, lambda info: info.num_waiting == 1)
    await jetstream.delete_stream(stream)
    async with asyncio.timeout(TIMEOUT):
        await _publish(nats_driver, subjects, b"new")
        (new,) = await taking
    assert new.delivery.payload == b"new"
    assert new.delivery.position.offset == 1
    assert new.delivery.position.epoch != old.delivery.position.epoch


async def test_consumer_outlives_a_restart_of_the_server(settings, own_nats_server):
    driver = NatsDriver(
        type(settings)(nats_url=own_nats_server.url, namespace="r", history_bytes=4 * 1024**2)
    )
    await driver.open()
    try:
        consumer = await driver.consume("c", driver.subjects.live("a.1"), ConsumerSettings())
        await _publish(driver, driver.subjects, b"1")
        await (await _take(consumer))[0].ack()
        taking = asyncio.create_task(_take(consumer, 1))
        await own_nats_server.stop()
        await own_nats_server.start()
        async with asyncio.timeout(TIMEOUT):
            await _publish(driver, driver.subjects, b"2")
            (held,) = await taking
        assert (held.delivery.payload, held.attempt) == (b"2", 1)
        await held.ack()
    finally:
        await driver.aclose()


async def test_consumer_that_is_not_ours_is_refused(nats_driver, jetstream):
    subjects, stream = nats_driver.subjects, f"{nats_driver.subjects.namespace.upper()}_EVENTS"
    await jetstream.add_consumer(
        stream, durable_name="push", deliver_subject="somewhere", ack_policy="explicit"
    )
    with pytest.raises(StreamMismatch, match="not a pull consumer with explicit"):
        await nats_driver.consume("push", subjects.live("a.1"), ConsumerSettings())


async def test_consumer_takes_on_another_filter_and_time(nats_driver, jetstream):
    subjects, stream = nats_driver.subjects, f"{nats_driver.subjects.namespace.upper()}_EVENTS"
    await (await nats_driver.consume("c", subjects.live("a.1"), ConsumerSettings())).aclose()
    consumer = await nats_driver.consume(
        "c", f"{subjects.namespace}.live.b.>", ConsumerSettings(ack_wait=7.0)
    )
    info = await jetstream.consumer_info(stream, "c")
    assert info.config.ack_wait == 7.0
    assert info.config.filter_subject == f"{subjects.namespace}.event.b.>"
    await _publish(nats_driver, subjects, b"x", channel="b.1")
    assert (await _take(consumer))[0].delivery.payload == b"x"


async def test_members_with_different_times_settle_on_the_longest(
    make_nats_driver, jetstream, monkeypatch
):
    monkeypatch.setattr(nats_consumer, "_REFRESH_S", 0.1)
    one, other = await make_nats_driver(), await make_nats_driver()
    subjects, stream = one.subjects, f"{one.subjects.namespace.upper()}_EVENTS"
    subject = subjects.live("a.1")

    async def work(consumer):
        while True:
            for each in await consumer.take(1):
                taken.append(each)
                is_active.set()
                await asyncio.sleep(1.0)  # longer than the shorter time
                await each.ack()

    taken, is_active = [], asyncio.Event()
    long = await one.consume("c", subject, ConsumerSettings(ack_wait=20.0))
    tasks = [asyncio.create_task(work(long))]
    await _publish(one, subjects, b"before")
    await asyncio.wait_for(is_active.wait(), TIMEOUT)
    short = await other.consume("c", subject, ConsumerSettings(ack_wait=0.3))
    tasks.append(asyncio.create_task(work(short)))
    waits = set()
    await _publish(one, subjects, *(b"x" for _ in range(3)))
    async with asyncio.timeout(TIMEOUT):
        while len(taken) < 4:
            waits.add((await jetstream.consumer_info(stream, "c")).config.ack_wait)
            await asyncio.sleep(0.05)
    assert waits == {20.0}
    assert [each.attempt for each in taken] == [1, 1, 1, 1], "none of them ran twice"
    for task in tasks:
        task.cancel()


async def test_member_with_a_longer_time_raises_it(make_nats_driver, jetstream):
    one, other = await make_nats_driver(), await make_nats_driver()
    stream = f"{one.subjects.namespace.upper()}_EVENTS"
    subject = one.subjects.live("a.1")
    short = await one.consume("c", subject, ConsumerSettings(ack_wait=10.0))
    taking = asyncio.create_task(short.take(1))
    await other.consume("c", subject, ConsumerSettings(ack_wait=20.0))
    assert (await jetstream.consumer_info(stream, "c")).config.ack_wait == 20.0
    await short._refresh(TIMEOUT)
    assert (await jetstream.consumer_info(stream, "c")).config.ack_wait == 20.0
    taking.cancel()


async def test_members_with_different_filters_do_not_change_them_back_and_forth(
    make_nats_driver, jetstream
):
    one, other = await make_nats_driver(), await make_nats_driver()
    subjects, stream = one.subjects, f"{one.subjects.namespace.upper()}_EVENTS"
    old = await one.consume("c", subjects.live("a.1"), ConsumerSettings())
    new = await other.consume("c", f"{subjects.namespace}.live.b.>", ConsumerSettings())
    for member in (old, new, old):
        await member._refresh(TIMEOUT)
        info = await jetstream.consumer_info(stream, "c")
        assert info.config.filter_subject == f"{subjects.namespace}.event.b.>"


async def test_publishers_header_called_status_is_not_a_status(nats_driver):
    subjects = nats_driver.subjects
    consumer = await nats_driver.consume("c", subjects.live("a.1"), ALL)
    await nats_driver.publish(subjects.event("a.1"), json.dumps({}).encode(), {"Status": "409"})
    (held,) = await _take(consumer)
    assert held.delivery.headers["Status"] == "409"
