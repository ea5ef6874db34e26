"""The HTTP API for server libraries of the Pusher protocol, with the one from PyPI."""

import asyncio
import contextlib
import functools
import hashlib
import hmac
import io
import json
import time

import aiohttp
import pusher
import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus.integrations.pusher import PusherApp
from eventbus_edge.access import ANYONE, ChannelRules, Rule

APP = PusherApp(id="1001", key="app-key", secret="app-secret-of-the-tests")
SETTINGS = {
    "pusher_app_id": APP.id,
    "pusher_app_key": APP.key,
    "pusher_app_secret": APP.secret,
}


class Client:
    def __init__(self, client):
        self._client = client

    async def greeted(self):
        self.id = (await self.next())["data"]["socket_id"]
        return self

    async def next(self):
        frame = await self._client.next()
        if frame["event"].startswith("pusher") and isinstance(frame.get("data"), str):
            frame["data"] = json.loads(frame["data"])
        return frame

    async def tell(self, event, **data):
        await self._client.socket.send(json.dumps({"event": event, "data": data}))

    async def ask(self, event, **data):
        await self.tell(event, **data)
        return await self.next()

    async def join(self, name, user_id=None):
        data = {"channel": name}
        if user_id is not None:
            data["channel_data"] = json.dumps({"user_id": user_id})
        if name.startswith("p"):
            data["auth"] = APP.sign_channel(self.id, name, data.get("channel_data"))
        answer = await self.ask("pusher:subscribe", **data)
        assert answer["event"] == "pusher_internal:subscription_succeeded", answer

    async def sign_in(self, user_id, **more):
        data = json.dumps({"id": user_id} | more)
        return await self.ask("pusher:signin", auth=APP.sign_user(self.id, data), user_data=data)

    async def whisper(self, name, event):
        await self._client.socket.send(json.dumps({"event": event, "channel": name, "data": 1}))
        return await self.next()

    async def receives_nothing(self):
        return (await self.ask("pusher:ping"))["event"] == "pusher:pong"

    async def closed(self):
        return await self._client.closed()


@pytest.fixture
async def bus():
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


@pytest.fixture
async def edge(start_edge, bus):
    return await start_edge(bus, presence_grace=0.0, unsubscribe_after=0.0, **SETTINGS)


@pytest.fixture
def connect(edge):
    async def start():
        return await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()

    return start


@pytest.fixture
def library(edge):
    """The methods of the library from PyPI, in a thread."""
    made = pusher.Pusher(
        app_id=APP.id, key=APP.key, secret=APP.secret, host="127.0.0.1", port=edge.port, ssl=False
    )

    async def call(method, *args, **kwargs):
        return await asyncio.to_thread(functools.partial(getattr(made, method), *args, **kwargs))

    return call


@contextlib.asynccontextmanager
async def answered(edge, method, path, body=None, *, secret=APP.secret, key=APP.key):
    """The answer to a signed request."""
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    path, _, query = path.partition("?")
    parameters = dict(each.split("=") for each in query.split("&") if each) | {
        "auth_key": key, "auth_timestamp": str(int(time.time())), "auth_version": "1.0",
    }  # fmt: skip
    if body:
        parameters["body_md5"] = hashlib.md5(body).hexdigest()
    query = "&".join(f"{name}={value}" for name, value in sorted(parameters.items()))
    text = f"{method}\n{path}\n{query}"
    made = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    url = f"{edge.url}{path}?{query}&auth_signature={made}"
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, url, data=io.BytesIO(body) if body else None, headers=headers
        ) as answer,
    ):
        yield answer


async def request(edge, method, path, body=None, **options):
    """A signed request; gives the status and the JSON of the answer."""
    async with answered(edge, method, path, body, **options) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_library_publishes_to_clients_of_both_protocols(edge, connect, library):
    one, two = await connect(), await connect()
    native = await edge.connect()
    await native.subscribe("general")
    for client in (one, two):
        await client.join("general")
    assert await library("trigger", ["general", "announcements"], "news", {"é": 1}, one.id) == {}
    assert await two.next() == {"event": "news", "channel": "general", "data": '{"é": 1}'}
    assert (await native.next())["data"] == {"é": 1}
    assert await one.receives_nothing()


@pytest.mark.parametrize(
    "text",
    ["hello", '"hello"', "123", '"123"', "é", ' {"a": 1}', "[1,\t2]", "", "null", "{", "NaN", "\\"],
)
async def test_data_of_a_publisher_arrives_byte_for_byte(edge, connect, text):
    client = await connect()
    await client.join("general")
    body = {"name": "news", "channel": "general", "data": text}
    assert await request(edge, "POST", "/apps/1001/events", body) == (200, {})
    assert (await client.next())["data"] == text


async def test_batch_is_delivered_in_its_order(connect, library):
    client = await connect()
    await client.join("general")
    batch = [{"channel": "general", "name": "n", "data": number} for number in range(10)]
    assert await library("trigger_batch", batch) == {}
    assert [(await client.next())["data"] for _ in range(10)] == [str(n) for n in range(10)]


async def test_answers_have_the_counts_that_were_asked_for(edge, connect):
    for _ in range(2):
        client = await connect()
        await client.join("general")
        await client.join("presence-room", 7)
    body = {"name": "n", "channels": ["general", "presence-room"], "data": "1",
            "info": "user_count,subscription_count"}  # fmt: skip
    status, answer = await request(edge, "POST", "/apps/1001/events", body)
    counts = {"general": {"subscription_count": 2}, "presence-room": {"user_count": 1}}
    assert (status, answer) == (200, {"channels": counts})
    batch = [{"name": "n", "channel": "general", "data": "1", "info": "subscription_count"},
             {"name": "n", "channel": "general", "data": "1"}]  # fmt: skip
    answer = await request(edge, "POST", "/apps/1001/batch_events", {"batch": batch})
    assert answer == (200, {"batch": [{"subscription_count": 2}, {}]})


async def test_attributes_of_many_channels_are_one_question(edge, connect, start_edge, bus):
    client = await connect()
    await client.join("presence-room", 7)
    node = await start_edge(bus, max_questions=0.01, **SETTINGS)
    names = ["presence-room", *(f"private-user.{number}" for number in range(98)), "general"]
    body = {"name": "n", "channels": names, "data": "1", "info": "user_count,subscription_count"}
    status, answer = await request(node, "POST", "/apps/1001/events", body)
    assert (status, len(answer["channels"])) == (200, 100)
    assert answer["channels"]["presence-room"] == {"user_count": 1}
    assert answer["channels"]["general"] == {"subscription_count": 0}
    assert (await client.next())["event"] == "n"
    # The next request asks the cluster once too often, so it publishes nothing.
    assert (await request(node, "POST", "/apps/1001/events", body))[0] == 503
    assert await client.receives_nothing()


async def test_channels_are_listed_by_their_names(edge, connect, library):
    assert await library("channels_info") == {"channels": {}}
    client = await connect()
    for name, user in (("general", None), ("private-user.7", None), ("presence-room", 7)):
        await client.join(name, user)
    await client.sign_in("7")
    listed = await library("channels_info")
    assert listed == {"channels": {"general": {}, "private-user.7": {}, "presence-room": {}}}
    listed = await library("channels_info", prefix_filter="presence-", attributes=["user_count"])
    assert listed == {"channels": {"presence-room": {"user_count": 1}}}
    assert (await request(edge, "GET", "/apps/1001/channels?info=user_count"))[0] == 400


async def test_one_channel_is_described(edge, connect, library, bus):
    client = await connect()
    await client.join("presence-room", 7)
    await client.join("general")
    described = await library("channel_info", "presence-room", attributes=["user_count"])
    assert described == {"occupied": True, "user_count": 1}
    described = await library("channel_info", "general", attributes=["subscription_count"])
    assert described == {"occupied": True, "subscription_count": 1}
    assert await library("channel_info", "announcements") == {"occupied": False}
    assert await library("channel_info", "private-general") == {"occupied": False}
    assert (await request(edge, "GET", "/apps/1001/channels/general?info=user_count"))[0] == 400
    path = "/apps/1001/channels/private-cache-x?info=cache"
    assert (await request(edge, "GET", path))[1] == {"occupied": False, "cache": None}
    await bus.publish("cache-x", "n", 1)
    cache = (await request(edge, "GET", path))[1]["cache"]
    assert cache["data"] == "1"
    assert 0 < cache["ttl"] <= bus.settings.history_seconds
    body = {"channel": "cache-x", "event": "n", "data": 2, "id": "old",
            "timestamp": "2020-01-01T00:00:00Z"}  # fmt: skip
    await bus.driver.publish(bus.subjects.event("cache-x"), json.dumps(body).encode())
    assert (await request(edge, "GET", path))[1]["cache"]["data"] == "2"
    await bus.driver.publish(bus.subjects.event("cache-x"), b"not json")
    assert (await request(edge, "GET", path))[1]["cache"]["data"] == "2"
    assert (await request(edge, "GET", "/apps/1001/channels/general?info=cache"))[1] == {
        "occupied": True, "cache": None,
    }  # fmt: skip


async def test_users_of_a_presence_channel_are_listed_once(edge, connect, library):
    for user in (7, 7, "9"):
        await (await connect()).join("presence-room", user)
    users = (await library("users_info", "presence-room"))["users"]
    assert sorted(user["id"] for user in users) == ["7", "9"]
    assert await library("users_info", "presence-empty") == {"users": []}
    assert (await request(edge, "GET", "/apps/1001/channels/general/users"))[0] == 400


# Users who sign in


async def test_user_who_has_signed_in_is_reached_without_a_subscription(connect, edge):
    client, other = await connect(), await connect()
    answer = await client.sign_in("7", user_info={"name": "Ann"})
    assert answer["event"] == "pusher:signin_success"
    assert json.loads(answer["data"]["user_data"])["id"] == "7"
    assert (await other.sign_in("8"))["event"] == "pusher:signin_success"
    body = {"name": "n", "channel": "#server-to-user-7", "data": "1"}
    assert await request(edge, "POST", "/apps/1001/events", body) == (200, {})
    assert await client.next() == {"event": "n", "channel": "#server-to-user-7", "data": "1"}
    assert await other.receives_nothing()
    answer = await client.ask("pusher:subscribe", channel="#server-to-user-7", auth="")
    assert answer["event"] == "pusher_internal:subscription_succeeded"
    assert answer["channel"] == "#server-to-user-7"
    await request(edge, "POST", "/apps/1001/events", body)
    assert (await client.next())["event"] == "n"
    assert await client.receives_nothing()


@pytest.mark.parametrize(
    "name", ["#server-to-user-7", "private-server-to-user.7", "server-to-user.7"]
)
async def test_nobody_else_can_subscribe_to_the_messages_of_a_user(connect, name):
    stranger, other = await connect(), await connect()
    await other.sign_in("8")
    for client in (stranger, other):
        auth = APP.sign_channel(client.id, name)
        answer = await client.ask("pusher:subscribe", channel=name, auth=auth)
        assert answer["event"] == "pusher:subscription_error"


async def test_broad_rule_lets_nobody_else_read_the_messages_of_a_user(start_edge, bus):
    rules = ChannelRules([Rule(Pattern(">"), ChannelKind.PUBLIC, ANYONE)])
    edge = await start_edge(bus, rules=rules, **SETTINGS)
    native = await edge.connect("/ws")
    await native.subscribe("general")
    answer = await native.ask("subscribe", channel="server-to-user.7")
    assert answer["data"]["code"] in {"forbidden", "unauthorized"}
    client = await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()
    assert (await client.sign_in("7"))["event"] == "pusher:signin_success"
    body = {"name": "n", "data": "1", "channel": "#server-to-user-7"}
    assert await request(edge, "POST", "/apps/1001/events", body) == (200, {})
    assert (await client.next())["event"] == "n"


async def test_name_of_another_kind_is_not_the_channel(edge, connect):
    client, other = await connect(), await connect()
    for each in (client, other):
        await each.join("private-chat.1")
    await client.tell("pusher:unsubscribe", channel="chat.1")
    assert await client.receives_nothing()
    await request(
        edge, "POST", "/apps/1001/events", {"name": "n", "data": "1", "channel": "private-chat.1"}
    )
    assert [(await each.next())["event"] for each in (client, other)] == ["n", "n"]
    refused = await other.whisper("chat.1", "client-typing")
    assert refused["data"]["code"] == 4009
    assert "its name is 'private-chat.1'" in refused["data"]["message"]
    assert await client.receives_nothing()
    path = "/apps/1001/channels/chat.1?info=subscription_count"
    answer = await request(edge, "GET", path)
    assert answer == (200, {"occupied": False, "subscription_count": 0})
    body = {"name": "n", "data": "1", "channel": "chat.1", "info": "subscription_count"}
    answer = await request(edge, "POST", "/apps/1001/events", body)
    assert answer == (200, {"channels": {"chat.1": {"subscription_count": 0}}})


async def test_what_is_meant_for_a_private_channel_does_not_reach_a_public_one(edge, connect):
    client = await connect()
    await client.join("general")
    for name in ("private-general", "private-announcements"):
        body = {"name": "n", "data": "1", "channels": [name]}
        status, problem = await request(edge, "POST", "/apps/1001/events", body)
        assert (status, problem["code"]) == (400, "invalid_channel")
        assert name in problem["detail"]
    assert await client.receives_nothing()


async def test_refused_name_says_what_the_rules_make_of_the_channel(connect):
    client = await connect()
    refused = await client.ask("pusher:subscribe", channel="my-channel")
    assert "or because none matches, 'my-channel' is private" in refused["data"]["error"]


async def test_signing_in_as_another_user_is_refused_and_as_the_same_one_harmless(connect):
    client = await connect()
    assert (await client.sign_in("7"))["event"] == "pusher:signin_success"
    assert (await client.sign_in("7"))["event"] == "pusher:signin_success"
    answer = await client.sign_in("8")
    assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4009)


@pytest.mark.parametrize(
    "user_data", ["", "{}", '{"id":""}', '{"id":7}', "[]", '{"id":"' + "x" * 300 + '"}'],
    ids=range(6),
)  # fmt: skip
async def test_user_without_a_usable_id_is_refused(connect, user_data):
    client = await connect()
    auth = APP.sign_user(client.id, user_data)
    answer = await client.ask("pusher:signin", auth=auth, user_data=user_data)
    assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4009)
    answer = await client.ask("pusher:signin", auth="app-key:0", user_data='{"id":"7"}')
    assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4009)


async def test_member_who_has_signed_in_needs_no_channel_data(connect):
    client = await connect()
    await client.sign_in("7", user_info={"name": "Ann"})
    auth = APP.sign_channel(client.id, "presence-room")
    answer = await client.ask("pusher:subscribe", channel="presence-room", auth=auth)
    assert answer["data"]["presence"]["hash"] == {"7": {"id": "7", "name": "Ann"}}


async def test_excluded_connection_and_terminated_user_may_be_on_another_node(
    start_edge, settings, know_each_other
):
    nodes = [await start_edge(settings, **SETTINGS) for _ in range(2)]
    await know_each_other(*nodes)
    clients = []
    for node in nodes:
        client = await Client(await node.connect(f"/app/{APP.key}", greeted=False)).greeted()
        await client.join("general")
        await client.sign_in("7")
        clients.append(client)
    here, there = clients
    batch = [
        {"name": "n", "channel": "general", "data": "1", "socket_id": there.id},
        {"name": "n", "channel": "general", "data": "2", "socket_id": "1.2"},
    ]
    path = "/apps/1001/batch_events"
    assert await request(nodes[0], "POST", path, {"batch": batch}) == (200, {})
    assert [(await here.next())["data"] for _ in range(2)] == ["1", "2"]
    assert (await there.next())["data"] == "2"
    path = "/apps/1001/users/7/terminate_connections"
    assert await request(nodes[0], "POST", path, {}) == (200, {})
    for client in clients:
        assert await client.closed() == 4009


async def test_connections_of_a_user_are_terminated_and_no_others(connect, edge, library):
    tabs, other = [await connect(), await connect()], await connect()
    for tab in tabs:
        await tab.sign_in("7")
    await other.sign_in("8")
    assert await library("terminate_user_connections", "7") == {}
    for tab in tabs:
        assert await tab.closed() == 4009
    answer = await request(edge, "POST", "/apps/1001/users/8/terminate_connections", {})
    assert answer == (200, {})
    assert await other.closed() == 4009


# What is refused


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"[]", 400), (b"\xff", 400), ({}, 400),
        ({"name": "n", "data": "1"}, 400),
        ({"name": "n", "data": "1", "channels": []}, 400),
        ({"name": "n", "data": "1", "channels": ["general"] * 101}, 400),
        ({"name": "n", "data": "1", "channel": "general", "channels": ["general"]}, 400),
        ({"name": "", "data": "1", "channel": "general"}, 400),
        ({"name": "x" * 201, "data": "1", "channel": "general"}, 400),
        ({"name": "pusher:x", "data": "1", "channel": "general"}, 400),
        ({"name": "pusher_internal:member_added", "data": "1", "channel": "general"}, 400),
        ({"name": "n", "data": "1", "channel": "a b"}, 400),
        ({"name": "n", "data": "1", "channel": "#other"}, 400),
        ({"name": "n", "data": "1", "channel": "general", "socket_id": "x"}, 400),
        ({"name": "n", "data": "1", "channels": ["private-encrypted-a", "general"]}, 400),
        ({"name": "n", "data": "[" * 2000 + "]" * 2000, "channel": "general"}, 200),
        ({"name": "n", "data": "x" * 2_000_000, "channel": "general"}, 413),
    ],
    ids=range(18),
)  # fmt: skip
async def test_event_that_is_not_valid_is_refused(edge, body, status):
    assert (await request(edge, "POST", "/apps/1001/events", body))[0] == status


@pytest.mark.parametrize("levels", [150, 1200, 5000])
@pytest.mark.parametrize("field", ["data", "unknown"])
async def test_deeply_nested_event_is_refused_at_the_same_depth_on_every_node(edge, field, levels):
    event = '{"name":"n","channel":"general","data":"1","%s":%s}'
    event %= (field, "[" * levels + "]" * levels)
    for path, body in (("events", event), ("batch_events", f'{{"batch":[{event}]}}')):
        status, problem = await request(edge, "POST", f"/apps/1001/{path}", body.encode())
        assert (status, "nested too deeply" in problem["detail"]) == (400, True)


@pytest.mark.parametrize(
    "target",
    [
        b"/apps/1001/channels?auth_key=app-key&auth_timestamp=" + b"9" * 400,
        b"/apps/1001/channels?auth_key=\xff",
        b"/apps/1001/channels?auth_key=app-key&auth_timestamp=%d&\xff=1",
        b"/apps/1001/channels/\xff?auth_key=app-key&auth_timestamp=%d",
    ],
    ids=range(4),
)
async def test_request_of_odd_bytes_is_refused_and_is_no_fault_of_the_node(edge, target):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    target = target.replace(b"%d", b"%d" % time.time())
    writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    status = await reader.readline()
    writer.close()
    assert status.split()[1] in {b"400", b"401"}


PATHS = [
    ("channels", "GET, HEAD, OPTIONS"), ("channels/general", "GET, HEAD, OPTIONS"),
    ("channels/presence-room/users", "GET, HEAD, OPTIONS"), ("connections", "GET, HEAD, OPTIONS"),
    ("events", "OPTIONS, POST"), ("batch_events", "OPTIONS, POST"),
    ("users/7/terminate_connections", "OPTIONS, POST"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "allowed"), PATHS)
async def test_path_says_which_methods_it_serves(edge, path, allowed):
    wrong = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"} - {*allowed.split(", ")}
    for method in (*wrong, "OPTIONS"):
        async with answered(edge, method, f"/apps/1001/{path}") as answer:
            assert answer.status == (204 if method == "OPTIONS" else 405), method
            assert answer.headers["Allow"] == allowed
            text = await answer.text()
        assert method in ("HEAD", "OPTIONS") or json.loads(text)["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", [path for path, allowed in PATHS if "HEAD" in allowed])
async def test_head_is_signed_and_answered_like_get_without_a_body(edge, path):
    path = f"/apps/1001/{path}"
    async with answered(edge, "GET", path) as answer:
        length = str(len(await answer.read()))
    async with answered(edge, "HEAD", path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Content-Length"] == length
    async with answered(edge, "HEAD", path, secret="wrong") as answer:
        assert answer.status == 401


async def test_batch_with_one_fault_publishes_nothing(edge, connect):
    client = await connect()
    await client.join("general")
    good = {"name": "n", "channel": "general", "data": "1"}
    for bad in ({"name": "n", "channel": "a b", "data": "1"}, {}, {**good, "name": "pusher:x"}):
        answer = await request(edge, "POST", "/apps/1001/batch_events", {"batch": [good, bad]})
        assert answer[0] == 400
    for batch in ([], [good] * 11):
        answer = await request(edge, "POST", "/apps/1001/batch_events", {"batch": batch})
        assert answer[0] == 400
    assert await client.receives_nothing()


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("/apps/1001/events", {"secret": "wrong"}, 401),
        ("/apps/1001/events", {"key": "wrong"}, 401),
        ("/apps/1002/events", {}, 404),
        ("/apps/1001/other", {}, 404),
    ],
)
async def test_request_of_a_stranger_is_refused(edge, path, changes, status):
    body = {"name": "n", "channel": "general", "data": "1"}
    assert (await request(edge, "POST", path, body, **changes))[0] == status
    async with aiohttp.ClientSession() as session, session.post(edge.url + path, json=body) as got:
        assert got.status == (404 if status == 404 else 401)
