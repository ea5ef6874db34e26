"""Laravel Echo over pusher-js, unmodified, in Node, with real nodes on NATS."""

import asyncio
import base64
import json

import pytest

from eventbus.channels import ChannelKind, Pattern
from eventbus.integrations.pusher import PusherApp, sign_user
from eventbus_edge.access import ANYONE, AUTHENTICATED, ChannelRules, Rule
from tests.edge.echo.conftest import APP

pytestmark = [pytest.mark.npm, pytest.mark.timeout(240)]


@pytest.fixture
def environ():
    """The settings of a node as a process."""
    return {name.upper(): value for name, value in APP.items()} | {"BROADCAST_DRAIN_TIME": "0"}


@pytest.fixture
async def edge(start_edge, bus):
    return await start_edge(bus, presence_grace=0.0, **APP)


async def test_public_channel_hears_events_by_their_names(connected, edge, bus):
    echo = await connected(edge)
    await echo.run("""
        echo.channel("general")
          .listen(".order.shipped", (data) => say("dotted", data))
          .listen("OrderShipped", (data) => say("class", data))
          .subscribed(() => say("subscribed"));
    """)
    await echo.next("subscribed")
    await bus.publish("general", "order.shipped", {"id": 1})
    await bus.publish("general", "App\\Events\\OrderShipped", {"id": 2})
    assert await echo.next("dotted") == [{"id": 1}]
    assert await echo.next("class") == [{"id": 2}]


async def test_private_channel_is_joined_by_the_users_token(connected, edge, bus):
    echo = await connected(edge, "7")
    await echo.run("""
        echo.private("user.7").listen(".shipped", (data) => say("shipped", data))
          .subscribed(() => say("subscribed"));
        echo.private("user.8").error((error) => say("refused", error.status));
    """)
    await echo.next("subscribed")
    assert await echo.next("refused") == [403]
    await bus.publish("user.7", "shipped", {"id": 1})
    assert await echo.next("shipped") == [{"id": 1}]


async def test_presence_of_two_users_on_two_nodes_one_in_two_tabs(
    connected, start_edge, bus, edge, know_each_other
):
    other = await start_edge(bus, presence_grace=0.0, **APP)
    await know_each_other(edge, other)
    ann = await connected(edge, "7")
    await ann.run("""
        echo.join("room").here((users) => say("here", users))
          .joining((user) => say("joining", user)).leaving((user) => say("leaving", user));
    """)
    assert await ann.next("here") == [[{"id": "7", "name": "User 7"}]]
    tabs = [await connected(node, "9") for node in (edge, other)]
    for tab in tabs:
        await tab.run('echo.join("room").here((users) => say("here", users.map((u) => u.id)));')
        assert sorted((await tab.next("here"))[0]) == ["7", "9"]
    assert await ann.next("joining") == [{"id": "9", "name": "User 9"}]
    await tabs[0].run('echo.leave("room"); say("left");')
    await tabs[0].next("left")
    await ann.run('say("pause");')
    await ann.next("pause")
    await tabs[1].aclose()
    assert await ann.next("leaving") == [{"id": "9", "name": "User 9"}]
    assert [words[0] for words in ann.heard].count("joining") == 1
    assert [words[0] for words in ann.heard].count("leaving") == 1


async def test_whispers_go_to_the_others_of_both_protocols(connected, edge, token):
    one, two = await connected(edge, "7"), await connected(edge, "9")
    for echo in (one, two):
        await echo.run("""
            state.chat = echo.private("chat.1")
              .listenForWhisper("typing", (data) => say("typing", data))
              .subscribed(() => say("subscribed"));
        """)
        await echo.next("subscribed")
    native = await edge.connect(token=token("5"))
    await native.subscribe("chat.1")
    await one.run('state.chat.whisper("typing", { on: true });')
    assert await two.next("typing") == [{"on": True}]
    frame = await native.next()
    assert (frame["event"], frame["data"]) == ("client-typing", {"on": True})
    await native.send("whisper", channel="chat.1", event="typing", data={"on": False})
    assert await one.next("typing") == [{"on": False}]


async def test_connection_that_caused_an_event_can_be_left_out(connected, edge, bus):
    one, two = await connected(edge, "7"), await connected(edge, "7")
    for echo in (one, two):
        await echo.run("""
            echo.private("user.7").listen(".n", (n) => say("n", n)).subscribed(() => say("in"));
        """)
        await echo.next("in")
    await one.run('say("id", echo.socketId());')
    [socket_id] = await one.next("id")
    await bus.publish("user.7", "n", 1, except_connection=socket_id)
    await bus.publish("user.7", "n", 2)
    assert await one.next("n") == [2]
    assert await two.next("n") == [1]


async def test_unknown_key_is_an_error_of_the_connection_and_is_not_tried_again(start_echo, edge):
    echo = await start_echo(edge, key="unknown")
    assert await echo.next("error") == [4001]
    await echo.next("state", "disconnected")


async def test_client_comes_back_after_the_restart_of_its_node(
    connected, start_process, bus, environ
):
    first = await start_process(**environ)
    echo = await connected(first)
    await echo.run("""
        echo.channel("general").listen(".n", (n) => say("n", n))
          .subscribed(() => say("subscribed"));
    """)
    await echo.next("subscribed")
    first.terminate()
    await first.end()
    await start_process(**environ, BROADCAST_WEBSOCKET_PORT=str(first.port))
    await echo.next("state", "connected")
    await echo.next("subscribed")
    await bus.publish("general", "n", 1)
    assert await echo.next("n") == [1]


async def test_client_with_the_plugin_gets_what_it_missed_once(
    connected, start_process, bus, environ
):
    first = await start_process(**environ)
    echo = await connected(first, "7", resumes=True)
    await echo.run("""
        for (const channel of [echo.channel("general"), echo.private("user.7"), echo.join("room")])
          channel.listen(".n", (n) => say("n", n)).subscribed(() => say("subscribed"));
    """)
    for _ in range(3):
        await echo.next("subscribed")
    await bus.publish("general", "n", 0)
    assert await echo.next("n") == [0]
    first.terminate()
    await first.end()
    for number, channel in enumerate(("general", "user.7", "presence.room", "general"), 1):
        await bus.publish(channel, "n", number)
    await start_process(**environ, BROADCAST_WEBSOCKET_PORT=str(first.port))
    missed = [(await echo.next("n"))[0] for _ in range(4)]
    assert sorted(missed) == [1, 2, 3, 4]
    assert missed.index(1) < missed.index(4)
    await bus.publish("general", "n", 5)
    assert await echo.next("n") == [5]


async def test_signed_in_user_gets_what_was_missed_once_with_the_plugin(
    connected, start_process, publisher, environ
):
    first = await start_process(**environ)
    echo = await connected(first, "7", resumes=True)
    await echo.run("""
        pusher.user.bind("news", ({ n }) => say("news", n));
        pusher.bind("pusher:signin_success", () => say("signed in"));
        pusher.signin();
    """)
    await echo.next("signed in")
    call = await publisher(first)
    assert (await call("sendToUser", "7", "news", {"n": 0}))["status"] == 200
    assert await echo.next("news") == [0]
    first.terminate()
    await first.end()
    other = await start_process(**environ)
    call = await publisher(other)
    for number in (1, 2):
        assert (await call("sendToUser", "7", "news", {"n": number}))["status"] == 200
    await start_process(**environ, BROADCAST_WEBSOCKET_PORT=str(first.port))
    assert [await echo.next("news") for _ in range(2)] == [[1], [2]]
    assert (await call("sendToUser", "7", "news", {"n": 3}))["status"] == 200
    assert await echo.next("news") == [3]


async def test_channel_that_was_left_begins_anew_with_the_plugin(connected, edge, bus):
    echo = await connected(edge, resumes=True)
    join = """
        echo.channel("general").listen(".n", (n) => say("n", n)).subscribed(() => say("in"));
    """
    await echo.run(join)
    await echo.next("in")
    await bus.publish("general", "n", 1)
    assert await echo.next("n") == [1]
    await echo.run("""
        echo.leave("general");
        echo.channel("announcements").subscribed(() => say("left")); // its answer comes after
    """)
    await echo.next("left")
    async with asyncio.timeout(40):  # the client does not wait for the node
        while (await edge.node.census.channel("general")).connections:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await bus.publish("general", "n", 2)
    await echo.run(join)
    await echo.next("in")
    await bus.publish("general", "n", 3)
    assert await echo.next("n") == [3]


async def test_user_signs_in_and_is_reached_by_the_npm_library(connected, edge, publisher):
    echo, other = await connected(edge, "7"), await connected(edge, "8")
    for client in (echo, other):
        await client.run("""
            pusher.signin();
            pusher.user.bind("news", (data) => say("news", data));
            pusher.bind("pusher:signin_success", () => say("signed in"));
        """)
        await client.next("signed in")
    call = await publisher(edge)
    assert await call("sendToUser", "7", "news", {"é": 1}) == {"status": 200, "body": {}}
    assert await echo.next("news") == [{"é": 1}]
    await other.run('say("end");')
    await other.next("end")
    assert ["news", {"é": 1}] not in other.heard
    assert (await call("terminateUserConnections", "7"))["status"] == 200
    await echo.next("state", "disconnected")


async def test_user_hears_of_those_on_the_watch_list(connected, edge):
    echo, other = await connected(edge, "7"), await connected(edge, "8")
    await echo.run('say("id", pusher.connection.socket_id);')
    [socket_id] = await echo.next("id")
    app = PusherApp(
        id=APP["pusher_app_id"], key=APP["pusher_app_key"], secret=APP["pusher_app_secret"]
    )
    signed = sign_user(socket_id, "7", watchlist=["8"], app=app)
    await echo.run(f"""
        for (const name of ["online", "offline"])
            pusher.user.watchlist.bind(name, (event) => say(name, event.user_ids));
        pusher.config.userAuthenticator = (_, callback) => callback(null, {json.dumps(signed)});
        pusher.signin();
    """)
    assert await echo.next("offline") == [["8"]]
    await other.run("pusher.signin();")
    assert await echo.next("online") == [["8"]]
    await other.run("pusher.disconnect();")
    assert await echo.next("offline") == [["8"]]


async def test_subscriptions_are_counted_for_subscribers(connected, start_edge, bus):
    edge = await start_edge(bus, pusher_subscription_counts=True, **APP)
    for count in (1, 2):
        echo = await connected(edge)
        await echo.run("""
            pusher.subscribe("general")
                .bind("pusher:subscription_count", (data) => say(data.subscription_count));
        """)
        assert await echo.next(count) == []


async def test_npm_library_publishes_and_asks(connected, edge, publisher):
    echo = await connected(edge, "7")
    await echo.run("""
        echo.channel("general").listen(".n", (n) => say("n", n)).subscribed(() => say("in"));
        echo.join("room").here(() => say("in"));
        say("id", echo.socketId());
    """)
    [socket_id] = await echo.next("id")
    for _ in range(2):
        await echo.next("in")
    call = await publisher(edge)
    assert (await call("trigger", "general", "n", 0, {"socket_id": socket_id}))["status"] == 200
    assert (await call("trigger", ["general"], "n", {"a": "ü"}))["status"] == 200
    assert await echo.next("n") == [{"a": "ü"}]
    batch = [{"channel": "general", "name": "n", "data": n} for n in range(3)]
    assert await call("triggerBatch", batch) == {"status": 200, "body": {}}
    assert [(await echo.next("n"))[0] for _ in range(3)] == [0, 1, 2]
    answer = await call("get", {"path": "/channels", "params": {"filter_by_prefix": "presence-"}})
    assert answer["body"] == {"channels": {"presence-room": {}}}
    answer = await call("get", {"path": "/channels/presence-room/users"})
    assert answer["body"] == {"users": [{"id": "7"}]}
    wrong = await publisher(edge, secret="another-secret")
    assert (await wrong("trigger", "general", "n", 1))["status"] == 401
    assert (await call("trigger", "general", "n", "x" * 2_000_000))["status"] == 413


async def test_encrypted_channel_passes_through(connected, start_edge, bus, publisher):
    key = base64.b64encode(b"7" * 32).decode()
    rules = ChannelRules([Rule(Pattern("encrypted-box"), ChannelKind.PRIVATE, AUTHENTICATED)])
    edge = await start_edge(bus, rules=rules, pusher_encryption_key=key, **APP)
    call = await publisher(edge, encryptionMasterKeyBase64=key)
    echo = await connected(edge, "7")
    await echo.run("""
        echo.encryptedPrivate("box").listen(".n", (n) => say("n", n)).subscribed(() => say("in"));
    """)
    await echo.next("in")
    assert (await call("trigger", "private-encrypted-box", "n", {"secret": 1}))["status"] == 200
    assert await echo.next("n") == [{"secret": 1}]


async def test_cache_channel_begins_with_its_last_event(connected, start_edge, bus, publisher):
    rules = ChannelRules([Rule(Pattern("cache-news"), ChannelKind.PUBLIC, ANYONE)])
    edge = await start_edge(bus, rules=rules, **APP)
    echo = await connected(edge)
    await echo.run("""
        const news = pusher.subscribe("cache-news");
        news.bind("pusher:cache_miss", () => say("miss"));
        news.bind("n", (n) => say("n", n));
    """)
    await echo.next("miss")
    call = await publisher(edge)
    await call("trigger", "cache-news", "n", 1)
    assert await echo.next("n") == [1]
    later = await connected(edge)
    await later.run('pusher.subscribe("cache-news").bind("n", (n) => say("n", n));')
    assert await later.next("n") == [1]


async def test_a_thousand_messages_keep_their_order(connected, edge, bus):
    echo = await connected(edge)
    await echo.run("""
        echo.channel("general").listen(".n", (n) => say("n", n))
          .subscribed(() => say("subscribed"));
    """)
    await echo.next("subscribed")
    published = {}
    for start in range(0, 1000, 100):
        sends = {n: bus.publish("general", "n", n) for n in range(start, start + 100)}
        receipts = await asyncio.gather(*sends.values())
        published |= {receipt.offset: n for n, receipt in zip(sends, receipts, strict=True)}
    received = [(await echo.next("n"))[0] for _ in range(1000)]
    assert received == [published[offset] for offset in sorted(published)]
