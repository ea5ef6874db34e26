"""Real edge nodes on free ports, and clients of another make: the `websockets` package."""

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import jwt
import msgspec
import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect as ws_connect
from websockets.exceptions import ConcurrencyError, ConnectionClosed, InvalidStatus

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from eventbus_edge.access.admission import TokenBucket
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import (
    WEBSOCKETS,
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery import bus_health
from eventbus_edge.keys import NODE
from tests.ports import free_port

SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_S = 40.0


class Client:
    """One WebSocket, with the words of the protocol."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket
        self.greeting = None

    async def next(self):
        """The next frame."""
        async with asyncio.timeout(PATIENCE_S):
            return json.loads(await self.socket.recv())

    async def send(self, action=None, **fields):
        await self.socket.send(json.dumps({"action": action, **fields}))

    async def ask(self, action, **fields):
        """Send, and give the next frame, which must be the answer."""
        await self.send(action, **fields)
        return await self.next()

    async def subscribe(self, channel, **fields):
        answer = await self.ask("subscribe", channel=channel, **fields)
        assert (answer["event"], answer["channel"]) == ("eb:subscribed", channel), answer
        return answer["data"]

    async def error(self, action, **fields):
        """Send, and give the code of the error that must be the answer."""
        answer = await self.ask(action, **fields)
        assert answer["event"] == "eb:error", answer
        assert answer["data"]["message"]
        return answer["data"]["code"]

    async def receives_nothing(self):
        """Whether nothing is on its way: the next frame is the answer to a ping sent now."""
        return (await self.ask("ping", ref="nothing"))["data"].get("ref") == "nothing"

    async def closed(self):
        """Wait for the end; gives the close code (1006 where there was none)."""
        async with asyncio.timeout(PATIENCE_S):
            await self.socket.wait_closed()
        return self.socket.close_code


class Edge:
    """A node that listens in this process."""

    def __init__(self, runner: web.AppRunner, clients: contextlib.AsyncExitStack):
        self.runner = runner
        self.node = runner.app[NODE]
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._clients = clients

    async def connect(self, path="/ws", *, greeted=True, **options) -> Client:
        """A client that is connected, and closed with the test."""
        client = await self._clients.enter_async_context(open_client(self.port, path, **options))
        if greeted:
            client.greeting = await client.next()
            assert client.greeting["event"] == "eb:connected"
        return client

    async def refusal(self, path="/ws", **options):
        """The status, headers and problem of a connection that must be refused."""
        with pytest.raises(InvalidStatus) as caught:
            await self.connect(path, **options)
        response = caught.value.response
        assert response.headers["Content-Type"].startswith("application/problem+json")
        problem = json.loads(response.body)
        assert problem["status"] == response.status_code
        return response.status_code, response.headers, problem


@contextlib.asynccontextmanager
async def open_client(port, path="/ws", *, token=None, **options) -> AsyncIterator[Client]:
    """Connect; `token` goes by the header Authorization."""
    headers = options.pop("headers", {})
    if token is not None:
        headers = {"Authorization": f"Bearer {token}", **headers}
    async with ws_connect(
        f"ws://127.0.0.1:{port}{path}",
        additional_headers=headers,
        proxy=None,
        **{"compression": None, "open_timeout": PATIENCE_S} | options,
    ) as socket:
        yield Client(socket)
        await _close(socket)


async def _close(socket: ClientConnection) -> None:
    """Close, and read what is left: a full queue would keep the answer to the close waiting."""
    closing = asyncio.create_task(socket.close())
    with contextlib.suppress(ConnectionClosed, ConcurrencyError):  # when it is read elsewhere
        while True:
            await socket.recv()
    await closing


class EdgeProcess:
    """`python -m eventbus_edge` as a child process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int):
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    async def end(self):
        """Wait until it has ended; gives its exit code and all that it logged."""
        async with asyncio.timeout(40):
            out, err = await self.process.communicate()
        return self.process.returncode, (out + err).decode()


def sign(user="7", secret=SECRET, **claims):
    """A token that `issue_token` would not make: expired, or with claims of the test's own."""
    now = int(time.time())
    made = {"sub": user, "aud": "websocket", "iat": now, "exp": now + 3600} | claims
    return jwt.encode({name: value for name, value in made.items() if value is not None}, secret)


def expired(user="7", **claims):
    """A token that expired ten minutes ago."""
    return sign(user, exp=int(time.time()) - 600, **claims)


@pytest.fixture
def token():
    """Make a token: the user's id, then what `issue_token` takes."""

    def issue(user="7", **claims):
        return issue_token(user, secret=SECRET, **claims)

    return issue


@pytest.fixture
async def clients():
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def connect(clients):
    """Connect to any port: `await connect(port, "/ws", token=…)`."""

    async def open_one(port, path="/ws", **options) -> Client:
        return await clients.enter_async_context(open_client(port, path, **options))

    return open_one


@pytest.fixture(autouse=True)
def no_probes(monkeypatch):
    """Nodes of this process store no probes, so that offsets are those of the test's messages."""
    monkeypatch.setattr(bus_health, "CHECK_S", 10_000.0)


@pytest.fixture
def no_refills(monkeypatch):
    """Rates give no new tokens: a limit that is reached stays so, however long a test takes."""
    monkeypatch.setattr(TokenBucket, "_fill", lambda *_: None)


@pytest.fixture
async def runners(clients):
    """The nodes of this test. They end before their buses, and their clients before them."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack
        # A node does not wait for a client that does not read.
        await clients.aclose()


@pytest.fixture
async def start_edge(settings, clients, runners):
    """Start nodes: `await start_edge(bus, rules=…, heartbeat=1.0, …)`; each ends with the test."""

    async def start(
        bus: EventBus | Settings | None = None,
        rules=None,
        websockets=WEBSOCKETS,
        **edge_settings,
    ) -> Edge:
        made = EdgeSettings(
            **{"jwt_secret": SECRET, "drain_time": 0.0, "unsubscribe_after": 0.05} | edge_settings
        )
        app = create_app(
            made,
            settings if bus is None else bus,
            rules=rules or ChannelRules(),
            websockets=websockets,
        )
        runner = make_runner(app, made.request_timeout)
        await runner.setup()
        runners.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Edge(runner, clients)

    return start


@pytest.fixture
def know_each_other():
    """Wait until nodes know each other, which takes a moment: `await know_each_other(a, b)`."""

    async def wait(*edges):
        ids = {edge.node.id for edge in edges}
        async with asyncio.timeout(30):
            for edge in edges:
                cluster = edge.node.census._cluster
                while not cluster.nodes | {edge.node.id} >= ids:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)

    return wait


@pytest.fixture
async def bus(settings, clients, runners):
    """An open bus over the real server, in this test's namespace."""
    async with EventBus(settings) as opened:
        yield opened
        await clients.aclose()
        await runners.aclose()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory):
    """Start the redis-server of this worker, at the first call: gives its port."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start() -> int:
            port = free_port()
            folder = tmp_path_factory.mktemp("redis")
            process = stack.enter_context(
                subprocess.Popen(
                    ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder,
                     "--save", ""],
                    stdout=subprocess.DEVNULL,
                )
            )  # fmt: skip
            stack.callback(process.kill)
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
                except ConnectionRefusedError:
                    assert process.poll() is None, "redis-server has ended"
                    assert time.monotonic() < deadline, "redis-server does not listen"
                    time.sleep(0.02)
                else:
                    return port

        yield start


@pytest.fixture
def start_redis(shared_redis, namespace):
    """Settings for this worker's redis-server, which tests share: `start_redis()`.

    It starts at the first call. The tests are kept apart by `namespace`; do not stop it.
    """

    def start() -> Settings:
        return Settings(driver="redis", redis_port=shared_redis(), namespace=namespace)

    return start


@pytest.fixture
async def edge(start_edge, bus):
    """A node that shares the test's bus."""
    return await start_edge(bus)


@pytest.fixture
async def nats(nats_server):
    """A plain NATS client, which knows nothing of eventbus."""
    import nats as nats_py  # noqa: PLC0415 - the fixture has the module's name

    client = await nats_py.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
async def start_process(nats_server, namespace):
    """Start child processes: `await start_process(BROADCAST_DRAIN_TIME="1")`."""
    started = []

    async def start(**environ) -> EdgeProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "eventbus_edge",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=4 * 1024**2,
            env={
                "PATH": os.environ["PATH"],
                "NATS_URL": nats_server.url,
                "BROADCAST_CHANNELS_PREFIX": namespace,
                "BROADCAST_HISTORY_BYTES": str(4 * 1024**2),
                "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
                "BROADCAST_WEBSOCKET_PORT": "0",
                "JWT_SECRET": SECRET,
            }
            | environ,
        )
        started.append(process)
        printed, address = "", None
        async with asyncio.timeout(80):
            while address is None and (line := (await process.stdout.readline()).decode()):
                printed += line
                address = re.search(r"https?://127\.0\.0\.1:(\d+)", line)
        if address is None:
            out, err = await process.communicate()
            raise AssertionError(f"the edge did not start: {printed}{out.decode()}{err.decode()}")
        return EdgeProcess(process, int(address[1]))

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture(params=["memory", "nats", pytest.param("redis", marks=pytest.mark.redis)])
async def each_bus(request, settings, start_redis, clients, runners):
    """A bus over memory, NATS and Redis, one after another."""
    if request.param == "memory":
        settings = msgspec.structs.replace(settings, driver="memory")
    elif request.param == "redis":
        settings = start_redis()
    async with EventBus(settings) as opened:
        yield opened
        await clients.aclose()
        await runners.aclose()
