"""Subscriptions to patterns: only what a grant contains, each message once, nothing left behind."""

import asyncio
from types import SimpleNamespace

import pytest

from eventbus.attempts import Backoff
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.sessions.ports import PresenceRefused

RECONNECT = "eventbus.drivers.nats.connection.connection._SERVER_BACKOFF"


async def watch(client, pattern, **fields):
    answer = await client.ask("subscribe", pattern=pattern, **fields)
    assert (answer["channel"], answer["event"]) == (None, "eb:subscribed"), answer
    assert (answer["data"]["pattern"], answer["data"]["kind"]) == (pattern, "private")
    return answer["data"]


@pytest.fixture
async def granted(edge, token):
    """A client that may subscribe to all orders."""
    return await edge.connect(token=token("7", channels=["orders.>", "team.*"]))


async def test_a_pattern_brings_the_messages_of_all_its_channels_by_their_own_names(granted, bus):
    assert (await watch(granted, "orders.*", ref=5))["ref"] == 5
    for channel in ("orders.1", "orders.1.eu", "orders", "team.1", "orders.2"):
        await bus.publish(channel, "e", channel)
    await bus.publish("orders.3", "e", "orders.3", volatile=True)
    received = [await granted.next() for _ in range(3)]
    assert [m["channel"] for m in received] == ["orders.1", "orders.2", "orders.3"]
    assert [m["data"] for m in received] == [m["channel"] for m in received]
    assert all("offset" in m for m in received[:2])
    assert await granted.receives_nothing()


async def test_a_pattern_of_several_tokens_brings_the_rest(granted, bus):
    await watch(granted, "orders.eu.>")
    for channel in ("orders.eu", "orders.eu.1", "orders.eu.1.2", "orders.us.1"):
        await bus.publish(channel, "e", 1)
    assert [(await granted.next())["channel"] for _ in "12"] == ["orders.eu.1", "orders.eu.1.2"]
    assert await granted.receives_nothing()


@pytest.mark.parametrize(
    "pattern", [">", "*", "*.1", "orders", "team.>", "team.*.x", "user.*", "general"]
)
async def test_a_pattern_that_no_grant_contains_is_forbidden(granted, bus, pattern):
    assert await granted.error("subscribe", pattern=pattern) == "forbidden"
    for channel in ("general", "team.1.x", "user.8"):
        await bus.publish(channel, "e", 1)
    assert await granted.receives_nothing()


async def test_longest_pattern_is_as_long_as_a_channel(granted):
    await watch(granted, "orders." + "x" * 191 + ".>")
    # Names do not count: they are not part of what is matched.
    await watch(granted, "orders.{" + "x" * 250 + "}")
    too_long = "orders." + "x" * 194
    assert await granted.error("unsubscribe", pattern=too_long) == "invalid_channel"


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
        ({"pattern": "orders." + "x" * 194}, "invalid_channel"),
        ({"pattern": "orders." + "x." * 97 + ">"}, "invalid_channel"),
        ({"pattern": "x" * 301}, "invalid_channel"),
        ({"pattern": 3}, "bad_request"),
        ({"pattern": "orders.*", "channel": "orders.1"}, "bad_request"),
        ({"pattern": "orders.*", "data": {"history": 5}}, "bad_request"),
        ({"channel": "orders.*"}, "invalid_channel"),
    ],
)
async def test_invalid_pattern_is_reported(granted, fields, code):
    assert await granted.error("subscribe", **fields) == code
    assert await granted.receives_nothing()


async def test_a_channel_and_patterns_together_bring_each_message_once(granted, bus):
    await watch(granted, "orders.*")
    await watch(granted, "orders.>")
    await granted.subscribe("orders.1")
    for n in range(20):
        await bus.publish("orders.1", "e", n)
        await bus.publish("orders.2", "e", n)
    received = [await granted.next() for _ in range(40)]
    for channel in ("orders.1", "orders.2"):
        assert [m["data"] for m in received if m["channel"] == channel] == list(range(20))
    assert await granted.receives_nothing()
    assert (await granted.ask("unsubscribe", channel="orders.1"))["event"] == "eb:unsubscribed"
    assert (await granted.ask("unsubscribe", pattern="orders.*"))["data"] == {"pattern": "orders.*"}
    await bus.publish("orders.1", "e", "on")
    assert (await granted.next())["data"] == "on"
    assert await granted.receives_nothing()


async def test_twice_the_same_pattern_is_answered_again_and_not_duplicated(granted, bus, edge):
    await watch(granted, "orders.*")
    await watch(granted, "orders.{order_id}")  # the same channels
    await bus.publish("orders.1", "e", 1)
    await granted.next()
    assert await granted.receives_nothing()
    assert len(edge.node.traffic.wildcards) == 1


async def test_unsubscribing_without_a_subscription_is_an_error(granted):
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
    assert await both[0].receives_nothing()
    # A pattern is not a subscription to its channels: only those allow whispers.
    assert await both[1].error("whisper", channel="chat.1", event="e", data=1) == "not_subscribed"


async def test_patterns_count_among_the_channels_of_a_connection(start_edge, bus, token):
    edge = await start_edge(bus, max_channels_per_connection=2)
    client = await edge.connect("/ws/general", token=token("7", channels=["a.>"]))
    await client.next()
    await watch(client, "a.*")
    assert await client.error("subscribe", pattern="a.>") == "limit_exceeded"
    assert await client.error("subscribe", channel="user.7") == "limit_exceeded"


async def test_a_node_listens_once_for_all_who_subscribe_to_a_pattern_and_not_without_them(
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
    async with asyncio.timeout(40):
        while len(edge.node.traffic.wildcards):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert not edge.node.traffic.wildcards._patterns
    assert not edge.node.traffic.wildcards._subscribers
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
    assert await granted.receives_nothing()


async def test_no_message_is_missed_or_duplicated_while_a_channel_is_joined_beside_its_pattern(
    granted, bus
):
    await watch(granted, "orders.*")

    async def publish():
        for n in range(300):
            await bus.publish("orders.1", "e", n)

    publishing = asyncio.ensure_future(publish())
    received, joined = [], 0
    for _ in range(5):
        await granted.send("subscribe", channel="orders.1")
        while (frame := await granted.next())["event"] != "eb:subscribed":
            received.append(frame["data"])
        await granted.send("unsubscribe", channel="orders.1")
        while (frame := await granted.next())["event"] != "eb:unsubscribed":
            received.append(frame["data"])
        joined += 1
    await publishing
    await bus.publish("orders.1", "e", "end")
    while (frame := await granted.next())["data"] != "end":
        received.append(frame["data"])
    assert joined == 5
    assert received == list(range(300))


async def test_invalid_message_reaches_nobody(start_edge, bus, nats, namespace, token):
    edge = await start_edge(bus, ChannelRules())
    client = await edge.connect(token=token("7", channels=[">"]))
    await watch(client, ">")
    await nats.publish(f"{namespace}.event.orders.1", b"\xff not json")
    await nats.publish(f"{namespace}.live.bad\xc3\xa9", b'{"event":"e","data":1}')
    await nats.flush()
    await bus.publish("orders.2", "e", 2)
    assert (await client.next())["channel"] == "orders.2"
    assert await client.receives_nothing()


@pytest.fixture
def own_bus_settings(own_nats_server, monkeypatch):
    monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
    return Settings(nats_url=own_nats_server.url, history_bytes=2**22, history_messages=3)


async def test_messages_published_while_the_node_had_lost_nats_arrive_too(
    own_bus_settings, own_nats_server, start_edge, token
):
    async with EventBus(own_bus_settings) as near, EventBus(own_bus_settings) as far:
        edge = await start_edge(near)
        client = await edge.connect(token=token("7", channels=["orders.>"]))
        await watch(client, "orders.*")
        await near.driver._connection.client.force_reconnect()
        for number in range(3):
            await far.publish(f"orders.{number}", "e", number)
        received = [await client.next() for _ in range(3)]
        assert [frame["data"] for frame in received] == [0, 1, 2]
        assert [frame["channel"] for frame in received] == ["orders.0", "orders.1", "orders.2"]
        assert await client.receives_nothing()


async def test_clients_of_a_pattern_are_notified_of_what_is_lost_by_their_own_pattern(
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
            frame = await client.next()
            assert (frame["event"], frame["channel"]) == ("eb:subscribed", None)
            assert (frame["data"]["pattern"], frame["data"]["recovered"]) == (pattern, False)
            assert frame["data"]["epoch"]
            # The stream has one more of a channel than readers of its history are given.
            assert [(await client.next())["data"] for _ in range(4)] == [1, 2, 3, 4]
        assert await third.receives_nothing()
        assert edge.node.metrics.registry.get_sample_value("eventbus_edge_gaps_total") == 1


# While a channel of the pattern is joined


@pytest.fixture
async def joining(start_edge, bus, token, monkeypatch):
    """A subscriber of a pattern, and what happens while it joins a channel of it."""
    edge = await start_edge(bus, max_unsent_bytes=20_000)
    client, other = [
        await edge.connect(token=token(user, channels=["presence.>"])) for user in "78"
    ]
    for each in (client, other):
        await watch(each, "presence.*")
    enter = edge.node.presence.enter

    def meanwhile(happens, *, fails):
        async def enter_after(*args):
            await happens()
            if fails:
                raise PresenceRefused("limit_exceeded", "full")
            await enter(*args)

        monkeypatch.setattr(edge.node.presence, "enter", enter_after)

    async def publish(*data):
        for each in data:
            await bus.publish("presence.a", "e", each)
        for each in data:  # delivered to all subscribers of the pattern before that
            assert (await other.next())["data"] == each

    return SimpleNamespace(edge=edge, client=client, meanwhile=meanwhile, publish=publish)


async def test_subscriber_of_a_pattern_gets_what_passes_while_it_fails_to_join(joining):
    joining.meanwhile(lambda: joining.publish(1, 2, 3), fails=True)
    await joining.client.send("subscribe", channel="presence.a")
    received = [await joining.client.next() for _ in range(4)]
    assert [frame["data"] for frame in received[:3]] == [1, 2, 3]
    assert received[3]["data"]["code"] == "limit_exceeded"
    await joining.publish(4)
    assert (await joining.client.next())["data"] == 4
    assert await joining.client.receives_nothing()


async def test_subscriber_of_a_pattern_gets_what_passes_while_it_joins_once(joining):
    joining.meanwhile(lambda: joining.publish(1, 2, 3), fails=False)
    await joining.client.subscribe("presence.a")
    assert [(await joining.client.next())["data"] for _ in range(3)] == [1, 2, 3]
    await joining.publish(4)
    assert (await joining.client.next())["data"] == 4
    assert await joining.client.receives_nothing()


async def test_more_than_fits_while_a_join_fails_is_reported_as_a_gap(joining):
    joining.meanwhile(lambda: joining.publish(*["x" * 6000] * 4), fails=True)
    await joining.client.send("subscribe", channel="presence.a")
    gap = await joining.client.next()
    assert (gap["event"], gap["data"]["recovered"]) == ("eb:subscribed", False)
    assert gap["data"]["pattern"] == "presence.*"
    assert (await joining.client.next())["data"]["code"] == "limit_exceeded"
    assert joining.edge.node.metrics.gaps._value.get() == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_pattern_ends_if_its_channel_is_revoked_while_it_is_joined(joining, fails):
    revoker = joining.edge.node.access.revoker
    joining.meanwhile(lambda: revoker.revoke(channel="presence.a"), fails=fails)
    await joining.client.send("subscribe", channel="presence.a")
    received = [await joining.client.next() for _ in range(2)]
    assert received[0]["event"] == "eb:unsubscribed"
    assert received[0]["data"] == {"pattern": "presence.*", "reason": "revoked"}
    assert received[1]["data"]["code"] == ("limit_exceeded" if fails else "forbidden")
