"""Webhooks in Pusher's form, received and verified with the library from PyPI."""

import asyncio
import hashlib
import hmac
import json

import pusher
import pytest
from aiohttp import web

from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus.errors import ConfigError
from eventbus.integrations.pusher import PusherApp
from eventbus_edge.access.rules import ANYONE, ChannelRules, Rule
from eventbus_edge.app import create_app
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle import webhooks
from eventbus_edge.pusher.webhooks import PusherBatch, PusherReceiver
from tests.edge.conftest import SECRET
from tests.edge.pusher.test_api import APP, SETTINGS, Client

EVENTS = (
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "cache_miss",
    "client_event",
)
FAST = SETTINGS | {
    "pusher_webhook_events": EVENTS,
    "webhook_wait": 0.0,
    "webhook_backoff": (0.05,),
    "lifecycle_linger": 0.1,
    "presence_grace": 0.1,
}
PATIENCE_S = 40


class Receiver:
    def __init__(self):
        self.library = pusher.Pusher(app_id=APP.id, key=APP.key, secret=APP.secret, host="unused")
        self.headers = []
        self.events = []
        self.answers = []
        self._came = asyncio.Event()

    async def handle(self, request):
        body = await request.text()
        self.headers.append(dict(request.headers))
        found = self.library.validate_webhook(
            request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"], body
        )
        assert found is not None
        answer = self.answers.pop(0) if self.answers else 200
        if answer == 200:
            self.events += found["events"]
        self._came.set()
        return web.Response(status=answer)

    async def until(self, *expected):
        async with asyncio.timeout(PATIENCE_S):
            while not all(event in self.events for event in expected):
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def receiver():
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hooks", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    yield made
    await runner.cleanup()


@pytest.fixture
def rules():
    return ChannelRules([Rule(Pattern("cache-news"), ChannelKind.PUBLIC, ANYONE)])


@pytest.fixture
def start(start_edge, receiver, bus, rules):
    async def start(**changes):
        return await start_edge(
            bus, rules=rules, **FAST | {"pusher_webhook_url": receiver.url} | changes
        )

    return start


async def open_client(edge):
    return await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()


async def test_channels_and_members_of_all_nodes_are_reported_once(start, receiver):
    nodes = [await start(), await start()]
    clients = [await open_client(node) for node in nodes]
    for client in clients:
        await client.join("presence-room", "7")
    room = {"channel": "presence-room"}
    await receiver.until(
        {"name": "channel_occupied", **room}, {"name": "member_added", "user_id": "7", **room}
    )
    for client in clients:
        await client._client.socket.close()
    await receiver.until(
        {"name": "channel_vacated", **room}, {"name": "member_removed", "user_id": "7", **room}
    )
    assert len(receiver.events) == 4
    for headers in receiver.headers:
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Pusher-Key"] == APP.key


async def test_client_event_is_reported_with_its_sender(start, receiver):
    client = await open_client(await start())
    await client.join("private-chat.1")
    await client.join("presence-chat.1", "7")
    data = {"text": "grüße", "n": [1]}
    sent = {"event": "client-typing", "data": json.dumps(data), "socket_id": client.id}
    for name in ("private-chat.1", "presence-chat.1"):
        frame = {"event": "client-typing", "channel": name, "data": data}
        await client._client.socket.send(json.dumps(frame, ensure_ascii=False))
    async with asyncio.timeout(PATIENCE_S):
        while sum(event["name"] == "client_event" for event in receiver.events) < 2:
            receiver._came.clear()
            await receiver._came.wait()
    found = [event for event in receiver.events if event["name"] == "client_event"]
    assert [json.loads(event.pop("data")) for event in found] == [data, data]
    del sent["data"]
    assert found == [
        {"name": "client_event", "channel": "private-chat.1", **sent},
        {"name": "client_event", "channel": "presence-chat.1", "user_id": "7", **sent},
    ]


async def test_subscriptions_are_counted_without_counts_for_clients(start, receiver):
    edge = await start(pusher_webhook_events=("subscription_count",))
    first, second = await open_client(edge), await open_client(edge)
    counted = {"name": "subscription_count", "channel": "general"}
    await first.join("general")
    await receiver.until({**counted, "subscription_count": 1})
    await second.join("general")
    await receiver.until({**counted, "subscription_count": 2})
    assert await first.receives_nothing()
    for client in (first, second):
        await client._client.socket.close()
    await receiver.until({**counted, "subscription_count": 0})


async def test_refused_client_event_is_not_reported(start, receiver):
    client = await open_client(await start())
    await client.join("general")
    frame = {"event": "client-typing", "channel": "general", "data": {}}
    await client._client.socket.send(json.dumps(frame))
    assert (await client.next())["event"] == "pusher:error"
    await receiver.until({"name": "channel_occupied", "channel": "general"})
    await client._client.socket.close()
    await receiver.until({"name": "channel_vacated", "channel": "general"})
    assert {event["name"] for event in receiver.events} == {"channel_occupied", "channel_vacated"}


async def test_miss_of_an_empty_cache_is_reported_once(start, receiver):
    edge = await start()
    for _ in range(3):
        client = await open_client(edge)
        await client.join("cache-news")
        assert (await client.next())["event"] == "pusher:cache_miss"
    await receiver.until({"name": "cache_miss", "channel": "cache-news"})
    assert [event["name"] for event in receiver.events].count("cache_miss") == 1


async def test_only_named_events_are_posted_and_inboxes_are_not(start, receiver):
    edge = await start(pusher_webhook_events=("channel_occupied",))
    client = await open_client(edge)
    await client.sign_in("7")
    await client.join("presence-room", "7")
    await client.join("private-user.7")
    await receiver.until({"name": "channel_occupied", "channel": "private-user.7"})
    assert sorted(event["channel"] for event in receiver.events) == [
        "presence-room", "private-user.7",
    ]  # fmt: skip


async def test_post_that_fails_is_repeated(start, receiver):
    receiver.answers = [500, 302]
    client = await open_client(await start())
    await client.join("general")
    await receiver.until({"name": "channel_occupied", "channel": "general"})
    assert len(receiver.headers) == 3


async def test_client_events_beyond_the_limit_are_dropped_and_counted(start, monkeypatch, caplog):
    monkeypatch.setattr(webhooks, "MAX_ACTIVITIES", 2)
    edge = await start(webhook_wait=60.0)
    client = await open_client(edge)
    await client.join("private-chat.1")
    frame = {"event": "client-typing", "channel": "private-chat.1", "data": {}}
    for _ in range(5):
        await client._client.socket.send(json.dumps(frame))
    assert await client.receives_nothing()
    sample = edge.node.metrics.registry.get_sample_value
    assert sample("eventbus_edge_webhook_events_total", {"result": "dropped"}) == 3
    assert "webhook events are dropped: 2 wait already" in caplog.text


async def test_both_forms_are_posted_beside_each_other(start, receiver):
    native = []
    came = asyncio.Event()

    async def handle(request):
        native.extend((await request.json())["events"])
        came.set()
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/native", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/native"
    try:
        edge = await start(webhook_url=url, webhook_secret="a-secret-of-webhooks")
        client = await open_client(edge)
        await client.join("private-user.7")
        await receiver.until({"name": "channel_occupied", "channel": "private-user.7"})
        await asyncio.wait_for(came.wait(), PATIENCE_S)
    finally:
        await runner.cleanup()
    assert [(event["event"], event["channel"]) for event in native] == [
        ("channel_occupied", "user.7")
    ]


def test_signature_is_that_of_the_exact_body():
    app = PusherApp(id="1001", key="app-key", secret="app-secret")
    receiver = PusherReceiver(
        app,
        "http://unused",
        ("channel_occupied",),
        lambda _: ChannelKind.PUBLIC,
        now=lambda: 1_700_000_000.0,
    )
    request = receiver.request(PusherBatch(events=[{"name": "channel_occupied", "channel": "c"}]))
    expected = b'{"time_ms":1700000000000,"events":[{"name":"channel_occupied","channel":"c"}]}'
    assert request.body == expected
    assert request.headers == {
        "X-Pusher-Key": "app-key",
        "X-Pusher-Signature": "bb12661df102994905b1b35b42e56e87123882fcc3b99380bb93c74b06540e6b",
    }
    digest = hmac.new(b"app-secret", expected, hashlib.sha256).hexdigest()
    assert request.headers["X-Pusher-Signature"] == digest


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"pusher_webhook_url": "ftp://a"}, "PUSHER_WEBHOOK_URL"),
        ({"lifecycle": "off"}, "BROADCAST_LIFECYCLE"),
    ],
)
def test_url_that_cannot_be_posted_to_is_refused_at_the_start(changes, variable):
    settings = EdgeSettings(
        **SETTINGS | {"jwt_secret": SECRET, "pusher_webhook_url": "http://a/b"} | changes
    )
    with pytest.raises(ConfigError) as caught:
        create_app(settings, Settings(driver="memory"))
    assert caught.value.variable == variable
