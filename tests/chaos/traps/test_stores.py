"""Brokers that come back with an empty store, or with an earlier copy of it.

Everyone who has seen a later message must notice, on every edge, even on one that starts later:
clients are not recovered, durable subscriptions and workers continue, members stay, and revocations
that the store has lost still apply.
"""

import asyncio
import contextlib
import shutil

import aiohttp
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.redis import driver as redis_driver, nodes as redis_nodes
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.queue import Worker
from eventbus.server import NatsServer
from tests.eventbus.drivers.conftest import RedisServer

pytestmark = pytest.mark.timeout(180)
PATIENCE_S = 60.0
ROOM = "presence.room"
QUIET = "news"
TTL_S = 9.0  # nodes may come back to their broker some seconds apart


class Noted(Event, ShouldBroadcast, name="stores.noted", channel="notes"):
    number: int


class Worked(Event, ShouldQueue, tries=5, backoff=0):
    number: int


class Nats:
    """A nats-server with its store in a folder."""

    has_queues = True

    def __init__(self, folder, namespace):
        self._store, self._copy = folder / "nats" / "jetstream", folder / "copy"
        self._server = NatsServer(folder / "nats")
        self._namespace = namespace

    async def start(self):
        await self._server.start()

    async def stop(self):
        await self._server.stop()

    @property
    def settings(self):
        return Settings(
            nats_url=self._server.url, namespace=self._namespace, history_bytes=4 * 1024**2,
            history_messages=200, publish_timeout=30, failed_bytes=1024**2,
        )  # fmt: skip

    async def keep_copy(self):
        await self.stop()
        shutil.copytree(self._store, self._copy)
        await self.start()

    async def empty(self):
        await self.stop()
        shutil.rmtree(self._store)
        await self.start()

    async def put_back(self):
        await self.stop()
        shutil.rmtree(self._store)
        shutil.copytree(self._copy, self._store)
        await self.start()


class Redis:
    """A redis-server with an append-only file."""

    has_queues = False
    options = ("--appendonly", "yes", "--appendfsync", "always")

    def __init__(self, folder, namespace):
        self._folder, self._copy = folder / "redis", folder / "copy"
        self._server = RedisServer(self._folder, *self.options)
        self.settings = Settings(
            driver="redis", redis_port=self._server.port, namespace=namespace,
            history_messages=200, publish_timeout=30,
        )  # fmt: skip

    async def start(self):
        await self._server.start()

    async def stop(self):
        await self._server.kill()

    async def keep_copy(self):
        await self.stop()
        shutil.copytree(self._folder, self._copy)
        await self.start()

    async def empty(self):
        await self.stop()
        shutil.rmtree(self._folder)
        await self.start()

    async def flush(self):
        assert await self._server.command("FLUSHALL") == "OK"

    async def put_back(self):
        await self.stop()
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder)
        await self.start()


class Snapshots(Redis):
    """A redis-server without an append-only file, that starts with a snapshot."""

    options = ("--appendonly", "no")

    async def keep_copy(self):
        assert await self._server.command("SAVE") == "OK"
        shutil.copytree(self._folder, self._copy)


REDIS = pytest.mark.redis


@pytest.fixture(
    params=[
        (Nats, "empty"),
        (Nats, "put_back"),
        *(
            pytest.param(one, marks=REDIS)
            for one in [
                (Redis, "empty"), (Redis, "flush"), (Redis, "put_back"), (Snapshots, "put_back"),
            ]
        ),
    ],
    ids=lambda param: f"{param[0].__name__.lower()}-{param[1]}",
)  # fmt: skip
def kind_and_fault(request):
    return request.param


@pytest.fixture
async def broker(kind_and_fault, tmp_path, namespace, clients, runners):
    server = kind_and_fault[0](tmp_path, namespace)
    await server.start()
    yield server
    await clients.aclose()
    await runners.aclose()
    await server.stop()


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch):
    """Drivers look at their Redis servers every second, not every ten."""
    for module in (redis_driver, redis_nodes):
        monkeypatch.setattr(module, "CHECK_S", 1.0)


@pytest.fixture
def lose(kind_and_fault, broker):
    """What happens to the store."""
    return getattr(broker, kind_and_fault[1])


class Services:
    """A durable subscription and a worker, where the broker has them."""

    def __init__(self):
        self.noted, self.worked = set(), set()

    @contextlib.asynccontextmanager
    async def running(self, broker, bus):
        if not broker.has_queues:
            yield
            return
        await bus.subscribe(Noted, self._note, group="notes", durable=True)
        bus.listen(Worked)(lambda event: self.worked.add(event.number))
        worker = Worker(bus)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop(at_once=True)
            await asyncio.wait_for(task, PATIENCE_S)

    async def _note(self, event, _context):
        self.noted.add(event.number)

    async def handle(self, broker, bus, number):
        """An event and a job, dispatched now, are handled."""
        if broker.has_queues:
            await bus.dispatch(Noted(number=number))
            await bus.dispatch(Worked(number=number))
            async with asyncio.timeout(PATIENCE_S):
                while not (number in self.noted and number in self.worked):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


async def next_of(client):
    """The next frame; the broker may take a while to come back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(TimeoutError):
                return await client.next()


async def until_data(client, last):
    """The data that a client receives up to `data`, and the gaps reported before it."""
    data, gaps = [], []
    while not data or data[-1] != last:
        frame = await next_of(client)
        if frame["event"] == "eb:subscribed":
            gaps.append(frame["data"])
        else:
            data.append(frame["data"])
    return data, gaps


async def is_refused(edge, token):
    """Whether a node refuses a token."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as http:
        try:
            async with http.ws_connect(f"{edge.url}/ws", headers=headers):
                return False
        except aiohttp.WSServerHandshakeError as exc:
            return exc.status == 401


async def everyone_is_notified(clients, readers, new, epoch):
    """Clients are notified and then get all new messages; readers are only notified."""
    for client in clients:
        data, gaps = await until_data(client, new[-1])
        assert data == new
        assert {gap["recovered"] for gap in gaps} == {False}
        assert gaps[0]["epoch"] != epoch
    for reader in readers:  # although nothing is published there
        notice = await next_of(reader)
        assert (notice["event"], notice["data"]["recovered"]) == ("eb:subscribed", False)


async def nobody_is_recovered(edges, receipt):
    """No edge reports a client as recovered that resumes from a lost message."""
    for edge in edges:
        client = await edge.connect()
        cursor = {"offset": receipt.offset, "epoch": receipt.epoch}
        assert (await client.subscribe("general", data=cursor))["recovered"] is False
        await client.socket.close()


async def members_stay(members, users):
    """Each member still sees all members, and nobody was reported as leaving."""
    for member in members:
        await member.send("presence", channel=ROOM)
        frames = [await member.next()]
        while frames[-1]["event"] != "eb:presence":
            frames.append(await member.next())
        assert {frame["event"] for frame in frames} <= {"eb:presence", "eb:subscribed"}
        assert {each["user_id"] for each in frames[-1]["data"]["members"]} == users


async def all_refuse(edges, token):
    async with asyncio.timeout(PATIENCE_S):
        for edge in edges:
            while not await is_refused(edge, token):  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.1)


async def test_everyone_notices_that_the_store_was_replaced(broker, lose, start_edge, token):
    edges = [await start_edge(broker.settings, presence_ttl=TTL_S) for _ in range(2)]
    services = Services()
    async with EventBus(broker.settings) as bus, services.running(broker, bus):
        clients = [await edge.connect("/ws/general") for edge in edges]
        readers = [await edge.connect(token=token("7", channels=[QUIET])) for edge in edges]
        ann, bob = [
            await edge.connect(token=token(user))
            for edge, user in zip(edges, ("ann", "bob"), strict=True)
        ]
        for client, reader, member in zip(clients, readers, (ann, bob), strict=True):
            await client.next()
            await reader.subscribe(QUIET)
            await member.subscribe(ROOM)
        assert (await ann.next())["data"]["user_id"] == "bob"
        for number in range(20):
            await bus.publish("general", "tick", number)
        await services.handle(broker, bus, 1)
        await broker.keep_copy()

        eve = token("eve")
        assert not await is_refused(edges[0], eve)
        lost = [await bus.publish("general", "tick", number) for number in range(20, 30)]
        await bus.publish(QUIET, "tick", "lost")
        await bus.revoke(user="eve")
        await all_refuse(edges, eve)  # what no edge knows would be lost with the store
        await services.handle(broker, bus, 2)
        for client, reader in zip(clients, readers, strict=True):
            assert (await until_data(client, 29))[0][-10:] == list(range(20, 30))
            assert (await reader.next())["data"] == "lost"

        await lose()

        new = [f"new {number}" for number in range(5)]
        for data in new:
            await bus.publish("general", "tick", data)
        await everyone_is_notified(clients, readers, new, lost[-1].epoch)
        edges.append(await start_edge(broker.settings, presence_ttl=TTL_S))
        await nobody_is_recovered(edges, lost[-1])
        await services.handle(broker, bus, 3)
        await asyncio.sleep(TTL_S + 1)  # until members that are not written again would be gone
        await members_stay((ann, bob), {"ann", "bob"})
        cid = await edges[-1].connect(token=token("cid"))
        answer = await cid.subscribe(ROOM)
        assert {each["user_id"] for each in answer["members"]} == {"ann", "bob", "cid"}
        await all_refuse(edges, eve)
