"""A broker that stops and comes back: what clients of the edge see over SSE and the HTTP API."""

import asyncio
import contextlib
import json
import os
import signal

import aiohttp
import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.server import NatsServer
from tests.ports import free_port

KEY = "the-api-key-of-bus-away"
EVENTS = "/api/broadcast/events"
PATIENCE_S = 30.0


class Nats:
    """A nats-server, as a broker that is killed and started again."""

    def __init__(self, folder, namespace):
        self._server = NatsServer(folder / "nats")
        self._namespace = namespace

    async def start(self):
        await self._server.start()

    @property
    def settings(self):
        return Settings(
            nats_url=self._server.url,
            namespace=self._namespace,
            history_bytes=4 * 1024**2,
            history_messages=500,
        )

    async def kill(self):
        os.kill(self._server.pid, signal.SIGKILL)
        await self._server.stop()

    async def aclose(self):
        await self._server.stop()


class Redis:
    """A redis-server that keeps what it has acknowledged."""

    def __init__(self, folder, namespace):
        self._port = free_port()
        self._folder = folder
        self.settings = Settings(
            driver="redis", redis_port=self._port, namespace=namespace, history_messages=500
        )

    async def start(self):
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        keep = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", *options, *keep, stdout=asyncio.subprocess.DEVNULL
        )

    async def kill(self):
        self._process.kill()
        await self._process.wait()

    async def aclose(self):
        if self._process.returncode is None:
            await self.kill()


@pytest.fixture(params=[Nats, pytest.param(Redis, marks=pytest.mark.redis)])
async def broker(request, tmp_path, namespace):
    server = request.param(tmp_path, namespace)
    await server.start()
    yield server
    await server.aclose()


class Stream:
    """One stream of Server-Sent Events."""

    def __init__(self, response):
        self.response = response
        self.cursor = None
        self.comments = 0

    async def next(self):
        """The next envelope."""
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.response.content.readline():
                if line.startswith(b":"):
                    self.comments += 1
                elif line.startswith(b"id: "):
                    self.cursor = line[4:].strip().decode()
                elif line.startswith(b"data: "):
                    return json.loads(line[6:])
        raise AssertionError("the stream has ended")

    async def data(self, count):
        return [(await self.next())["data"] for _ in range(count)]


class Clients:
    """Of one edge."""

    def __init__(self, edge, http, stack):
        self.edge, self._http, self._stack = edge, http, stack

    async def ask(self, method, path, body=None):
        """The status, the body and the headers of an answer; an error must be a problem."""
        headers = {"Authorization": f"Bearer {KEY}"}
        url = self.edge.url + path
        async with (
            asyncio.timeout(PATIENCE_S),
            self._http.request(method, url, json=body, headers=headers) as response,
        ):
            if response.status >= 400:
                assert response.content_type == "application/problem+json"
            return response.status, await response.json(content_type=None), response.headers

    async def until(self, path, status):
        async with asyncio.timeout(PATIENCE_S):
            while (await self.ask("GET", path))[0] != status:  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.05)

    async def listen(self, cursor=None):
        headers = {} if cursor is None else {"Last-Event-ID": cursor}
        response = await self._stack.enter_async_context(
            self._http.get(f"{self.edge.url}/sse?channel=general", headers=headers)
        )
        assert response.status == 200, await response.text()
        stream = Stream(response)
        assert (await stream.next())["event"] == "eb:connected"
        return stream, await stream.next()


@pytest.fixture
async def clients_of(start_edge):
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def make(settings, **options):
            return Clients(await start_edge(settings, api_key=KEY, **options), http, stack)

        yield make


def event(number):
    return {"channel": "general", "event": "tick", "data": number}


async def test_while_its_bus_is_away_a_node_says_so_and_keeps_its_streams(broker, clients_of):
    impatient = msgspec.structs.replace(broker.settings, publish_timeout=5.0)
    clients = await clients_of(impatient, heartbeat=0.1)
    stream, _ = await clients.listen()
    assert (await clients.ask("POST", EVENTS, event(0)))[0] == 200
    assert await stream.data(1) == [0]
    await broker.kill()
    await clients.until("/readyz", 503)
    assert (await clients.ask("GET", "/healthz"))[0] == 200  # a restart would not help
    requests = [
        ("GET", "/sse?channel=general", None),
        ("POST", EVENTS, event("lost")),
        ("POST", "/api/broadcast/disconnect", {"user_id": "7"}),
        ("GET", "/api/broadcast/stats", None),
        ("GET", "/api/broadcast/channels/general", None),
    ]
    answers = await asyncio.gather(*(clients.ask(*request) for request in requests))
    for request, (status, problem, headers) in zip(requests, answers, strict=True):
        assert (status, problem["code"]) == (503, "unavailable"), request
        assert int(headers["Retry-After"]) >= 1
    heartbeats = stream.comments
    later = asyncio.create_task(stream.next())
    await broker.start()
    await clients.until("/readyz", 200)
    assert (await clients.ask("GET", "/healthz"))[0] == 200
    status, answer, _ = await clients.ask("POST", EVENTS, event(1))
    assert status == 200
    assert (await later)["data"] == 1
    assert stream.comments > heartbeats  # it was never silent
    other, _ = await clients.listen()
    status, history, _ = await clients.ask("GET", "/api/broadcast/channels/general/history")
    assert (status, [message["data"] for message in history["messages"]]) == (200, [0, 1])
    assert history["messages"][-1]["offset"] == answer["messages"][0]["offset"]
    status, stats, _ = await clients.ask("GET", "/api/broadcast/stats")
    assert (status, stats["connections"], stats["channels"][0]["connections"]) == (200, 2, 2)
    await clients.ask("POST", EVENTS, event(2))
    assert await stream.data(1) == await other.data(1) == [2]


async def test_errors_do_not_name_the_broker(broker, start_edge, token):
    own = msgspec.structs.replace(broker.settings, publish_timeout=3.0, connect_timeout=3.0)
    async with EventBus(own) as bus:
        edge = await start_edge(bus)
        client = await edge.connect(token=token("7", roles=["admin"], channels=["orders.>"]))
        await client.subscribe("chat.1")
        await broker.kill()
        async with asyncio.timeout(PATIENCE_S):
            while bus.driver.is_connected:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        await client.send("history", channel="chat.1", ref="history")
        await client.send("subscribe", channel="chat.1", ref="again")
        await client.send("subscribe", channel="chat.2", ref="subscribe")
        await client.send("subscribe", pattern="orders.*", ref="pattern")
        await client.send("whisper", channel="chat.1", event="e", data=1, ref="whisper")
        await client.send("stats", ref="stats")
        failed = {}
        async with asyncio.timeout(2 * PATIENCE_S):
            for _ in range(6):
                answer = json.loads(await client.socket.recv())
                if answer["event"] == "eb:error":
                    failed[answer["data"]["ref"]] = answer["data"]
    assert failed.keys() >= {"history", "subscribe", "stats"}
    for error in failed.values():
        assert error["code"] == "unavailable"
        for secret in ("127.0.0.1", "://", "EVENTS", "redis", "nats", broker.settings.namespace):
            assert secret.lower() not in error["message"].lower(), error


async def test_streams_see_no_gap_when_the_broker_is_killed_and_comes_back(broker, clients_of):
    clients = await clients_of(broker.settings)
    stays, _ = await clients.listen()
    leaves, _ = await clients.listen()

    async with EventBus(broker.settings) as bus:

        async def publish():
            for number in range(20, 120):
                await bus.publish("general", "tick", number)

        for number in range(20):
            await bus.publish("general", "tick", number)
        assert await stays.data(20) == await leaves.data(20) == list(range(20))
        publishing = asyncio.create_task(publish())
        assert await leaves.data(10) == list(range(20, 30))
        leaves.response.close()
        await broker.kill()
        await clients.until("/readyz", 503)
        await broker.start()
        await clients.until("/readyz", 200)
        back, reported = await clients.listen(leaves.cursor)
        assert reported["data"]["recovered"] is True
        await publishing
        assert await stays.data(100) == list(range(20, 120))
        assert await back.data(90) == list(range(30, 120))


async def test_an_event_that_is_posted_while_the_broker_is_away_waits_for_it(broker, clients_of):
    clients = await clients_of(broker.settings)
    stream, _ = await clients.listen()
    await broker.kill()
    await clients.until("/readyz", 503)
    posting = asyncio.create_task(clients.ask("POST", EVENTS, event("patient")))
    await asyncio.sleep(0.2)
    await broker.start()
    status, answer, _ = await posting
    assert (status, len(answer["messages"])) == (200, 1)
    assert await stream.data(1) == ["patient"]
    status, history, _ = await clients.ask("GET", "/api/broadcast/channels/general/history")
    assert [message["id"] for message in history["messages"]] == [answer["messages"][0]["id"]]
