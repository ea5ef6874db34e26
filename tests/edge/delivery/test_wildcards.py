"""Subscriptions to patterns: only what a grant contains, each message once, nothing left behind."""

import asyncio

import pytest

from eventbus.backoff import Backoff
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules

RECONNECT = "eventbus.drivers.nats.connection._SERVER_BACKOFF"


async def watch(client, pattern, **fields):
    answer = await client.ask("subscribe", pattern=pattern, **fields)
    assert (answer["channel"], answer["event"]) == (None, "eb:subscribed"), answer
    assert (answer["data"]["pattern"], answer["data"]["kind"]) == (pattern, "private")
    return answer["data"]


@pytest.fixture
async def granted(edge, token):
    """A client that may hear all orders."""
    return await edge.connect(token=token("7", channels=["orders.>", "team.*"]))


async def test_a_pattern_brings_the_messages_of_all_its_channels_by_their_own_names(granted, bus):
    assert (await watch(granted, "orders.*", ref=5))["ref"] == 5
    for channel in ("orders.1", "orders.1.eu", "orders", "team.1", "orders.2"):
        await bus.publish(channel, "e", channel)
    await bus.publish("orders.3", "e", "orders.3", volatile=True)
    heard = [await granted.next() for _ in range(3)]
    assert [m["channel"] for m in heard] == ["orders.1", "orders.2", "orders.3"]
    assert [m["data"] for m in heard] == [m["channel"] for m in heard]
    assert all("offset" in m for m in heard[:2])
    assert await granted.hears_nothing()


async def test_a_pattern_of_several_tokens_brings_the_rest(granted, bus):
    await watch(granted, "orders.eu.>")
    for channel in ("orders.eu", "orders.eu.1", "orders.eu.1.2", "orders.us.1"):
        await bus.publish(channel, "e", 1)
    assert [(await granted.next())["channel"] for _ in "12"] == ["orders.eu.1", "orders.eu.1.2"]
    assert await granted.hears_nothing()


@pytest.mark.parametrize(
    "pattern", [">", "*", "*.1", "orders", "team.>", "team.*.x", "user.*", "general"]
)
async def test_a_pattern_that_no_grant_contains_is_forbidden(granted, bus, pattern):
    assert await granted.error("subscribe", pattern=pattern) == "forbidden"
    for channel in ("general", "team.1.x", "user.8"):
        await bus.publish(channel, "e", 1)
    assert await granted.hears_nothing()


async def test_patterns_need_a_token_with_grants(edge, token):
    nobody = await edge.connect()
    assert await nobody.error("subscribe", pattern="general") == "unauthorized"
    admin = await edge.connect(token=token("1", roles=["admin"]))
    assert await admin.error("subscribe", pattern="admin.>") == "forbidden"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"pattern": "a..b"}, "invalid_channel"),
        ({"pattern": "orders.>.x"}, "invalid_channel"),
        ({"pattern": ""}, "invalid_channel"),
        ({"pattern": 3}, "bad_request"),
        ({"pattern": "orders.*", "channel": "orders.1"}, "bad_request"),
        ({"pattern": "orders.*", "data": {"history": 5}}, "bad_request"),
        ({"channel": "orders.*"}, "invalid_channel"),
    ],
)
async def test_what_is_no_pattern_is_told(granted, fields, code):
    assert await granted.error("subscribe", **fields) == code
    assert await granted.hears_nothing()


async def test_a_channel_and_patterns_together_bring_each_message_once(granted, bus):
    await watch(granted, "orders.*")
    await watch(granted, "orders.>")
    await granted.subscribe("orders.1")
    for n in range(20):
        await bus.publish("orders.1", "e", n)
        await bus.publish("orders.2", "e", n)
    heard = [await granted.next() for _ in range(40)]
    for channel in ("orders.1", "orders.2"):
        assert [m["data"] for m in heard if m["channel"] == channel] == list(range(20))
    assert await granted.hears_nothing()
    assert (await granted.ask("unsubscribe", channel="orders.1"))["event"] == "eb:unsubscribed"
    assert (await granted.ask("unsubscribe", pattern="orders.*"))["data"] == {"pattern": "orders.*"}
    await bus.publish("orders.1", "e", "on")
    assert (await granted.next())["data"] == "on"
    assert await granted.hears_nothing()


async def test_twice_the_same_pattern_is_answered_again_and_not_doubled(granted, bus, edge):
    await watch(granted, "orders.*")
    await watch(granted, "orders.{order_id}")  # the same channels
    await bus.publish("orders.1", "e", 1)
    await granted.next()
    assert await granted.hears_nothing()
    assert len(edge.node.traffic.wildcards) == 1


async def test_what_is_not_subscribed_cannot_be_unsubscribed(granted):
    assert await granted.error("unsubscribe", pattern="orders.*") == "not_subscribed"
    assert await granted.error("unsubscribe", pattern="a..b") == "invalid_channel"


async def test_the_sender_is_excluded_from_its_own_whisper(start_edge, bus, token):
    edge = await start_edge(bus)
    both = [await edge.connect(token=token(u, channels=["chat.*"])) for u in "78"]
    for client in both:
        await watch(client, "chat.*")
    await both[0].subscribe("chat.1")
    await both[0].send("whisper", channel="chat.1", event="typing", data=1)
    assert (await both[1].next())["event"] == "client-typing"
    assert await both[0].hears_nothing()
    # Hearing a pattern is no subscription to its channels: those are what one may whisper on.
    assert await both[1].error("whisper", channel="chat.1", event="e", data=1) == "not_subscribed"


async def test_patterns_count_among_the_channels_of_a_connection(start_edge, bus, token):
    edge = await start_edge(bus, max_channels_per_connection=2)
    client = await edge.connect("/ws/general", token=token("7", channels=["a.>"]))
    await client.next()
    await watch(client, "a.*")
    assert await client.error("subscribe", pattern="a.>") == "limit_exceeded"
    assert await client.error("subscribe", channel="user.7") == "limit_exceeded"


async def test_a_node_listens_once_for_all_who_hear_a_pattern_and_not_without_them(
    edge, bus, token
):
    clients = [await edge.connect(token=token("7", channels=["orders.>"])) for _ in range(3)]
    for client in clients:
        await watch(client, "orders.*")
    assert len(edge.node.traffic.wildcards) == 1
    await bus.publish("orders.1", "e", 1)
    assert [(await client.next())["data"] for client in clients] == [1, 1, 1]
    await clients[0].ask("unsubscribe", pattern="orders.*")
    for client in clients:
        await client.socket.close()
    async with asyncio.timeout(5):
        while len(edge.node.traffic.wildcards):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert not edge.node.traffic.wildcards._patterns
    assert not edge.node.traffic.wildcards._listeners
    assert not edge.node.traffic.wildcards._muted


async def test_a_refreshed_token_without_the_grant_drops_the_pattern(granted, bus, token):
    await watch(granted, "orders.*")
    await watch(granted, "team.*")
    poor = token("7", channels=["team.*"])
    assert (await granted.ask("auth", data={"token": poor}))["event"] == "eb:authenticated"
    dropped = await granted.next()
    assert (dropped["channel"], dropped["event"]) == (None, "eb:unsubscribed")
    assert dropped["data"] == {"pattern": "orders.*", "reason": "revoked"}
    await bus.publish("orders.1", "e", 1)
    await bus.publish("team.1", "e", 2)
    assert (await granted.next())["data"] == 2


async def test_a_revoked_channel_takes_the_patterns_that_match_it(granted, edge, bus):
    await watch(granted, "orders.*")
    await watch(granted, "team.*")
    await edge.node.access.revoker.revoke(channel="orders.1")
    assert (await granted.next())["data"] == {"pattern": "orders.*", "reason": "revoked"}
    assert await granted.error("subscribe", pattern="orders.>") == "forbidden"
    await bus.publish("orders.1", "e", 1)
    assert await granted.hears_nothing()


async def test_no_message_is_missed_or_doubled_while_a_channel_is_joined_beside_its_pattern(
    granted, bus
):
    await watch(granted, "orders.*")

    async def publish():
        for n in range(300):
            await bus.publish("orders.1", "e", n)

    publishing = asyncio.ensure_future(publish())
    heard, joined = [], 0
    for _ in range(5):
        await granted.send("subscribe", channel="orders.1")
        while (frame := await granted.next())["event"] != "eb:subscribed":
            heard.append(frame["data"])
        await granted.send("unsubscribe", channel="orders.1")
        while (frame := await granted.next())["event"] != "eb:unsubscribed":
            heard.append(frame["data"])
        joined += 1
    await publishing
    await bus.publish("orders.1", "e", "end")
    while (frame := await granted.next())["data"] != "end":
        heard.append(frame["data"])
    assert joined == 5
    assert heard == list(range(300))


async def test_what_is_no_message_reaches_nobody(start_edge, bus, nats, namespace, token):
    edge = await start_edge(bus, ChannelRules())
    client = await edge.connect(token=token("7", channels=[">"]))
    await watch(client, ">")
    await nats.publish(f"{namespace}.event.orders.1", b"\xff not json")
    await nats.publish(f"{namespace}.live.bad\xc3\xa9", b'{"event":"e","data":1}')
    await nats.flush()
    await bus.publish("orders.2", "e", 2)
    assert (await client.next())["channel"] == "orders.2"
    assert await client.hears_nothing()


@pytest.fixture
def own_bus_settings(own_nats_server, monkeypatch):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    return Settings(nats_url=own_nats_server.url, history_bytes=2**22, history_messages=3)


async def test_what_passed_while_the_node_had_lost_nats_comes_too(
    own_bus_settings, own_nats_server, start_edge, token
):
    async with EventBus(own_bus_settings) as near, EventBus(own_bus_settings) as far:
        edge = await start_edge(near)
        client = await edge.connect(token=token("7", channels=["orders.>"]))
        await watch(client, "orders.*")
        await near.driver._connection.client.force_reconnect()
        for number in range(3):
            await far.publish(f"orders.{number}", "e", number)
        heard = [await client.next() for _ in range(3)]
        assert [frame["data"] for frame in heard] == [0, 1, 2]
        assert [frame["channel"] for frame in heard] == ["orders.0", "orders.1", "orders.2"]
        assert await client.hears_nothing()


async def test_clients_of_a_pattern_are_told_of_what_is_lost_by_their_own_pattern(
    own_bus_settings, start_edge, token
):
    async with EventBus(own_bus_settings) as near, EventBus(own_bus_settings) as far:
        edge = await start_edge(near)
        access = token("7", channels=["orders.>", "team.*"])
        first, second, third = [await edge.connect(token=access) for _ in range(3)]
        await watch(first, "orders.*")
        await watch(second, "orders.{id}")
        await watch(third, "team.*")
        await far.publish("team.1", "e", "kept")
        assert (await third.next())["data"] == "kept"
        await near.driver._connection.client.force_reconnect()
        for number in range(5):
            await far.publish("orders.1", "e", number)
        for client, pattern in ((first, "orders.*"), (second, "orders.{id}")):
            told = await client.next()
            assert (told["event"], told["channel"]) == ("eb:subscribed", None)
            assert told["data"] == {"pattern": pattern, "kind": "private", "recovered": False}
            # The stream has one more of a channel than readers of its history are given.
            assert [(await client.next())["data"] for _ in range(4)] == [1, 2, 3, 4]
        assert await third.hears_nothing()
        assert edge.node.metrics.registry.get_sample_value("eventbus_edge_gaps_total") == 1
