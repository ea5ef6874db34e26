"""The Pusher protocol over WebSockets, frame by frame; tests/echo has real clients of it."""

import asyncio
import base64
import json
import re

import aiohttp
import msgspec
import pytest
from hypothesis import given, strategies as st
from websockets.frames import Opcode

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern, validate_channel
from eventbus.config import Settings
from eventbus.errors import ConfigError, InvalidChannel
from eventbus.integrations.pusher import PusherApp
from eventbus_edge.access.rules import ANYONE, AUTHENTICATED, ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from eventbus_edge.protocols.pusher import (
    Pusher,
    channel_of,
    name_of,
)
from eventbus_edge.protocols.vocabulary import Command, Malformed
from eventbus_edge.pusher import read_app

KEY, SECRET = "app-key", "app-secret-of-the-tests"
APP = PusherApp(id="1001", key=KEY, secret=SECRET)
SETTINGS = {"pusher_app_id": "1001", "pusher_app_key": KEY, "pusher_app_secret": SECRET}
RULES = [
    Rule(Pattern("news.>"), ChannelKind.PUBLIC, ANYONE, AUTHENTICATED),
    Rule(Pattern("cache-news"), ChannelKind.PUBLIC, ANYONE),
    Rule(Pattern("encrypted-box"), ChannelKind.PRIVATE, AUTHENTICATED),
]


class Client:
    """A client that has been greeted."""

    def __init__(self, client):
        self._client = client
        self.socket = client.socket

    async def next(self):
        frame = await self._client.next()
        if isinstance(frame.get("data"), str) and frame["event"].startswith("pusher"):
            frame["data"] = json.loads(frame["data"])
        return frame

    async def send(self, event, data=None, **fields):
        await self.socket.send(json.dumps({"event": event, "data": data or {}} | fields))

    async def ask(self, event, data=None, **fields):
        await self.send(event, data, **fields)
        return await self.next()

    async def subscribe(self, name, channel_data=None, **changes):
        data = {"channel": name}
        if channel_data is not None:
            data["channel_data"] = channel_data
        if name.startswith(("private-", "presence-")):
            data["auth"] = APP.sign_channel(self.id, name, channel_data)
        return await self.ask("pusher:subscribe", data | changes)

    async def receives_nothing(self):
        return (await self.ask("pusher:ping"))["event"] == "pusher:pong"

    async def closed(self):
        return await self._client.closed()


@pytest.fixture
async def memory_bus():
    async with EventBus(Settings(driver="memory")) as bus:
        yield bus


@pytest.fixture
async def edge(start_edge, memory_bus):
    return await start_edge(memory_bus, rules=ChannelRules(RULES), presence_grace=0.0, **SETTINGS)


@pytest.fixture
def connect(edge):
    async def open_one(
        node=edge, path=f"/app/{KEY}?protocol=7&client=js&version=8.6.0&flash=false"
    ):
        client = Client(await node.connect(path, greeted=False))
        greeting = await client.next()
        assert greeting["event"] == "pusher:connection_established"
        assert re.fullmatch(r"\d+\.\d+", greeting["data"]["socket_id"])
        client.id, client.greeting = greeting["data"]["socket_id"], greeting["data"]
        return client

    return open_one


def succeeded(name, data):
    return {"event": "pusher_internal:subscription_succeeded", "channel": name, "data": data}


# Signatures and names


@pytest.mark.parametrize(
    ("name", "channel_data", "signature"),
    [
        (
            "private-orders",
            None,
            "2d1e5109f17c93a347d0a52f060df3a517761ce1ddcd7bce2998c4f1925a7cab",
        ),
        (
            "presence-room",
            '{"user_id":"7","user_info":{"name":"Ann"}}',
            "41bf4b33456ff2a84fb0b430b58c0b8fea926736689011a49c16c6aa94f32ecd",
        ),
    ],
    ids=["private", "presence"],
)
def test_signatures_are_those_of_the_protocols_documentation(name, channel_data, signature):
    app = PusherApp(id="1001", key="app-key", secret="app-secret")
    assert app.sign_channel("1234.5678", name, channel_data) == f"app-key:{signature}"


@pytest.mark.parametrize(
    ("name", "channel", "kind"),
    [
        ("general", "general", ChannelKind.PUBLIC),
        ("private-user.123", "user.123", ChannelKind.PRIVATE),
        ("presence-chat.42", "presence.chat.42", ChannelKind.PRESENCE),
        ("private-encrypted-box", "encrypted-box", ChannelKind.PRIVATE),
        ("cache-news", "cache-news", ChannelKind.PUBLIC),
        ("private-cache-news", "cache-news", ChannelKind.PRIVATE),
        ("presence-cache-room", "presence.cache-room", ChannelKind.PRESENCE),
    ],
)
def test_names_carry_the_kind_as_a_prefix(name, channel, kind):
    assert channel_of(name) == (channel, kind)
    assert name_of(channel, kind) == name


@given(st.from_regex(r"[A-Za-z0-9_=@,;-]{1,20}(\.[A-Za-z0-9_=@,;-]{1,20}){0,3}", fullmatch=True))
def test_every_name_leads_to_its_channel_and_back(name):
    channel, kind = channel_of(name)
    assert name_of(channel, kind) == name
    try:
        validate_channel(channel)
    except InvalidChannel:
        assert name in {"private-", "presence-"} or len(channel) > 200 or channel.startswith(".")


def test_settings_without_an_app_mean_that_the_protocol_is_not_spoken():
    assert read_app(EdgeSettings()) is None


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"pusher_app_id": "app"}, "PUSHER_APP_ID"),
        ({"pusher_app_id": ""}, "PUSHER_APP_ID"),
        ({"pusher_app_key": ""}, "PUSHER_APP_KEY"),
        ({"pusher_app_key": "a/b"}, "PUSHER_APP_KEY"),
        ({"pusher_app_secret": "short"}, "PUSHER_APP_SECRET"),
        ({"pusher_auth_cookie": "a b"}, "PUSHER_AUTH_COOKIE"),
        ({"pusher_encryption_key": "short"}, "PUSHER_ENCRYPTION_KEY"),
        ({"pusher_encryption_key": "é"}, "PUSHER_ENCRYPTION_KEY"),
    ],
)
def test_app_that_is_not_valid_is_refused_at_the_start(changes, variable):
    with pytest.raises(ConfigError) as caught:
        read_app(EdgeSettings(**SETTINGS | changes))
    assert caught.value.variable == variable
    assert "short" not in str(caught.value)


# Connections


async def test_client_is_greeted_with_its_id_and_when_to_ping(connect):
    client = await connect()
    assert client.greeting["activity_timeout"] == 30
    assert (await client.ask("pusher:ping"))["event"] == "pusher:pong"
    assert (await connect(path=f"/app/{KEY}")).id != client.id


async def test_where_tokens_are_required_a_signature_is_as_good(start_edge, memory_bus, connect):
    node = await start_edge(memory_bus, auth_required=True, auth_timeout=5.0, **SETTINGS)
    member, user, stranger = [await connect(node) for _ in range(3)]
    assert (await member.subscribe("private-user.7"))["event"].endswith("succeeded")
    data = json.dumps({"id": "7"})
    auth = APP.sign_user(user.id, data)
    answer = await user.ask("pusher:signin", {"auth": auth, "user_data": data})
    assert answer["event"] == "pusher:signin_success"
    await stranger.subscribe("general")
    assert (await stranger.next())["data"]["code"] == 4009
    assert await stranger.closed() == 4009
    for client in (member, user):
        assert await client.receives_nothing()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/app/unknown?protocol=7", 4001),
        (f"/app/{KEY}?protocol=4", 4007),
        (f"/app/{KEY}?protocol=8", 4007),
        (f"/app/{KEY}?protocol=x", 4006),
        (f"/app/{KEY}?protocol=", 4006),
        (f"/app/{KEY}?protocol=7.1", 4006),
        ("/app/", 4001),
        (f"/app/{KEY}/x", 4001),
    ],
)
async def test_errors_of_the_handshake_come_within_the_socket(edge, path, code):
    client = await edge.connect(path, greeted=False)
    error = await client.next()
    assert error["event"] == "pusher:error"
    assert error["data"]["code"] == code
    assert await client.closed() == code


async def test_foreign_origin_is_refused_within_the_socket(edge):
    headers = {"Origin": "https://evil.example"}
    client = await edge.connect(f"/app/{KEY}", greeted=False, headers=headers)
    assert (await client.next())["data"]["code"] == 4009
    assert await client.closed() == 4009


async def test_draining_node_sends_its_clients_elsewhere_at_once(edge, connect):
    client = await connect()
    await edge.node.connections.drain()
    assert (await client.next())["data"]["code"] == 4200
    assert await client.closed() == 4200


def answer_no_pings(client):
    """Keep the library from answering the socket's pings."""
    protocol = client.socket.protocol
    send = protocol.send_frame
    protocol.send_frame = lambda frame: frame.opcode is Opcode.PONG or send(frame)


async def test_silent_client_is_asked_and_then_closed(start_edge, memory_bus, connect):
    node = await start_edge(memory_bus, heartbeat=1.5, **SETTINGS)
    client = await connect(node)
    answer_no_pings(client)
    assert (await client.next())["event"] == "pusher:ping"
    await client.send("pusher:pong")
    assert (await client.next())["event"] == "pusher:ping"
    error = await client.next()
    assert (error["event"], error["data"]["code"]) == ("pusher:error", 4201)
    assert await client.closed() == 4201


async def test_client_that_answers_only_the_pings_of_its_socket_stays(
    start_edge, memory_bus, connect
):
    """As those for Android and iOS do."""
    node = await start_edge(memory_bus, heartbeat=0.5, **SETTINGS)
    client = await connect(node)
    for _ in range(5):
        assert (await client.next())["event"] == "pusher:ping"
    assert await client.receives_nothing()


@pytest.mark.parametrize(
    "frame",
    [
        '{"event":"pusher:subscribe","data":{"channel":""}}',
        "nonsense", "[]", "7", '"a"', "{}", '{"event":7}', '{"event":"unknown","data":{}}',
        '{"event":"pusher:subscribe"}', '{"event":"pusher:subscribe","data":{"channel":7}}',
        '{"event":"pusher:subscribe","data":"{"}', '{"event":"pusher:unsubscribe","data":[]}',
        '{"event":"client-x","data":1}', '{"event":"client-x","channel":7,"data":1}',
        '{"event":"client-x","channel":"private-chat.1","data":' + "[" * 2000 + "]" * 2000 + "}",
        b"binary",
    ],
    ids=range(16),
)  # fmt: skip
async def test_malformed_message_is_answered_and_hurts_nobody(connect, frame):
    client, other = await connect(), await connect()
    await client.socket.send(frame)
    assert (await client.next())["event"] == "pusher:error"
    for each in (client, other):
        assert await each.receives_nothing()


@given(st.text() | st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_decoding_never_raises(frame):
    assert isinstance(Pusher(APP, lambda _: ChannelKind.PUBLIC).decode(frame), Command)


@given(
    st.sampled_from(["pusher:subscribe", "pusher:unsubscribe", "pusher:ping", "client-x", "x"]),
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.dictionaries(st.sampled_from(["channel", "auth", "channel_data"]), inner),
    ),
)
def test_decoding_never_raises_for_any_data(event, data):
    frame = json.dumps({"event": event, "data": data, "channel": "general"})
    command = Pusher(APP, lambda _: ChannelKind.PUBLIC).decode(frame)
    assert isinstance(command, Command)
    if event == "x":
        assert isinstance(command, Malformed)


# Subscriptions


async def test_public_channel_needs_no_signature(connect, memory_bus):
    client = await connect()
    assert await client.subscribe("general", auth="") == succeeded("general", {})
    await memory_bus.publish("general", "news", {"text": "é"})
    assert await client.next() == {
        "event": "news", "channel": "general", "data": '{"text":"é"}',
    }  # fmt: skip


async def test_data_of_a_subscription_may_be_a_string(connect):
    client = await connect()
    data = json.dumps({"channel": "general"})
    assert await client.ask("pusher:subscribe", data) == succeeded("general", {})


async def test_private_channel_is_joined_with_a_signature(connect, memory_bus):
    client = await connect()
    assert await client.subscribe("private-user.7") == succeeded("private-user.7", {})
    await memory_bus.publish("user.7", "shipped", {"order": 1})
    frame = await client.next()
    assert (frame["channel"], frame["data"]) == ("private-user.7", '{"order":1}')


@pytest.mark.parametrize(
    "changes",
    [
        {"auth": ""},
        {"auth": None},
        {"auth": "app-key:" + "0" * 64},
        {"auth": "app-key:é"},
    ],
    ids=["empty", "missing", "wrong", "not-ascii"],
)
async def test_wrong_signature_is_refused_and_the_connection_stays(connect, changes):
    client = await connect()
    answer = await client.subscribe("private-user.7", **changes)
    assert answer["event"] == "pusher:subscription_error"
    assert (answer["channel"], answer["data"]["type"]) == ("private-user.7", "AuthError")
    assert answer["data"]["status"] == 401
    assert await client.receives_nothing()
    assert await client.subscribe("private-user.7") == succeeded("private-user.7", {})
    again = await client.subscribe("private-user.7", **changes)
    assert again == answer


async def test_signature_of_another_connection_or_app_is_refused(connect):
    client, other = await connect(), await connect()
    for stolen in (
        APP.sign_channel(other.id, "private-user.7"),
        msgspec.structs.replace(APP, key="other").sign_channel(client.id, "private-user.7"),
        msgspec.structs.replace(APP, secret="another-secret").sign_channel(
            client.id, "private-user.7"
        ),
        APP.sign_channel(client.id, "private-user.8"),
        APP.sign_channel(client.id, "private-user.7", "{}"),
    ):
        answer = await client.subscribe("private-user.7", auth=stolen)
        assert answer["event"] == "pusher:subscription_error"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("user.7", "private-user.7"),
        ("presence.room", "presence-room"),
        ("private-general", "general"),
        ("presence-room", None),
        ("private-presence.room", "presence-room"),
    ],
)
async def test_name_whose_prefix_is_not_that_of_the_rule_is_refused(connect, name, right):
    client = await connect()
    if right is None:
        answer = await client.subscribe(name, '{"user_id":"7"}')
        assert answer["event"] == "pusher_internal:subscription_succeeded"
        return
    answer = await client.subscribe(name)
    assert (answer["event"], answer["channel"]) == ("pusher:subscription_error", name)
    assert repr(right) in answer["data"]["error"]


async def test_channel_without_a_rule_is_refused_in_spite_of_its_signature(connect):
    client = await connect()
    answer = await client.subscribe("private-nobody.knows")
    assert answer["event"] == "pusher:subscription_error"


@pytest.mark.parametrize("name", ["a b", "a..b", "x" * 201, "private-", "#server-to-user-7"])
async def test_name_that_is_not_valid_is_refused(connect, name):
    client = await connect()
    answer = await client.subscribe(name)
    assert (answer["event"], answer["channel"]) == ("pusher:subscription_error", name)


async def test_repeated_subscription_is_confirmed_and_delivers_once(connect, memory_bus):
    client = await connect()
    for _ in range(3):
        assert await client.subscribe("general") == succeeded("general", {})
    await memory_bus.publish("general", "news", 1)
    assert (await client.next())["data"] == "1"
    assert await client.receives_nothing()


async def test_member_subscribes_again_as_the_same_user_only(connect):
    ann, other = await connect(), await connect()
    await other.subscribe("presence-room", member("w"))
    await ann.subscribe("presence-room", member("7", name="Ann"))
    await other.next()
    answer = await ann.subscribe("presence-room", member("8"))
    assert (answer["event"], answer["data"]["status"]) == ("pusher:subscription_error", 403)
    again = await ann.subscribe("presence-room", member("7"))
    assert sorted(again["data"]["presence"]["ids"]) == ["7", "w"]
    assert await other.receives_nothing()
    await ann.send("pusher:unsubscribe", {"channel": "presence-room"})
    assert (await other.next())["data"] == {"user_id": "7"}
    await ann.subscribe("presence-room", member("8"))
    assert (await other.next())["data"]["user_id"] == "8"


async def test_unsubscribing_is_not_answered(connect, memory_bus):
    client = await connect()
    await client.subscribe("general")
    for name in ("general", "general", "unknown", "private-x", "a b"):
        await client.send("pusher:unsubscribe", {"channel": name})
    assert await client.receives_nothing()
    await memory_bus.publish("general", "news", 1)
    assert await client.receives_nothing()


async def test_cache_channel_begins_with_its_last_message(connect, memory_bus):
    await memory_bus.publish("cache-news", "news", 1)
    await memory_bus.publish("cache-news", "news", 2)
    client = await connect()
    assert await client.subscribe("cache-news") == succeeded("cache-news", {})
    assert (await client.next())["data"] == "2"
    await memory_bus.publish("cache-news", "news", 3)
    assert (await client.next())["data"] == "3"


async def test_empty_cache_channel_says_so(connect, memory_bus):
    client, plain = await connect(), await connect()
    assert await client.subscribe("cache-news") == succeeded("cache-news", {})
    assert await client.next() == {"event": "pusher:cache_miss", "channel": "cache-news"}
    await memory_bus.publish("cache-news", "client-x", 1, volatile=True)  # is not stored
    await client.next()
    await plain.subscribe("cache-news")
    assert (await plain.next())["event"] == "pusher:cache_miss"
    await plain.subscribe("general")
    assert await plain.receives_nothing()


async def test_data_of_an_encrypted_channel_passes_untouched(connect, memory_bus):
    client = await connect()
    assert (await client.subscribe("private-encrypted-box"))["event"].endswith("succeeded")
    sealed = b'{"nonce":"4sVYwy4j/8dCcjyxtPCWyk19GaaViaW9",  "ciphertext":"/GMESnFGlbNn01BuBjp31"}'
    body = b'{"event":"e","data":%b}' % sealed
    await memory_bus.driver.publish(memory_bus.subjects.event("encrypted-box"), body)
    assert (await client.next())["data"] == sealed.decode()


# Presence and client events


def member(user_id, **info):
    return json.dumps({"user_id": user_id, "user_info": info})


async def test_members_are_users_and_see_each_other_come_and_go(connect):
    ann, bob, tab = await connect(), await connect(), await connect()
    answer = await ann.subscribe("presence-room", member("7", name="Ann"))
    presence = {"ids": ["7"], "hash": {"7": {"id": "7", "name": "Ann"}}, "count": 1}
    assert answer == succeeded("presence-room", {"presence": presence})
    answer = await bob.subscribe("presence-room", member(9))
    assert answer["data"]["presence"]["count"] == 2
    assert answer["data"]["presence"]["hash"]["9"] == {"id": "9"}
    assert await ann.next() == {
        "event": "pusher_internal:member_added",
        "channel": "presence-room",
        "data": {"user_id": "9", "user_info": {"id": "9"}},
    }
    await tab.subscribe("presence-room", member("9"))
    await bob.send("pusher:unsubscribe", {"channel": "presence-room"})
    assert await ann.receives_nothing()
    await tab.socket.close()
    assert await ann.next() == {
        "event": "pusher_internal:member_removed",
        "channel": "presence-room",
        "data": {"user_id": "9"},
    }


@pytest.mark.parametrize(
    ("user_id", "info", "shown"),
    [("7", {}, "7"), ("7", {"id": 7}, 7), ("7", {"id": "7"}, "7"), ("7", {"id": "8"}, "7"),
     ("7", {"id": None}, "7"), ("7", {"id": {"a": 7}}, "7"), ('é"', {"id": 'é"'}, 'é"')],
)  # fmt: skip
async def test_info_cannot_make_a_member_somebody_else(connect, user_id, info, shown):
    client = await connect()
    answer = await client.subscribe("presence-room", member(user_id, **info))
    [found] = answer["data"]["presence"]["hash"].values()
    assert found == {"id": shown}


@pytest.mark.parametrize("info", ["Ann", ["Ann", 7], 7, False, {"name": "Ann"}])
async def test_info_of_a_member_may_be_any_value(connect, info):
    watcher, client = await connect(), await connect()
    await watcher.subscribe("presence-room", member("w"))
    data = json.dumps({"user_id": "7", "user_info": info})
    answer = await client.subscribe("presence-room", data)
    shown = {"id": "7", **info} if isinstance(info, dict) else info
    assert answer["data"]["presence"]["hash"]["7"] == shown
    assert (await watcher.next())["data"] == {"user_id": "7", "user_info": shown}


@pytest.mark.parametrize(
    "data", ["", "{}", "[]", '{"user_id":""}', '{"user_id":null}', '{"user_id":true}', "{"]
)
async def test_member_without_a_usable_id_is_refused(connect, data):
    client = await connect()
    answer = await client.subscribe("presence-room", data)
    assert answer["event"] == "pusher:subscription_error"


async def test_user_in_many_tabs_joins_once_and_leaves_once(connect):
    watcher, tabs = await connect(), [await connect() for _ in range(8)]
    await watcher.subscribe("presence-room", '{"user_id":"w"}')
    # A server library may sign the id as a number or as a string, with any spaces and escapes.
    forms = ['{"user_id":7}', '{ "user_id": "7", "user_info": {"n": "\\u00fc 🚀"} }']
    for number, tab in enumerate(tabs):
        joined = await tab.subscribe("presence-room", forms[number % 2])
        assert sorted(joined["data"]["presence"]["ids"]) == ["7", "w"]
    added = await watcher.next()
    assert (added["event"], added["data"]["user_id"]) == ("pusher_internal:member_added", "7")
    for tab in tabs[:4]:
        await tab.send("pusher:unsubscribe", {"channel": "presence-room"})
        assert await tab.receives_nothing()
    for tab in tabs[4:]:
        await tab.socket.close()
    removed = await watcher.next()
    assert removed["event"] == "pusher_internal:member_removed"
    assert await watcher.receives_nothing()


@pytest.mark.parametrize("user_id", ["a b", "ü🚀", "*", ">", "a.b", "~7e", "$", "<b>", "\u0000"])
async def test_user_id_may_have_any_characters(connect, user_id):
    one, other = await connect(), await connect()
    await one.subscribe("presence-room", '{"user_id":"w"}')
    joined = await other.subscribe("presence-room", json.dumps({"user_id": user_id}))
    assert user_id in joined["data"]["presence"]["hash"]
    assert (await one.next())["data"]["user_id"] == user_id
    user_data = json.dumps({"id": user_id})
    auth = APP.sign_user(other.id, user_data)
    answer = await other.ask("pusher:signin", {"auth": auth, "user_data": user_data})
    assert answer["data"] == {"user_data": user_data}


async def test_client_that_joins_and_leaves_without_waiting_ends_as_it_asked(connect, memory_bus):
    client = await connect()
    for _ in range(5):
        await client.send("pusher:subscribe", {"channel": "general"})
        await client.send("pusher:unsubscribe", {"channel": "general"})
    await client.send("pusher:subscribe", {"channel": "general"})
    for _ in range(6):
        assert await client.next() == succeeded("general", {})
    await memory_bus.publish("general", "n", 1)
    assert (await client.next())["data"] == "1"
    await client.send("pusher:unsubscribe", {"channel": "general"})
    assert await client.receives_nothing()
    await memory_bus.publish("general", "n", 2)
    assert await client.receives_nothing()


async def test_client_events_reach_the_others_with_their_data_as_it_is(connect, edge, token):
    one, two = await connect(), await connect()
    native = await edge.connect(token=token("5"))
    await native.subscribe("chat.1")
    for client in (one, two):
        await client.subscribe("private-chat.1")
    await one.send("client-typing", {"on": True}, channel="private-chat.1", user_id="forged")
    assert await two.next() == {
        "event": "client-typing", "channel": "private-chat.1", "data": {"on": True},
    }  # fmt: skip
    assert (await native.next())["data"] == {"on": True}
    assert await one.receives_nothing()
    await native.send("whisper", channel="chat.1", event="typing", data="x")
    assert (await two.next())["data"] == "x"


async def test_client_event_in_a_presence_channel_names_its_sender(connect):
    ann, bob = await connect(), await connect()
    await ann.subscribe("presence-room", member("7"))
    await bob.subscribe("presence-room", member("9"))
    await ann.next()
    await bob.send("client-wave", 1, channel="presence-room", user_id="7")
    assert await ann.next() == {
        "event": "client-wave", "channel": "presence-room", "data": 1, "user_id": "9",
    }  # fmt: skip


async def test_client_events_are_for_members_of_private_channels_only(connect):
    one, other = await connect(), await connect()
    for client in (one, other):
        await client.subscribe("news.1")
    for name, code in (("news.1", 4009), ("private-chat.1", 4009), ("private-user.7", 4009)):
        answer = await one.ask("client-x", 1, channel=name)
        assert (answer["event"], answer["data"]["code"]) == ("pusher:error", code)
    assert await other.receives_nothing()


@pytest.mark.usefixtures("no_refills")
async def test_too_many_actions_are_an_error_and_no_close(start_edge, memory_bus, connect):
    node = await start_edge(memory_bus, max_actions_per_second=1.0, action_burst=3, **SETTINGS)
    client = await connect(node)
    answers = [await client.ask("pusher:ping") for _ in range(4)]
    assert [answer["event"] for answer in answers] == [*["pusher:pong"] * 3, "pusher:error"]
    assert answers[-1]["data"]["code"] == 4301


async def test_presence_is_shared_with_native_clients(connect, edge, token):
    echo = await connect()
    await echo.subscribe("presence-room", member("7", name="Ann"))
    native = await edge.connect(token=token("9", info={"name": "Bob"}))
    seen = await native.subscribe("presence.room")
    assert {each["user_id"] for each in seen["members"]} == {"7", "9"}
    added = await echo.next()
    assert added["data"] == {"user_id": "9", "user_info": {"id": "9", "name": "Bob"}}


async def test_messages_keep_their_order(connect, memory_bus):
    client = await connect()
    await client.subscribe("general")
    for number in range(1000):
        await memory_bus.publish("general", "n", number)
    async with asyncio.timeout(40):
        received = [json.loads((await client.next())["data"]) for _ in range(1000)]
    assert received == list(range(1000))


# Signing with the user's token


async def post(edge, body, *, json_body=False, token=None, headers=None, **options):
    headers = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    body = {"json": body} if json_body else {"data": body}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{edge.url}/broadcasting/auth", headers=headers, **body, **options) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize("json_body", [False, True])
async def test_subscription_is_signed_for_a_user_who_may_join(connect, edge, token, json_body):
    client = await connect()
    body = {"socket_id": client.id, "channel_name": "private-user.7"}
    status, signed = await post(edge, body, json_body=json_body, token=token("7"))
    assert (status, list(signed)) == (200, ["auth"])
    answer = await client.subscribe("private-user.7", **signed)
    assert answer["event"] == "pusher_internal:subscription_succeeded"


async def test_presence_is_signed_with_the_users_data(connect, edge, token):
    client = await connect()
    body = {"socket_id": client.id, "channel_name": "presence-room"}
    status, signed = await post(edge, body, token=token("7", info={"name": "Ann"}))
    assert status == 200
    answer = await client.subscribe("presence-room", **signed)
    assert answer["data"]["presence"]["hash"] == {"7": {"id": "7", "name": "Ann"}}


@pytest.mark.parametrize(
    ("name", "user", "status"),
    [
        ("private-user.8", "7", 403),
        ("private-user.7", None, 401),
        ("user.7", "7", 403),
        ("private-general", "7", 403),
        ("private-a b", "7", 400),
        ("private-nobody.knows", "7", 403),
    ],
)
async def test_nothing_is_signed_that_the_token_does_not_allow(edge, token, name, user, status):
    body = {"socket_id": "1.2", "channel_name": name}
    answer, problem = await post(edge, body, token=user and token(user))
    assert (answer, "auth" in problem) == (status, False)


@pytest.mark.parametrize(
    "body", [{}, {"socket_id": "1.2"}, {"socket_id": "x", "channel_name": "private-user.7"}]
)
async def test_request_to_sign_that_is_not_valid_is_refused(edge, token, body):
    for json_body in (False, True):
        assert (await post(edge, body, json_body=json_body, token=token("7")))[0] == 400


@pytest.mark.parametrize("levels", [150, 1200, 5000])
async def test_deeply_nested_request_to_sign_is_refused_at_the_same_depth_on_every_node(
    edge, token, levels
):
    body = '{"socket_id":"1.2","channel_name":"private-user.7","unknown":%s}'
    body %= "[" * levels + "]" * levels
    headers = {"Content-Type": "application/json"}
    status, problem = await post(edge, body, headers=headers, token=token("7"))
    assert (status, "nested too deeply" in problem["detail"]) == (400, True)


async def test_key_of_an_encrypted_channel_comes_with_the_signature(start_edge, memory_bus, token):
    rules = ChannelRules(RULES)
    body = {"socket_id": "1.2", "channel_name": "private-encrypted-box"}
    plain = await start_edge(memory_bus, rules=rules, **SETTINGS)
    assert "shared_secret" not in (await post(plain, body, token=token("7")))[1]
    key = base64.b64encode(b"\7" * 32).decode()
    node = await start_edge(memory_bus, rules=rules, pusher_encryption_key=key, **SETTINGS)
    status, signed = await post(node, body, token=token("7"))
    assert (status, signed["shared_secret"]) == (
        200,
        "zuN+clzV3Jp6Ax/iBan0t1wM4TZQjIjiLU5DCHmhC0I=",
    )
    body["channel_name"] = "private-user.7"
    assert "shared_secret" not in (await post(node, body, token=token("7")))[1]


async def test_signatures_cost_their_address_little_and_refused_tokens_a_lot(
    start_edge, memory_bus, token
):
    limits = {"max_requests_per_address": 0.001, "max_connections_per_address": 3}
    node = await start_edge(memory_bus, **limits, **SETTINGS)
    body = {"socket_id": "1.2", "channel_name": "private-user.7"}
    statuses = [(await post(node, body, token=token("7")))[0] for _ in range(30)]
    assert statuses == [200] * 30
    refused = [(await post(node, body, token="not a token"))[0] for _ in range(6)]
    assert refused[0] == 401
    assert refused[-1] == 429


async def test_token_may_be_in_the_cookie_that_the_settings_name(start_edge, memory_bus, token):
    body = {"socket_id": "1.2", "channel_name": "private-user.7"}
    cookies = {"Cookie": f"session={token('7')}"}
    plain = await start_edge(memory_bus, **SETTINGS)
    assert (await post(plain, body, headers=cookies))[0] == 401
    node = await start_edge(memory_bus, pusher_auth_cookie="session", **SETTINGS)
    assert (await post(node, body, headers=cookies))[0] == 200
    foreign = cookies | {"Origin": "https://evil.example"}
    assert (await post(node, body, headers=foreign))[0] == 403


# Clients that resume, which other servers do not offer


@pytest.fixture
def connect_resuming(connect):
    async def start():
        return await connect(path=f"/app/{KEY}?protocol=7&cursor=1")

    return start


async def test_client_that_asks_for_cursors_gets_what_it_missed(connect_resuming, memory_bus):
    client = await connect_resuming()
    answer = await client.subscribe("general")
    assert answer["cursor"]
    await memory_bus.publish("general", "n", 1)
    cursor = (await client.next())["cursor"]
    await client.socket.close()
    for number in (2, 3):
        await memory_bus.publish("general", "n", number)
    again = await connect_resuming()
    answer = await again.subscribe("general", cursor=cursor)
    assert answer["data"] == {"recovered": True}
    assert [(await again.next())["data"] for _ in range(2)] == ["2", "3"]
    await memory_bus.publish("general", "n", 4)
    assert (await again.next())["data"] == "4"


async def test_inbox_continues_where_the_user_who_signs_in_was(connect_resuming, memory_bus):
    async def sign_in(**more):
        client = await connect_resuming()
        data = '{"id":"7"}'
        signed = {"auth": APP.sign_user(client.id, data), "user_data": data}
        answer = await client.ask("pusher:signin", signed | more)
        assert answer["event"] == "pusher:signin_success", answer
        return client

    client = await sign_in()
    await memory_bus.publish("server-to-user.7", "n", 1)
    message = await client.next()
    assert (message["channel"], message["data"]) == ("#server-to-user-7", "1")
    await client.socket.close()
    for number in (2, 3):
        await memory_bus.publish("server-to-user.7", "n", number)
    again = await sign_in(cursor=message["cursor"])
    assert [(await again.next())["data"] for _ in range(2)] == ["2", "3"]
    await memory_bus.publish("server-to-user.7", "n", 4)
    assert (await again.next())["data"] == "4"
    assert await again.receives_nothing()


async def test_client_that_cannot_be_brought_up_to_date_is_told_so(connect_resuming, memory_bus):
    client = await connect_resuming()
    await memory_bus.publish("general", "n", 1)
    answer = await client.subscribe("general", cursor='[1,"another stream"]')
    assert answer["data"] == {"recovered": False}
    assert await client.receives_nothing()


async def test_client_that_does_not_ask_for_cursors_gets_none(connect, memory_bus):
    client = await connect()
    assert await client.subscribe("general") == succeeded("general", {})
    await memory_bus.publish("general", "n", 1)
    assert "cursor" not in await client.next()


@pytest.mark.parametrize(
    "cursor", ["", "x", "[]", '[-1,"e"]', '[1,"e","m",2]', '[1.5,"e"]', "[1,7]", "null", 7]
)
async def test_cursor_that_is_not_valid_is_refused(connect_resuming, cursor):
    client = await connect_resuming()
    answer = await client.subscribe("general", cursor=cursor)
    assert answer["event"] == "pusher:error"
    assert await client.receives_nothing()
