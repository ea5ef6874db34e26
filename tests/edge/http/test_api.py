"""The HTTP API: what it does on every node, who may use it, and how it refuses."""

import asyncio
import contextlib
import io
import re
import time

import aiohttp
import jwt
import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.channels import user_channel
from eventbus.config import Settings
from eventbus.messages import MAX_DATA_DEPTH
from eventbus.server import NatsServer
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.http.api import MAX_KEY
from tests.edge.conftest import SECRET, expired

KEY = "the-key-of-this-test"
BASE = "/api/broadcast"


class Api:
    """The API of one node, as its administrator uses it."""

    def __init__(self, http, edge):
        self.http, self.edge = http, edge

    async def ask(self, method, path, *, key=KEY, headers=None, **options):
        """Status, body and headers of an answer; one that is an error must be a problem."""
        given = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.edge.url + path
        async with self.http.request(
            method, url, headers=given | (headers or {}), **options
        ) as response:
            body = await response.json(content_type=None)
            if response.status >= 400:
                assert response.content_type == "application/problem+json", body
                assert body["status"] == response.status
                assert set(body) == {"type", "title", "status", "detail", "code"}
            else:
                assert response.content_type == "application/json"
            return response.status, body, response.headers

    async def get(self, path, **options):
        status, body, _ = await self.ask("GET", BASE + path, **options)
        assert status == 200, body
        return body

    async def post(self, path, body, **options):
        status, body, _ = await self.ask("POST", BASE + path, json=body, **options)
        assert status == 200, body
        return body

    async def refusal(self, method, path, **options):
        status, body, _ = await self.ask(method, path, **options)
        assert status >= 400, body
        return status, body["code"]


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(params=["nats", "memory", pytest.param("redis", marks=pytest.mark.redis)])
async def nodes(request, start_edge, start_redis, settings, http, know_each_other):
    """Two nodes of one cluster, on buses of their own where processes would have their own."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            memory = msgspec.structs.replace(settings, driver="memory")
            bus = await stack.enter_async_context(EventBus(memory))
            edges = [await start_edge(bus, api_key=KEY) for _ in range(2)]
        else:
            if request.param == "redis":
                settings = start_redis()
            edges = [await start_edge(settings, api_key=KEY) for _ in range(2)]
        await know_each_other(*edges)
        yield [Api(http, edge) for edge in edges]


@pytest.fixture
async def api(start_edge, bus, http):
    """One node."""
    return Api(http, await start_edge(bus, api_key=KEY))


async def joined(edge, *channels, **options):
    client = await edge.connect(
        "/ws?" + "&".join(f"channel={name}" for name in channels), **options
    )
    for _ in channels:
        assert (await client.next())["event"] == "eb:subscribed"
    return client


# What it reports


async def test_stats_are_those_of_the_whole_cluster_on_any_node(nodes, token):
    first = await joined(nodes[0].edge, "general", "chat.1", token=token("a"))
    await joined(nodes[1].edge, "general")
    await nodes[0].post("/events", {"channel": "general", "event": "e", "data": 1})
    assert (await first.next())["data"] == 1
    for api in nodes:
        stats = await api.get("/stats")
        assert stats["missing"] == []
        assert {node["id"] for node in stats["nodes"]} == {each.edge.node.id for each in nodes}
        assert stats["connections"] == 2
        assert stats["channels"] == [
            {"channel": "general", "kind": "public", "connections": 2},
            {"channel": "chat.1", "kind": "private", "connections": 1},
        ]
        assert all(node["started_at"].endswith("Z") for node in stats["nodes"])
        assert all(0 <= node["uptime_s"] < 60 for node in stats["nodes"])
        assert stats["driver"] in {"nats", "memory", "redis"}
    assert sum(node["messages_in"] for node in stats["nodes"]) == stats["messages_in"]


async def test_lists_and_stats_count_the_members_of_presence_channels_once(nodes, token):
    await joined(nodes[0].edge, "presence.a", "general", token=token("a"))
    await joined(nodes[0].edge, "presence.a", token=token("b"))
    await joined(nodes[1].edge, "presence.a", token=token("b"))
    expected = [
        {"channel": "presence.a", "kind": "presence", "connections": 3, "members": 2},
        {"channel": "general", "kind": "public", "connections": 1},
    ]
    for api in nodes:
        assert (await api.get("/stats"))["channels"] == expected
        assert (await api.get("/channels"))["channels"] == expected
        assert (await api.get("/channels/presence.a")).items() >= expected[0].items()


async def test_uptime_does_not_follow_the_clock(nodes, monkeypatch):
    real = time.time
    for shift in (-3600.0, 3600.0):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        stats = await nodes[0].edge.node.census.stats()
        assert all(0 <= node.uptime_s < 60 for node in stats.nodes)


async def test_node_that_is_killed_is_named_as_missing_and_then_forgotten(
    start_edge, start_process, settings, http
):
    nodes = [Api(http, await start_edge(settings, api_key=KEY)) for _ in range(2)]
    process = await start_process(BROADCAST_API_KEY=KEY)
    async with asyncio.timeout(40):  # until each node knows of the third
        for api in nodes:
            while len((stats := await api.get("/stats"))["nodes"]) < 3:
                pass
    third = {node["id"] for node in stats["nodes"]} - {api.edge.node.id for api in nodes}
    assert (len(third), stats["missing"]) == (1, [])
    process.process.kill()
    await process.process.wait()
    # At once: some seconds later it would not be asked any more.
    for stats in await asyncio.gather(*(api.get("/stats") for api in nodes)):
        assert {node["id"] for node in stats["nodes"]} == {each.edge.node.id for each in nodes}
        assert set(stats["missing"]) == third
    async with asyncio.timeout(40):
        while (await nodes[0].get("/stats"))["missing"]:  # noqa: ASYNC110 - a client can only ask
            await asyncio.sleep(0.2)


async def test_channels_can_be_filtered_and_limited(nodes, token):
    await joined(nodes[0].edge, "chat.1", "chat.2", token=token("a"))
    await joined(nodes[1].edge, "chat.2", "general", token=token("b"))
    listed = await nodes[0].get("/channels?pattern=chat.*")
    assert [c["channel"] for c in listed["channels"]] == ["chat.2", "chat.1"]
    assert listed["truncated"] is False
    listed = await nodes[1].get("/channels?limit=1")
    assert [(c["channel"], c["connections"]) for c in listed["channels"]] == [("chat.2", 2)]
    assert listed["truncated"] is True


async def test_one_channel_is_shown_even_without_subscribers(nodes):
    await joined(nodes[0].edge, "general")
    body = await nodes[1].get("/channels/general")
    assert body.items() >= {"channel": "general", "kind": "public", "connections": 1}.items()
    assert "members" not in body
    assert (await nodes[1].get("/channels/user.7"))["connections"] == 0


async def test_position_of_a_channel_that_nobody_hears_can_be_resumed_from(nodes):
    bus = nodes[0].edge.node.bus
    for channel in ("announcements", "general"):
        body = await nodes[1].get(f"/channels/{channel}")
        position = {name: body[name] for name in ("offset", "epoch", "mark") if body[name]}
        position.setdefault("offset", 0)
        receipt = await bus.publish(channel, "e", channel)
        assert (receipt.epoch, receipt.offset > position["offset"]) == (body["epoch"], True)
        client = await nodes[0].edge.connect()
        start = await client.subscribe(channel, data=position)
        assert (start["recovered"], start["offset"]) == (True, position["offset"])
        assert (await client.next())["data"] == channel
        after = await nodes[0].get(f"/channels/{channel}")
        assert after["offset"] >= receipt.offset


async def test_ten_thousand_channels_of_another_node_fit_into_messages_of_64_kib(
    start_edge, settings, http, know_each_other
):
    """Which is all that the broker of these tests takes."""
    one, other = [await start_edge(settings, api_key=KEY) for _ in range(2)]
    await know_each_other(one, other)
    cluster = one.node.census._cluster
    cluster._patience_s, cluster._settled_at = 30.0, 0.0  # what fits is asked, not how quickly
    outbox = Outbox("x", None, None, 0)
    for number in range(10_001):
        other.node._hub.add(f"chat.{number:0>150}", outbox)
    for limit, truncated in ((10_000, True), (10, True)):
        listed = await Api(http, one).get(f"/channels?limit={limit}")
        assert len(listed["channels"]) == limit
        assert (listed["truncated"], listed["missing"]) == (truncated, [])


async def test_history_is_whole_envelopes_from_an_offset_or_the_last(nodes):
    receipts = [
        (await nodes[0].post("/events", {"channel": "general", "event": "e", "data": n}))[
            "messages"
        ][0]
        for n in range(5)
    ]
    page = await nodes[1].get("/channels/general/history?limit=2")
    assert [message["data"] for message in page["messages"]] == [3, 4]
    assert [m["offset"] for m in page["messages"]] == [r["offset"] for r in receipts[3:]]
    assert set(page["messages"][0]) == {
        "channel", "event", "data", "timestamp", "id", "offset", "epoch", "mark",
    }  # fmt: skip
    assert (page["offset"], page["epoch"]) == (receipts[-1]["offset"], receipts[-1]["epoch"])
    since = receipts[0]["offset"]
    page = await nodes[1].get(f"/channels/general/history?since={since}&limit=3")
    assert [message["data"] for message in page["messages"]] == [1, 2, 3]
    assert page["complete"] is True


async def test_every_node_lists_each_member_once(nodes, token):
    for api, user in ((nodes[0], "a"), (nodes[1], "a"), (nodes[1], "b")):
        await joined(api.edge, "presence.room", token=token(user, name=user.upper()))
    for api in nodes:
        async with asyncio.timeout(40):  # a node learns of other nodes' members soon, not at once
            while (body := await api.get("/channels/presence.room/members"))["count"] < 2:
                pass
        assert (body["channel"], body["count"]) == ("presence.room", 2)
        members = {member["user_id"]: member["info"] for member in body["members"]}
        assert members == {"a": {"name": "A"}, "b": {"name": "B"}}
        channel = await api.get("/channels/presence.room")
        assert (channel["connections"], channel["members"]) == (3, 2)
    assert (await nodes[0].get("/channels/presence.empty/members"))["members"] == []


# Publishing


async def test_channel_of_an_escaped_id_is_a_channel_like_any_other(api, token):
    channel = user_channel("ada+news@example.com")
    client = await joined(api.edge, channel, token=token("ada+news@example.com"))
    await api.post("/events", {"channel": channel, "event": "e", "data": 1})
    assert (await client.next())["channel"] == channel
    history = await api.get(f"/channels/{channel}/history")
    assert [message["channel"] for message in history["messages"]] == [channel]
    for wrong in ("user.ada+news", "user.a~2E", "user.~61"):
        body = {"channel": wrong, "event": "e", "data": 1}
        assert await api.refusal("POST", f"{BASE}/events", json=body) == (400, "invalid_channel")


@pytest.mark.parametrize(
    ("levels", "status"), [(MAX_DATA_DEPTH, 200), (MAX_DATA_DEPTH + 1, 400), (1200, 400)]
)
async def test_data_is_nested_as_deep_as_every_node_accepts(api, levels, status):
    text = '{"channel":"general","event":"e","data":' + "[" * levels + "]" * levels + "}"
    headers = {"Content-Type": "application/json"}
    given, body, _ = await api.ask("POST", f"{BASE}/events", data=text, headers=headers)
    assert given == status
    if status == 400:
        assert body["code"] == "bad_request"
        assert "nested too deeply" in body["detail"]


async def test_published_message_reaches_clients_of_all_nodes(nodes):
    clients = [await joined(api.edge, "general") for api in nodes]
    data = {"text": "grüße", "n": 1.50}
    answer = await nodes[0].post("/events", {"channel": "general", "event": "e", "data": data})
    for client in clients:
        frame = await client.next()
        assert (frame["event"], frame["data"]) == ("e", data)
        assert {key: frame[key] for key in ("channel", "id", "offset", "epoch")} == answer[
            "messages"
        ][0]


async def test_message_for_several_channels_and_not_for_its_sender(api, token):
    sender = await joined(api.edge, "general", "chat.1", token=token("a"))
    other = await joined(api.edge, "general", "chat.1", token=token("b"))
    answer = await api.post(
        "/events",
        {
            "channels": ["general", "chat.1"],
            "event": "e",
            "data": None,
            "except": sender.greeting["data"]["connection_id"],
        },
    )
    assert [message["channel"] for message in answer["messages"]] == ["general", "chat.1"]
    assert {(await other.next())["channel"], (await other.next())["channel"]} == {
        "general", "chat.1",
    }  # fmt: skip
    assert await sender.receives_nothing()


async def test_volatile_message_reaches_listeners_and_is_not_stored(api):
    client = await joined(api.edge, "general")
    body = {"channel": "general", "event": "e", "data": 1, "volatile": True}
    answer = await api.post("/events", body)
    assert (answer["messages"][0]["offset"], answer["messages"][0]["epoch"]) == (None, None)
    assert "offset" not in await client.next()
    assert (await api.get("/channels/general/history"))["messages"] == []


async def test_the_same_idempotency_key_stores_once_on_any_node(nodes):
    client = await joined(nodes[0].edge, "general")
    body = {"channel": "general", "event": "e", "data": 1}
    headers = {"Idempotency-Key": "order-17 ü"}
    answers = await asyncio.gather(*(api.post("/events", body, headers=headers) for api in nodes))
    assert answers[0] == answers[1]
    other = await nodes[0].post("/events", body, headers={"Idempotency-Key": "order-18"})
    assert other["messages"][0]["id"] != answers[0]["messages"][0]["id"]
    assert (await client.next())["id"] == answers[0]["messages"][0]["id"]
    assert (await client.next())["id"] == other["messages"][0]["id"]
    assert len((await nodes[1].get("/channels/general/history"))["messages"]) == 2


BAD_EVENTS = [
    ("", "bad_request"),
    ("[]", "bad_request"),
    ("{", "bad_request"),
    (b'{"channel":"general","event":"e","data":"\xff"}', "bad_request"),
    ('{"channel":"general","event":"e","data":' + "[" * 5000 + "]" * 5000 + "}", "bad_request"),
    ('{"channel":"general","event":"e"}', "bad_request"),
    ('{"event":"e","data":1}', "bad_request"),
    ('{"channel":"general","channels":["general"],"event":"e","data":1}', "bad_request"),
    ('{"channels":[],"event":"e","data":1}', "bad_request"),
    ('{"channels":["general","general"],"event":"e","data":1}', "bad_request"),
    ('{"channel":"a b","event":"e","data":1}', "invalid_channel"),
    ('{"channel":"a.*","event":"e","data":1}', "invalid_channel"),
    ('{"channels":["general",""],"event":"e","data":1}', "invalid_channel"),
    ('{"channel":"general","event":"","data":1}', "bad_request"),
    ('{"channel":"general","event":"eb:x","data":1}', "bad_request"),
    ('{"channel":"general","event":"pong","data":1}', "bad_request"),
    ('{"channel":"general","event":1,"data":1}', "bad_request"),
    ('{"channel":"general","event":"e","data":1,"excpet":"x"}', "bad_request"),
    ('{"channel":"general","event":"e","data":1,"except":"a b"}', "bad_request"),
    ('{"channel":"general","event":"e","data":1,"volatile":"yes"}', "bad_request"),
]


async def test_bad_events_are_refused_and_nothing_is_sent(api):
    client = await joined(api.edge, "general")
    headers = {"Content-Type": "application/json"}
    for body, code in BAD_EVENTS:
        answer = await api.refusal("POST", f"{BASE}/events", data=body, headers=headers)
        assert answer == (400, code), body
    assert await client.receives_nothing()


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY + 1)])
async def test_idempotency_key_that_is_empty_or_too_long_is_refused(api, key):
    body = {"channel": "general", "event": "e", "data": 1}
    asked = api.refusal("POST", f"{BASE}/events", json=body, headers={"Idempotency-Key": key})
    assert await asked == (400, "bad_request")


async def test_idempotency_key_of_a_volatile_message_is_refused(api):
    body = {"channel": "general", "event": "e", "data": 1, "volatile": True}
    asked = api.refusal("POST", f"{BASE}/events", json=body, headers={"Idempotency-Key": "k"})
    assert await asked == (400, "bad_request")


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("size", [80_000, 3_000_000])
async def test_message_that_is_too_large_is_413_and_names_the_limit(api, size, is_chunked):
    body = b'{"channel":"general","event":"e","data":"%b"}' % (b"x" * size)

    async def chunks():
        for start in range(0, len(body), 60_000):
            yield body[start : start + 60_000]

    status, answer, _ = await api.ask(
        "POST", f"{BASE}/events", data=chunks() if is_chunked else io.BytesIO(body),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert (status, answer["code"]) == (413, "payload_too_large")
    assert re.search(r"[0-9]{5,} bytes", answer["detail"])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_body_of_another_type_is_refused_for_any_page_could_send_it(api, content_type):
    body = b'{"channel":"general","event":"e","data":1}'
    headers = {"Content-Type": content_type}
    status, _ = await api.refusal("POST", f"{BASE}/events", data=body, headers=headers)
    assert status == 415


# Disconnecting


async def test_user_is_disconnected_on_all_nodes_and_nobody_else(nodes, token):
    gone = [await joined(api.edge, "general", token=token("7")) for api in nodes for _ in range(2)]
    stays = await joined(nodes[1].edge, "general", token=token("77"))
    anonymous = await joined(nodes[0].edge, "general")
    answer = await nodes[0].post("/disconnect", {"user_id": "7"})
    assert answer == {"count": 4, "missing": []}
    assert [await client.closed() for client in gone] == [4003] * 4
    assert await stays.receives_nothing()
    assert await anonymous.receives_nothing()


async def test_older_tokens_of_a_user_are_disconnected_and_a_new_one_is_good_at_once(nodes, token):
    old = token("7")
    new_iat = jwt.decode(old, options={"verify_signature": False})["iat"] + 2
    new = jwt.encode(
        {"sub": "7", "aud": "websocket", "iat": new_iat, "exp": new_iat + 60}, SECRET, "HS256"
    )
    gone = [await joined(api.edge, "general", token=old) for api in nodes]
    stays = [await joined(api.edge, "general", token=new) for api in nodes]
    body = {"user_id": "7", "issued_before": new_iat}
    assert await nodes[0].post("/disconnect", body) == {"count": 2, "missing": []}
    assert [await client.closed() for client in gone] == [4003] * 2
    for client in stays:
        assert await client.receives_nothing()
    assert await nodes[0].refusal("GET", "/ws", key=old) == (401, "unauthorized")
    await joined(nodes[0].edge, "general", token=new)


async def test_one_connection_is_asked_to_reconnect(nodes):
    client, other = [await joined(api.edge, "general") for api in nodes]
    target = {"connection_id": client.greeting["data"]["connection_id"], "reconnect": True}
    assert (await nodes[1].post("/disconnect", target))["count"] == 1
    assert await client.closed() == 4200
    assert await other.receives_nothing()


async def test_connections_of_one_token_are_disconnected(api, token):
    first = await joined(api.edge, "general", token=token("7"))
    second = await joined(api.edge, "general", token=token("7"))
    session = api.edge.node.connections[first.greeting["data"]["connection_id"]].session
    assert (await api.post("/disconnect", {"jti": session.claims.jti}))["count"] == 1
    assert await first.closed() == 4003
    assert await second.receives_nothing()


async def test_revoked_channel_ends_and_the_connections_stay(nodes, token):
    clients = [await joined(api.edge, "general", "chat.1", token=token("a")) for api in nodes]
    assert (await nodes[0].post("/disconnect", {"channel": "chat.1"}))["count"] == 2
    for client in clients:
        frame = await client.next()
        assert (frame["event"], frame["channel"]) == ("eb:unsubscribed", "chat.1")
        assert frame["data"] == {"reason": "revoked"}
    for channel in ("chat.1", "general"):
        await nodes[1].post("/events", {"channel": channel, "event": "e", "data": channel})
    for client in clients:
        assert (await client.next())["data"] == "general"
        assert await client.receives_nothing()


async def until_revoked(api, count):
    async with asyncio.timeout(40):
        while (await api.get("/revocations"))["count"] != count:  # noqa: ASYNC110 - it is polled
            await asyncio.sleep(0.01)


async def test_revocations_are_listed_and_lifted(nodes, token):
    old = token("7")
    await nodes[0].post("/disconnect", {"user_id": "7"})
    await nodes[0].post("/disconnect", {"channel": "chat.1"})
    assert await nodes[0].refusal("GET", "/ws", key=old) == (401, "unauthorized")
    listed = await nodes[0].get("/revocations?limit=1")
    assert listed["count"] == 2
    [newest] = listed["revocations"]
    assert (newest["user_id"], newest["jti"], newest["channel"]) == (None, None, "chat.1")
    assert newest["revoked_at"] < newest["until"]
    await until_revoked(nodes[1], 2)
    status, answer, _ = await nodes[1].ask("DELETE", f"{BASE}/revocations?user_id=7")
    assert (status, answer) == (200, {"user_id": "7", "jti": None, "channel": None})
    await until_revoked(nodes[0], 1)
    for api in nodes:
        await joined(api.edge, "general", token=old)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("", (400, "bad_request")),
        ("user_id=7&jti=x", (400, "bad_request")),
        ("user_id=", (400, "bad_request")),
        ("connection_id=7", (400, "bad_request")),
        ("channel=a%20b", (400, "invalid_channel")),
        ("user_id=7", (404, "not_found")),
    ],
)
async def test_lift_without_a_revocation_is_not_found(api, query, answer):
    assert await api.refusal("DELETE", f"{BASE}/revocations?{query}") == answer


@pytest.mark.parametrize(
    "body",
    [{}, {"user_id": "7", "jti": "x"}, {"user_id": ""}, {"user": "7"}, {"user_id": 7},
     {"user_id": "7", "reconnect": 1}, {"channel": "general", "reconnect": True},
     {"jti": "x", "issued_before": 1}, {"connection_id": "x", "issued_before": 1},
     {"user_id": "7", "issued_before": "now"}, {"user_id": "7", "issued_before": -1},
     {"user_id": "7", "issued_before": True}, {"user_id": "7", "issued_before": 1e300},
     {"user_id": "7", "issued_before": 1, "reconnect": True}],
)  # fmt: skip
async def test_disconnect_without_ids_disconnects_nobody(api, body):
    client = await joined(api.edge, "general")
    assert await api.refusal("POST", f"{BASE}/disconnect", json=body) == (400, "bad_request")
    assert await client.receives_nothing()


# Whom it lets in


@pytest.mark.parametrize("path", [f"{BASE}/stats", f"{BASE}/channels", "/api/openapi.json"])
async def test_only_the_key_or_an_admins_token_lets_in(api, token, path):
    for key in (None, "", "wrong", KEY + "x", "a.b.c", expired()):
        status, code = await api.refusal("GET", path, key=key)
        assert status == 401, key
        assert code in {"unauthorized", "token_expired"}
    assert await api.refusal("GET", path, key=token("7")) == (403, "forbidden")
    assert await api.refusal("GET", path, key=token("7", roles=["user"])) == (403, "forbidden")
    for key in (KEY, token("7", roles=["admin"]), token("7", permissions=["admin"])):
        assert (await api.ask("GET", path, key=key))[0] == 200


async def test_the_metrics_let_an_admins_token_in_too(api, token):
    for key, status in ((token("7", roles=["admin"]), 200), (token("7"), 403), (None, 401)):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with api.http.get(api.edge.url + "/metrics", headers=headers) as response:
            assert response.status == status


async def test_without_a_key_loopback_clients_are_admitted_and_proxied_ones_are_not(
    start_edge, bus, http, token
):
    api = Api(http, await start_edge(bus))
    assert (await api.ask("GET", f"{BASE}/stats", key=None))[0] == 200
    proxied = {"X-Forwarded-For": "203.0.113.7"}
    for key in (None, token("7", roles=["admin"])):
        refused = api.refusal("GET", f"{BASE}/stats", key=key, headers=proxied)
        assert await refused == (403, "forbidden")


async def test_page_of_another_origin_is_refused_although_its_browser_is_on_loopback(
    start_edge, bus, http
):
    api = Api(http, await start_edge(bus))
    evil = {"Origin": "https://evil.example"}
    refused = api.refusal("GET", f"{BASE}/stats", key=None, headers=evil)
    assert await refused == (403, "forbidden")


# How it says no


async def test_errors_are_problems_with_codes(api):
    for method, path, expected in (
        ("GET", "/api/nothing", (404, "not_found")),
        ("GET", f"{BASE}/nothing", (404, "not_found")),
        ("POST", f"{BASE}/stats", (405, "method_not_allowed")),
        ("GET", f"{BASE}/events", (405, "method_not_allowed")),
        ("GET", f"{BASE}/stats?limit=0", (400, "bad_request")),
        ("GET", f"{BASE}/stats?limit=x", (400, "bad_request")),
        ("GET", f"{BASE}/stats?limit=1&limit=2", (400, "bad_request")),
        ("GET", f"{BASE}/stats?limt=1", (400, "bad_request")),
        ("GET", f"{BASE}/channels?pattern=a..b", (400, "bad_request")),
        ("GET", f"{BASE}/channels?pattern={'x' * 201}", (400, "bad_request")),
        ("GET", f"{BASE}/channels/a%20b", (400, "invalid_channel")),
        ("GET", f"{BASE}/channels/a%2Fb", (400, "invalid_channel")),
        ("GET", f"{BASE}/channels/%ff", (400, "invalid_channel")),
        ("GET", f"{BASE}/channels/*/history", (400, "invalid_channel")),
        ("GET", f"{BASE}/channels/general/history?since=-1", (400, "bad_request")),
        ("GET", f"{BASE}/channels/general/history?limit=1001", (400, "bad_request")),
        ("GET", f"{BASE}/channels/general/members", (404, "not_found")),
    ):
        assert await api.refusal(method, path) == expected, path


async def test_unexpected_exception_is_a_problem_without_its_text(api, monkeypatch, caplog):
    async def fail(query):
        raise RuntimeError("a secret of the database")

    monkeypatch.setattr(api.edge.node.census, "stats", fail)
    status, body, _ = await api.ask("GET", f"{BASE}/stats")
    assert (status, body["code"]) == (500, "internal")
    assert "secret" not in str(body)
    assert any("secret" in str(record.exc_info) for record in caplog.records)


async def test_publish_without_permission_is_forbidden_and_not_to_be_retried(
    start_edge, tmp_path, http
):
    may = {"publish": {"deny": ["eb.event.secret.>", "eb.event.closed"]}}
    users = [{"user": "ada", "password": "right", "permissions": may}]
    config = {"authorization": {"users": users}}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        url = server.url.replace("//", "//ada:right@")
        settings = Settings(nats_url=url, history_bytes=1024**2)
        api = Api(http, await start_edge(settings, api_key=KEY))

        async def publish(*channels):
            event = {"channels": list(channels), "event": "e", "data": 1}
            return await api.ask("POST", f"{BASE}/events", json=event)

        for channels in (["closed"], ["closed", "secret.1"]):
            status, body, headers = await publish(*channels)
            assert (status, body["code"]) == (403, "forbidden")
            assert "no permission to publish to eb.event.closed" in body["detail"]
            assert "Retry-After" not in headers
        assert (await publish("general"))[0] == 200
        status, body, _ = await publish("general", "closed")
        assert status == 403
        assert body["detail"].startswith("1 of 2 messages were not published: closed: ")


async def test_without_its_bus_the_api_is_unavailable(start_edge, settings, http):
    async with EventBus(settings) as bus:
        api = Api(http, await start_edge(bus, api_key=KEY))
        await bus.driver.aclose()
        status, body, headers = await api.ask("GET", f"{BASE}/stats")
        assert (status, body["code"]) == (503, "unavailable")
        assert int(headers["Retry-After"]) >= 1
        event = {"channel": "general", "event": "e", "data": 1}
        asked = api.refusal("POST", f"{BASE}/events", json=event)
        assert await asked == (503, "unavailable")
