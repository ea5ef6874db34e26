"""A service asks two edge nodes, over each driver, and gives them orders."""

import asyncio
import contextlib
import datetime
import signal
import time

import pytest

from eventbus import sync
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import (
    BusStateError,
    DriverError,
    EventBusError,
    InvalidChannel,
    InvalidPattern,
    NoEdge,
    NotSupported,
)
from eventbus.events import ChannelPosition

CHANNEL = "orders.7"
ROOM = "presence.room"
LIMIT_S = 40.0
"""More than any call may take, whatever is wrong with the broker."""


@pytest.fixture
async def nodes(each_bus, start_edge, know_each_other):
    """Two nodes, each with a connection of its own to the broker if there is one."""
    shared = each_bus if isinstance(each_bus.driver, MemoryDriver) else each_bus.settings
    made = [await start_edge(shared, presence_grace=0.2) for _ in range(2)]
    await know_each_other(*made)
    return made


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)


async def seconds_of(asking):
    began = time.monotonic()
    await asking
    return time.monotonic() - began


def ids(page):
    return [message.id for message in page.messages]


# Position and history


async def test_position_before_a_read_and_then_subscribe_misses_nothing(each_bus, nodes, token):
    written, stop = [], asyncio.Event()

    async def write():
        while not stop.is_set():
            await each_bus.publish(CHANNEL, "changed", {"n": len(written)})
            written.append(len(written))
            await asyncio.sleep(0.001)

    writing = asyncio.create_task(write())
    for turn in range(6):
        position = await each_bus.position(CHANNEL)
        state = len(written)  # what a database would return: all that is written by now
        client = await nodes[turn % 2].connect(token=token(channels=["orders.*"]))
        start = await client.subscribe(CHANNEL, data=position.as_dict())
        assert start["recovered"] is True
        first = (await client.next())["data"]["n"]
        assert first <= state, "a change after the state was read is missing"
        await client.socket.close()
    stop.set()
    await writing


async def test_position_after_a_purge_can_be_resumed_from(each_bus, nodes, token):
    channel = "orders.purged"
    for number in range(3):
        before = await each_bus.publish(channel, "made", {"n": number})
    assert await each_bus.driver.purge(each_bus.subjects.live(channel)) == 3
    position = await each_bus.position(channel)
    assert (position.epoch, position.offset >= before.offset) == (before.epoch, True)
    client = await nodes[0].connect(token=token(channels=["orders.*"]))
    assert (await client.subscribe(channel, data=position.as_dict()))["recovered"] is True
    receipt = await each_bus.publish(channel, "made", {"n": 3})
    assert receipt.offset > position.offset
    assert (await client.next())["data"] == {"n": 3}
    late = await nodes[1].connect(token=token(channels=["orders.*"]))
    assert (await late.subscribe(channel, data=position.as_dict()))["recovered"] is True
    assert (await late.next())["data"] == {"n": 3}


async def test_position_of_a_channel_without_messages_can_be_resumed_from(each_bus, nodes, token):
    position = await each_bus.position("orders.new")
    assert position == await each_bus.position("orders.new")
    assert (await each_bus.position("orders.other")).epoch  # of a channel of its own
    receipt = await each_bus.publish("orders.new", "made", {"n": 1})
    assert (receipt.epoch, receipt.offset > position.offset) == (position.epoch, True)
    client = await nodes[0].connect(token=token(channels=["orders.*"]))
    start = await client.subscribe("orders.new", data=position.as_dict())
    assert start["recovered"] is True
    assert (await client.next())["id"] == receipt.id


async def test_history_is_typed_and_is_read_page_by_page_from_any_position(each_bus):
    empty = await each_bus.history(CHANNEL)
    assert (empty.messages, empty.has_more, empty.complete) == ((), False, True)
    receipts = [await each_bus.publish(CHANNEL, "changed", {"n": n}) for n in range(5)]
    later = await each_bus.history(CHANNEL, since=empty.position)
    assert (ids(later), later.complete) == ([receipt.id for receipt in receipts], True)

    last = await each_bus.history(CHANNEL, limit=2)
    message = last.messages[-1]
    assert [one.data for one in last.messages] == [{"n": 3}, {"n": 4}]
    assert (message.channel, message.event, message.id) == (CHANNEL, "changed", receipts[4].id)
    assert (message.offset, message.epoch) == (receipts[4].offset, receipts[4].epoch)
    assert abs(message.timestamp - datetime.datetime.now(datetime.UTC)).total_seconds() < 60
    assert not last.has_more

    found, since = [], 0
    while True:
        page = await each_bus.history(CHANNEL, limit=2, since=since)
        found += ids(page)
        since = page.position
        if not page.has_more:
            break
    assert found == [receipt.id for receipt in receipts]
    assert ids(await each_bus.history(CHANNEL, since=receipts[3].offset)) == [receipts[4].id]
    assert (await each_bus.history(CHANNEL, since=since)).messages == ()

    foreign = ChannelPosition(receipts[1].offset, "another")
    assert not (await each_bus.history(CHANNEL, since=foreign)).complete


async def test_history_leaves_out_payloads_that_are_not_messages(each_bus):
    await each_bus.driver.publish(each_bus.subjects.event(CHANNEL), b"\xff")
    receipt = await each_bus.publish(CHANNEL, "changed", None)
    page = await each_bus.history(CHANNEL, limit=1, since=0)
    assert (page.messages, page.has_more) == ((), True)
    assert ids(await each_bus.history(CHANNEL, since=page.position)) == [receipt.id]


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_history_with_a_bad_limit_is_refused(each_bus, limit):
    with pytest.raises(ValueError, match="allowed: 1 to 1000"):
        await each_bus.history(CHANNEL, limit=limit)


@pytest.mark.parametrize("driver", ["null", "log"])
async def test_drivers_that_store_nothing_say_so(driver):
    async with EventBus(Settings(driver=driver)) as bus:
        for call in (bus.position(CHANNEL), bus.history(CHANNEL)):
            with pytest.raises(NotSupported, match=f"{driver} stores no messages"):
                await call
        with pytest.raises(NotSupported, match="keeps no state"):
            await bus.unrevoke(user="7")


# Questions to the nodes


async def test_stats_sum_the_nodes_and_their_channels(each_bus, nodes, token):
    for edge in nodes:
        for _ in range(2):
            client = await edge.connect(token=token(channels=["orders.*"]))
            await client.subscribe(CHANNEL)
    await client.subscribe("general")
    stats = await each_bus.stats()
    assert {node.id for node in stats.nodes} == {edge.node.id for edge in nodes}
    assert (stats.connections, stats.missing) == (4, [])
    assert [(one.channel, one.connections) for one in stats.channels] == [
        (CHANNEL, 4), ("general", 1),
    ]  # fmt: skip
    some = await each_bus.stats(pattern="general")
    assert [one.channel for one in some.channels] == ["general"]
    few = await each_bus.stats(limit=1)
    assert (len(few.channels), few.truncated) == (1, True)
    seconds = [await seconds_of(each_bus.stats()) for _ in range(5)]
    assert min(seconds) < 0.9, "a second question waits only until the nodes answer"


async def test_members_of_all_nodes_are_found_once_each(each_bus, nodes, token):
    ada, again = [
        await edge.connect(token=token("ada", name="Ada", channels=["presence.*"]))
        for edge in nodes
    ]
    ben = await nodes[1].connect(token=token("ben", channels=["presence.*"]))
    for client in (ada, again, ben):
        await client.subscribe(ROOM)
    found = await each_bus.members(ROOM)
    assert [(one.user_id, one.info) for one in found.members] == [
        ("ada", {"name": "Ada"}), ("ben", {}),
    ]  # fmt: skip
    assert (found.channel, found.missing) == (ROOM, [])
    await ben.socket.close()
    await until(lambda: _has_members(each_bus, "ada"))
    assert (await each_bus.members("presence.empty")).members == []
    with pytest.raises(InvalidChannel, match="not a presence channel"):
        await each_bus.members("general")


async def _has_members(bus, *user_ids):
    return [one.user_id for one in (await bus.members(ROOM)).members] == list(user_ids)


async def test_many_members_with_large_info_arrive_in_parts(each_bus, nodes, token):
    clients = [
        await nodes[0].connect(token=token(f"user-{n:03}", name="é" * 900, channels=["presence.*"]))
        for n in range(60)
    ]
    for client in clients:
        await client.subscribe(ROOM)
    found = (await each_bus.members(ROOM)).members
    assert [one.user_id for one in found] == [f"user-{n:03}" for n in range(60)]
    assert all(one.info == {"name": "é" * 900} for one in found)


async def test_without_nodes_every_question_fails_in_time(each_bus):
    for ask in (
        each_bus.stats, lambda: each_bus.members(ROOM), lambda: each_bus.disconnect(user="7"),
    ):  # fmt: skip
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(NoEdge, match="no edge node replied over"):
                await ask()


async def test_a_node_that_hangs_is_named_and_is_asked_again_when_it_is_back(
    bus, start_process, start_edge
):
    edge = await start_edge(bus)
    other = await start_process()
    await until(lambda: _node_count(bus, 2))
    (hanging,) = {node.id for node in (await bus.stats()).nodes} - {edge.node.id}
    other.process.send_signal(signal.SIGSTOP)
    try:
        # At once: some seconds later it would not be asked any more.
        answers = await asyncio.gather(
            bus.stats(), bus.members("presence.room"), bus.disconnect(user="7")
        )
        assert [answer.missing for answer in answers] == [[hanging]] * 3
    finally:
        other.process.send_signal(signal.SIGCONT)
    await until(lambda: _node_count(bus, 2))


async def _node_count(bus, count):
    with contextlib.suppress(NoEdge):
        return len((await bus.stats()).nodes) == count
    return False


async def test_nodes_are_found_again_after_the_service_has_lost_the_broker(
    own_nats_server, namespace, start_process
):
    settings = Settings(
        nats_url=own_nats_server.url, namespace=namespace, history_bytes=4 * 1024**2,
        connect_timeout=5.0, publish_timeout=5.0,
    )  # fmt: skip
    async with EventBus(settings) as bus:
        await start_process(NATS_URL=own_nats_server.url)
        await until(lambda: _node_count(bus, 1))
        await own_nats_server.stop()
        calls = (
            bus.stats(), bus.members(ROOM), bus.position(CHANNEL), bus.history(CHANNEL),
            bus.disconnect(user="7"), bus.revoke(user="7"), bus.unrevoke(user="7"),
        )  # fmt: skip
        async with asyncio.timeout(LIMIT_S):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, DriverError) for result in results), results
        await own_nats_server.start()

        async def is_back():
            with contextlib.suppress(EventBusError):
                return len((await bus.stats()).nodes) == 1
            return False

        await until(is_back)


async def test_invalid_questions_are_refused_before_they_are_sent(each_bus):
    for wrong, error in (
        (lambda: each_bus.members("a b"), InvalidChannel),
        (lambda: each_bus.position("a b"), InvalidChannel),
        (lambda: each_bus.history("a b"), InvalidChannel),
        (lambda: each_bus.stats(pattern="a b"), InvalidPattern),
        (lambda: each_bus.stats(limit=0), ValueError),
        (each_bus.disconnect, ValueError),
        (lambda: each_bus.disconnect(user="7", connection="c"), ValueError),
        (lambda: each_bus.disconnect(user=""), ValueError),
        (lambda: each_bus.disconnect(user=7), ValueError),
        (lambda: each_bus.disconnect(channel="a b"), InvalidChannel),
        (lambda: each_bus.disconnect(channel=CHANNEL, reconnect=True), ValueError),
    ):
        with pytest.raises(error):
            await wrong()


# Orders


async def test_disconnect_closes_connections_of_all_nodes_and_nothing_keeps_them_out(
    each_bus, nodes, token
):
    clients = [await edge.connect(token=token("7")) for edge in nodes]
    others = [await edge.connect(token=token("8", channels=["orders.*"])) for edge in nodes]
    done = await each_bus.disconnect(user="7")
    assert (done.count, done.missing) == (2, [])
    assert [await client.closed() for client in clients] == [4003, 4003]
    client = await nodes[0].connect(token=token("7"))
    done = await each_bus.disconnect(
        connection=client.greeting["data"]["connection_id"], reconnect=True
    )
    assert (done.count, await client.closed()) == (1, 4200)
    for other in others:
        await other.subscribe(CHANNEL)
    assert (await each_bus.disconnect(channel=CHANNEL)).count == 2
    for other in others:
        assert (await other.next())["event"] == "eb:unsubscribed"
        await other.subscribe(CHANNEL)
    assert (await each_bus.disconnect(user="nobody")).count == 0


async def test_revoke_keeps_a_user_out_of_all_nodes_until_it_is_undone(each_bus, nodes, token):
    access = token("7")
    clients = [await edge.connect(token=access) for edge in nodes]
    await each_bus.revoke(user="7", lasting=datetime.timedelta(hours=1))
    assert [await client.closed() for client in clients] == [4003, 4003]
    for edge in nodes:
        assert (await edge.refusal(token=access))[0] == 401
    assert await each_bus.unrevoke(user="8") is False
    assert await each_bus.unrevoke(user="7") is True
    assert await each_bus.unrevoke(user="7") is False
    for edge in nodes:
        await until(lambda edge=edge: _accepts(edge, access))


async def _accepts(edge, access):
    return not edge.node.access.revoker.forbids_token(
        await edge.node.access.authenticator.verify(access)
    )


async def test_revoking_a_channel_ends_subscriptions_and_refuses_new_ones(each_bus, nodes, token):
    access = token("7", channels=["orders.*"])
    client = await nodes[1].connect(token=access)
    await client.subscribe(CHANNEL)
    await each_bus.revoke(user="7", channel=CHANNEL, lasting=60)
    assert (await client.next())["event"] == "eb:unsubscribed"
    assert await client.error("subscribe", channel=CHANNEL) == "forbidden"
    await client.subscribe("orders.8")
    assert await each_bus.unrevoke(user="7", channel=CHANNEL)


async def test_revoke_with_issued_before_spares_later_tokens(each_bus, nodes, token):
    client = await nodes[0].connect(token=token("7"))
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    await each_bus.revoke(user="7", issued_before=before)
    assert (await client.ask("ping"))["event"] == "pong"
    await each_bus.revoke(user="7", issued_before=time.time() + 60)
    assert await client.closed() == 4003


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"user": ""}, {"user": 7}, {"user": "7", "jti": "a"}, {"channel": "a b"},
        {"user": "7", "lasting": 0}, {"user": "7", "lasting": -1},
        {"user": "7", "lasting": float("nan")}, {"user": "7", "lasting": float("inf")},
        {"jti": "a", "issued_before": 1.0}, {"user": "7", "issued_before": -1.0},
        {"user": "7", "issued_before": datetime.datetime(2026, 1, 1)},  # noqa: DTZ001 - naive
    ],
)  # fmt: skip
async def test_a_revocation_that_nodes_could_not_read_is_refused(wrong):
    async with EventBus(Settings(driver="memory")) as bus:
        with pytest.raises(ValueError):
            await bus.revoke(**wrong)


async def test_a_node_that_starts_later_knows_the_revocation(bus, start_edge, token):
    access = token("7")
    await bus.revoke(user="7")
    edge = await start_edge(bus)
    assert (await edge.refusal(token=access))[0] == 401


# Sync code


async def test_sync_bus_asks_and_orders_the_same(bus, start_edge, token):
    edge = await start_edge(bus)
    client = await edge.connect(token=token("7", channels=["presence.*"]))
    await client.subscribe(ROOM)

    def work():
        with sync.EventBus(bus.settings) as blocking:
            position = blocking.position(CHANNEL)
            receipt = blocking.publish(CHANNEL, "changed", {"n": 1})
            page = blocking.history(CHANNEL, since=position)
            stats, found = blocking.stats(limit=10), blocking.members(ROOM)
            with pytest.raises(InvalidChannel):
                blocking.members("general")
            count = blocking.disconnect(user="8").count
            blocking.revoke(user="7", lasting=60)
            return receipt, page, stats, found, count, blocking.unrevoke(user="7")

    receipt, page, stats, found, count, undone = await asyncio.to_thread(work)
    assert ids(page) == [receipt.id]
    assert [node.id for node in stats.nodes] == [edge.node.id]
    assert [one.user_id for one in found.members] == ["7"]
    assert (count, undone) == (0, True)
    assert await client.closed() == 4003
    sync.close()


async def test_a_bus_that_is_not_open_refuses_all_of_it():
    bus = EventBus(Settings(driver="memory"))
    for call in (
        bus.position(CHANNEL), bus.history(CHANNEL), bus.members(ROOM), bus.stats(),
        bus.disconnect(user="7"), bus.revoke(user="7"), bus.unrevoke(user="7"), bus.cluster(),
    ):  # fmt: skip
        with pytest.raises(BusStateError):
            await call
