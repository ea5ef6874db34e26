"""Patterns resume: exactly the missed messages of all channels, in order, then live ones; or a
clear refusal."""

import asyncio
import json
import random

import aiohttp
import msgspec
import pytest

from eventbus.attempts import Backoff
from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus.drivers.base import Capability, Position
from eventbus.drivers.marks import MarkedPosition
from eventbus.errors import ConnectionFailed
from eventbus_edge.access.rules import AUTHENTICATED, ChannelRules, Rule
from eventbus_edge.delivery import history as history_module

RECONNECT = "eventbus.drivers.nats.connection.connection._SERVER_BACKOFF"


@pytest.fixture
def kept():
    """How many messages of a channel are kept."""
    return 100


@pytest.fixture(params=["memory", "nats"])
async def bus(request, settings, kept, clients, runners):
    if request.param == "memory":
        settings = msgspec.structs.replace(settings, driver="memory")
    async with EventBus(msgspec.structs.replace(settings, history_messages=kept)) as opened:
        yield opened
        await clients.aclose()
        await runners.aclose()


@pytest.fixture
def access(token):
    return token("7", channels=["orders.>", "team.*"])


def cursor_of(frame):
    """The position in a message, or in the data of eb:subscribed."""
    return {name: frame[name] for name in ("offset", "epoch", "mark") if name in frame}


async def watch(client, pattern, **fields):
    answer = await client.ask("subscribe", pattern=pattern, **fields)
    assert (answer["channel"], answer["event"]) == (None, "eb:subscribed"), answer
    assert answer["data"]["pattern"] == pattern
    return answer["data"]


async def publish(bus, numbers, channel="orders.{}"):
    """Publish numbers to orders.0, orders.1 and orders.2, one after another."""
    for number in numbers:
        receipt = await bus.publish(channel.format(number % 3), "e", number)
    return {"offset": receipt.offset, "epoch": receipt.epoch}


async def data_of(client, count):
    return [(await client.next())["data"] for _ in range(count)]


async def test_resuming_client_gets_what_it_missed_on_all_channels_then_live_messages(
    edge, bus, access
):
    first = await edge.connect(token=access)
    start = await watch(first, "orders.*")
    assert start["epoch"]
    assert "recovered" not in start
    await publish(bus, range(5))
    seen = [await first.next() for _ in range(5)]
    await publish(bus, range(5, 60))
    await bus.publish("team.1", "e", "of another pattern")
    await bus.publish("orders.1.x", "e", "of another channel")
    client = await edge.connect(token=access)
    answer = await watch(client, "orders.*", data=cursor_of(seen[-1]), ref=3)
    assert (answer["recovered"], answer["ref"]) == (True, 3)
    assert cursor_of(answer) == cursor_of(seen[-1])
    await publish(bus, [60])
    frames = [await client.next() for _ in range(56)]
    assert [frame["data"] for frame in frames] == list(range(5, 61))
    assert [frame["channel"] for frame in frames] == [f"orders.{n % 3}" for n in range(5, 61)]
    offsets = [frame["offset"] for frame in frames]
    assert offsets == sorted(set(offsets))
    assert await client.receives_nothing()
    # From where the subscription began, too.
    again = await edge.connect(token=access)
    answer = await watch(again, "orders.*", data=cursor_of(start))
    assert answer["recovered"] is True
    assert await data_of(again, 61) == list(range(61))


async def test_client_that_missed_nothing_is_recovered_with_nothing(edge, bus, access):
    cursor = await publish(bus, [0])
    await bus.publish("announcements", "e", "of another pattern")
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.>", data=cursor))["recovered"] is True
    assert await client.receives_nothing()
    # Again on the same connection: it is answered, and nothing comes twice.
    assert (await watch(client, "orders.>"))["offset"] >= cursor["offset"]
    await publish(bus, [1])
    assert await data_of(client, 1) == [1]
    assert await client.receives_nothing()


async def test_position_that_proves_nothing_is_not_recovered_and_nothing_missed_follows(
    edge, bus, access
):
    cursor = await publish(bus, range(3))
    for wrong in (
        {**cursor, "epoch": "another"},
        {**cursor, "mark": "2020-01-01T00:00:00Z"},
        {**cursor, "offset": cursor["offset"] + 1000, "mark": "2020-01-01T00:00:00Z"},
        {**cursor, "offset": 2**63 - 1},
        {"offset": 0, "epoch": ""},
    ):
        client = await edge.connect(token=access)
        answer = await watch(client, "orders.*", data=wrong)
        assert answer["recovered"] is False, wrong
        assert cursor_of(answer)["offset"] >= cursor["offset"]
        await bus.publish("orders.0", "e", "live")
        assert (await client.next())["data"] == "live"
        assert await client.receives_nothing()


@pytest.mark.parametrize("kept", [5])
async def test_pattern_is_not_recovered_if_one_channel_has_lost_messages(edge, bus, access, kept):
    cursor = await publish(bus, [0])
    for number in range(kept + 1):
        await bus.publish("orders.busy", "e", number)
    await bus.publish("orders.quiet", "e", 1)
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is False
    assert await client.receives_nothing()


async def test_purge_of_a_channel_is_a_gap_for_those_who_missed_it_only(edge, bus, access):
    before = await publish(bus, [0])
    await bus.publish("orders.gone", "e", 1)
    after = await publish(bus, [2])
    await bus.driver.purge(bus.subjects.live("orders.gone"))
    for cursor, recovered in ((before, False), (after, True)):
        client = await edge.connect(token=access)
        assert (await watch(client, "orders.*", data=cursor))["recovered"] is recovered
        assert await client.receives_nothing()


@pytest.mark.parametrize(("history", "missed", "recovered"), [
    (False, 1, False), (2, 2, True), (2, 3, False), (True, 3, True),
])  # fmt: skip
async def test_rules_limit_what_a_pattern_brings_of_a_channel(
    start_edge, bus, access, history, missed, recovered
):
    rules = ChannelRules(
        [Rule(Pattern("orders.limited"), ChannelKind.PRIVATE, AUTHENTICATED, history=history)]
    )
    edge = await start_edge(bus, rules=rules)
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 10))
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True
    assert await data_of(client, 9) == list(range(1, 10))
    for number in range(missed):
        await bus.publish("orders.limited", "e", number)
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is recovered
    if recovered:
        assert await data_of(client, 9 + missed) == [*range(1, 10), *range(missed)]
    assert await client.receives_nothing()


@pytest.mark.parametrize("pattern", [">", "*.1", "orders", "team.>", "secret.*"])
async def test_pattern_that_no_grant_contains_brings_no_missed_message(edge, bus, access, pattern):
    cursor = await publish(bus, [0])
    for channel in ("secret.1", "team.1.x", "user.8", "orders"):
        await bus.publish(channel, "e", "secret")
    client = await edge.connect(token=access)
    assert await client.error("subscribe", pattern=pattern, data=cursor) == "forbidden"
    assert await client.receives_nothing()


async def test_grant_of_everything_brings_channels_only(edge, bus, token, access):
    """What is no message of a channel is not delivered: not live, and not as missed."""
    cursor = await publish(bus, [0])
    driver, subjects = bus.driver, bus.subjects
    await driver.publish(subjects.event("orders.bad"), b"not JSON")
    await driver.publish(subjects.event("orders.bad"), b'{"event":"eb:subscribed","data":1}')
    await driver.publish(subjects.control("lifecycle.channel_occupied"), b"{}")
    await driver.publish(f"{subjects.namespace}.event.no~channel", b'{"event":"e","data":1}')
    await bus.publish("user.8", "e", "last")
    client = await edge.connect(token=token("1", channels=[">"]))
    assert (await watch(client, ">", data=cursor))["recovered"] is True
    frame = await client.next()
    assert (frame["channel"], frame["data"]) == ("user.8", "last")
    assert await client.receives_nothing()


@pytest.mark.parametrize("data", [
    {"offset": 1}, {"epoch": "x"}, {"offset": -1, "epoch": "x"}, {"offset": "1", "epoch": "x"},
    {"history": 5}, {"offset": 1, "epoch": "x", "history": 5}, [], "x",
])  # fmt: skip
async def test_invalid_position_is_reported(edge, access, data):
    client = await edge.connect(token=access)
    assert await client.error("subscribe", pattern="orders.*", data=data) == "bad_request"


async def test_more_than_a_node_reads_for_one_client_is_not_recovered(
    edge, bus, access, monkeypatch
):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 11))
    size = len(json.dumps({"x": 1}))
    for name, most, recovered in (
        ("MAX_PATTERN_MESSAGES", 10, True),
        ("MAX_PATTERN_MESSAGES", 9, False),
        ("MAX_CATCH_UP_BYTES", 10 * size, False),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(history_module, name, most)
            client = await edge.connect(token=access)
            assert (await watch(client, "orders.*", data=cursor))["recovered"] is recovered
            if recovered:
                await data_of(client, 10)
            assert await client.receives_nothing()


async def test_many_clients_that_resume_one_pattern_share_its_reads(edge, bus, access, monkeypatch):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 31))
    reads, read = [], bus.driver.read_pattern

    async def counted(*args, **options):
        reads.append(args)
        await asyncio.sleep(0.05)
        return await read(*args, **options)

    monkeypatch.setattr(type(bus.driver), "read_pattern", lambda _, *a, **o: counted(*a, **o))
    clients = [await edge.connect(token=access) for _ in range(30)]
    answers = await asyncio.gather(*(watch(c, "orders.*", data=cursor) for c in clients))
    assert all(answer["recovered"] for answer in answers)
    assert await asyncio.gather(*(data_of(c, 30) for c in clients)) == [list(range(1, 31))] * 30
    assert len(reads) <= 5


# Several subscriptions of one connection


async def test_message_that_a_joined_channel_brings_does_not_come_through_the_pattern_too(
    edge, bus, access
):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 7))
    client = await edge.connect(token=access)
    assert (await client.subscribe("orders.1", data=cursor))["recovered"] is True
    assert await data_of(client, 2) == [1, 4]
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True
    assert await data_of(client, 4) == [2, 3, 5, 6]
    await publish(bus, range(7, 10))
    assert sorted(await data_of(client, 3)) == [7, 8, 9]
    assert await client.receives_nothing()


async def test_channel_that_was_joined_later_hides_nothing_that_the_pattern_missed(
    edge, bus, access
):
    """The channel's own subscription begins with new messages: missed ones are the pattern's."""
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 7))
    client = await edge.connect(token=access)
    await client.subscribe("orders.1")
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True
    assert await data_of(client, 6) == [1, 2, 3, 4, 5, 6]
    assert await client.receives_nothing()


@pytest.mark.parametrize("patterns", [("orders.*", "orders.>"), ("orders.>", "orders.*")])
async def test_overlapping_patterns_bring_each_missed_message_once(edge, bus, access, patterns):
    early = await publish(bus, [0])
    await bus.publish("orders.1.x", "e", 1)
    late = await publish(bus, [2])
    await bus.publish("orders.1.x", "e", 3)
    await publish(bus, [4])
    for cursors in ((early, late), (late, early), (early, early)):
        client = await edge.connect(token=access)
        received = []
        for pattern, cursor in zip(patterns, cursors, strict=True):
            assert (await watch(client, pattern, data=cursor))["recovered"] is True
            await client.send("ping", ref="end")
            while (frame := await client.next())["event"] != "pong":
                received.append(frame["data"])
        after = {"orders.*": [2, 4], "orders.>": [1, 2, 3, 4]}
        expected = set()
        for pattern, cursor in zip(patterns, cursors, strict=True):
            expected |= {n for n in after[pattern] if n > (2 if cursor is late else 0)}
        assert sorted(received) == sorted(expected)


async def test_pattern_that_was_left_covers_nothing(edge, bus, access):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 4))
    client = await edge.connect(token=access)
    await client.subscribe("orders.1", data=cursor)
    assert await data_of(client, 1) == [1]
    await client.ask("unsubscribe", channel="orders.1")
    await watch(client, "orders.>", data=cursor)
    assert await data_of(client, 3) == [1, 2, 3]
    await client.ask("unsubscribe", pattern="orders.>")
    await watch(client, "orders.*", data=cursor)
    assert await data_of(client, 3) == [1, 2, 3]
    assert await client.receives_nothing()


# The seam


@pytest.mark.parametrize("seed", range(5))
async def test_clients_that_come_back_at_any_time_get_each_message_once_and_in_order(
    edge, bus, access, seed
):
    """Missed and live messages are merged without a gap or a duplicate, whenever a client joins."""
    choose = random.Random(seed)
    total, channels = 240, ["orders.a", "orders.b", "orders.c", "team.1"]
    plan = [choose.choice(channels) for _ in range(total)]
    wanted = [number for number, channel in enumerate(plan) if channel != "team.1"]

    async def write():
        for number, channel in enumerate(plan):
            await bus.publish(channel, "e", number)
            if choose.random() < 0.1:
                await asyncio.sleep(choose.random() * 0.01)

    async def read(start):
        received, cursor = [], start
        patience = random.Random(seed + 1)
        while not received or received[-1] != wanted[-1]:
            client = await edge.connect(token=access)
            answer = await watch(client, "orders.*", data=cursor)
            assert answer["recovered"] is True
            for _ in range(patience.randrange(1, 30)):
                frame = await client.next()
                received.append(frame["data"])
                cursor = cursor_of(frame)
                if received[-1] == wanted[-1]:
                    break
            client.socket.transport.abort()
        return received

    first = await edge.connect(token=access)
    start = cursor_of(await watch(first, "orders.*"))
    writing = asyncio.create_task(write())
    results = await asyncio.gather(*(read(start) for _ in range(3)), data_of(first, len(wanted)))
    await writing
    assert results == [wanted] * 4


@pytest.fixture
def while_reading(bus, monkeypatch):
    """Let something happen while a node reads what a client has missed of a pattern."""

    def happens(what):
        read = bus.driver.read_pattern

        async def read_then(*args, **options):
            page = await read(*args, **options)
            await what()
            return page

        monkeypatch.setattr(type(bus.driver), "read_pattern", lambda _, *a, **o: read_then(*a, **o))

    return happens


async def test_what_passes_while_a_client_catches_up_follows_what_it_missed(
    edge, bus, access, while_reading
):
    cursor = await publish(bus, [0])
    await publish(bus, [1, 2])
    witness = await edge.connect(token=access)
    await watch(witness, "orders.*")

    async def pass_by():
        await publish(bus, [3, 4])
        await bus.publish("orders.1", "e", "volatile", volatile=True)
        await data_of(witness, 3)

    while_reading(pass_by)
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True
    assert await data_of(client, 5) == [1, 2, 3, 4, "volatile"]
    assert await client.receives_nothing()


async def test_client_that_falls_behind_while_it_catches_up_is_closed_and_can_resume(
    start_edge, bus, access, while_reading
):
    edge = await start_edge(bus, max_unsent_bytes=20_000)
    cursor = await publish(bus, [0])
    witness = await edge.connect(token=access)
    await watch(witness, "orders.*")

    async def flood():
        for _ in range(10):
            await bus.publish("orders.1", "e", "x" * 3000)
            await witness.next()

    while_reading(flood)
    client = await edge.connect(token=access)
    await client.send("subscribe", pattern="orders.*", data=cursor)
    assert (await client.next())["data"]["recovered"] is True
    assert await client.closed() == 4201
    await witness.ask("ping")
    wildcards = edge.node.traffic.wildcards
    assert not wildcards._held
    assert not wildcards._ahead


async def test_gap_while_a_client_catches_up_is_reported_after_what_it_missed(
    edge, bus, access, while_reading
):
    cursor = await publish(bus, [0])
    last = await publish(bus, [1, 2])

    async def lose():
        edge.node.traffic.wildcards._notify_gap("orders.*")

    while_reading(lose)
    client = await edge.connect(token=access)
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True
    assert await data_of(client, 2) == [1, 2]
    gap = await client.next()
    assert (gap["event"], gap["data"]["recovered"]) == ("eb:subscribed", False)
    assert gap["data"]["offset"] >= last["offset"], "or a reconnect would bring 1 and 2 again"
    assert await client.receives_nothing()


async def test_message_that_was_read_before_the_bus_delivered_it_does_not_come_again(
    edge, bus, access
):
    client = await edge.connect(token=access)
    start = await watch(client, "orders.*")
    wildcards, pattern = edge.node.traffic.wildcards, Pattern("orders.*")
    connection_id = client.greeting["data"]["connection_id"]
    wildcards.hold(pattern, connection_id, 1000)
    wildcards.follow(pattern, connection_id, Position(start["offset"] + 2, start["epoch"]))
    await bus.publish("orders.1", "e", "volatile", volatile=True)
    await publish(bus, [1, 2, 3])
    assert await data_of(client, 2) == ["volatile", 3]
    assert await client.receives_nothing()
    assert not wildcards._ahead


async def test_revoked_channel_ends_a_pattern_that_catches_up(edge, bus, access, monkeypatch):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 4))
    client = await edge.connect(token=access)
    read = bus.driver.read_pattern

    async def revoke_first(*args, **options):
        await bus.revoke(user="7", channel="orders.1")
        await asyncio.sleep(0.2)
        return await read(*args, **options)

    monkeypatch.setattr(type(bus.driver), "read_pattern", lambda _, *a, **o: revoke_first(*a, **o))
    assert await client.error("subscribe", pattern="orders.*", data=cursor) == "forbidden"
    assert await client.receives_nothing()
    assert not edge.node.traffic.wildcards._patterns
    assert not edge.node.traffic.wildcards._held


async def test_failed_read_is_unavailable_and_leaves_nothing_behind(edge, bus, access, monkeypatch):
    cursor = await publish(bus, [0])
    client = await edge.connect(token=access)
    with monkeypatch.context() as patched:
        patched.setattr(bus.driver.__class__, "read_pattern", _fail)
        assert await client.error("subscribe", pattern="orders.*", data=cursor) == "unavailable"
    wildcards = edge.node.traffic.wildcards
    assert not wildcards._patterns
    assert not wildcards._subscribers
    assert not wildcards._held
    assert (await watch(client, "orders.*", data=cursor))["recovered"] is True


async def _fail(_driver, *_args, **_options):
    raise ConnectionFailed("away", driver="test")


async def test_server_sent_events_resume_a_pattern_too(edge, bus, access):
    cursor = await publish(bus, [0])
    await publish(bus, range(1, 4))
    body = [{"action": "subscribe", "pattern": "orders.*", "data": cursor, "ref": 1}]
    headers = {"Authorization": f"Bearer {access}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{edge.url}/sse", json=body, headers=headers) as response,
    ):
        frames = []
        while len(frames) < 5:
            line = await response.content.readline()
            if line.startswith(b"data:"):
                frames.append(json.loads(line[5:]))
    assert frames[1]["data"]["recovered"] is True
    assert [frame["data"] for frame in frames[2:]] == [1, 2, 3]


# The stream expires, is lost for a while, or is replaced


@pytest.fixture
def own_settings(own_nats_server, monkeypatch):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    return Settings(nats_url=own_nats_server.url, history_bytes=4 * 1024**2, history_seconds=1.0)


async def test_quiet_pattern_is_recovered_where_a_node_has_followed_it(
    start_edge, own_settings, access
):
    async with EventBus(own_settings) as bus:
        edge = await start_edge(own_settings)
        staying, leaving = [await edge.connect(token=access) for _ in range(2)]
        for client in (staying, leaving):
            await watch(client, "orders.*")
        await publish(bus, [0])
        cursor = cursor_of(await leaving.next())
        leaving.socket.transport.abort()
        place = MarkedPosition(*cursor.values())
        live = bus.subjects.live_filter(Pattern("orders.*"))

        async def is_proved():
            page = await bus.driver.read_pattern(live, place, limit=9, max_bytes=999)
            return page.complete

        async with asyncio.timeout(40):
            while await is_proved():  # others' messages expire as well
                await bus.publish("announcements", "e", 1)
                await asyncio.sleep(0.1)
        back = await edge.connect(token=access)
        assert (await watch(back, "orders.*", data=cursor))["recovered"] is True
        # A node that has not followed it cannot know.
        other = await (await start_edge(own_settings)).connect(token=access)
        assert (await watch(other, "orders.*", data=cursor))["recovered"] is False
        await publish(bus, [4])
        assert await data_of(back, 1) == await data_of(other, 1) == [4]


async def test_replaced_stream_is_a_gap_with_the_position_in_the_new_one(
    start_edge, own_settings, access
):
    lasting = msgspec.structs.replace(own_settings, history_seconds=600.0)
    async with EventBus(lasting) as bus, EventBus(lasting) as other:
        edge = await start_edge(bus)
        client = await edge.connect(token=access)
        before = await watch(client, "orders.*")
        await publish(bus, [0])
        cursor = cursor_of(await client.next())
        js = bus.driver._connection.client.jetstream()
        await js.delete_stream("EB_EVENTS")
        await bus.driver._connection.client.force_reconnect()
        gap = await client.next()
        assert (gap["event"], gap["data"]["recovered"]) == ("eb:subscribed", False)
        assert gap["data"]["epoch"] not in {None, before["epoch"]}
        position = cursor_of(gap["data"])
        await publish(other, [1, 2])
        assert await data_of(client, 2) == [1, 2]
        for old, recovered in ((cursor, False), (position, True)):
            again = await edge.connect(token=access)
            assert (await watch(again, "orders.*", data=old))["recovered"] is recovered
            if recovered:
                assert await data_of(again, 2) == [1, 2]
            assert await again.receives_nothing()


@pytest.mark.redis
async def test_pattern_without_an_order_has_no_position_and_does_not_resume(
    start_redis, start_edge, access
):
    async with EventBus(start_redis()) as bus:
        assert Capability.PATTERN_HISTORY not in bus.driver.capabilities
        edge = await start_edge(bus)
        cursor = await publish(bus, [0, 1])
        client = await edge.connect(token=access)
        answer = await watch(client, "orders.*", data=cursor)
        assert (answer["offset"], answer["epoch"], answer["recovered"]) == (None, None, False)
        await publish(bus, [2, 3])
        assert await data_of(client, 2) == [2, 3]
        again = await watch(client, "orders.*")
        assert (again["offset"], again["epoch"]) == (None, None)
        assert await client.receives_nothing()
        await client.socket.close()
