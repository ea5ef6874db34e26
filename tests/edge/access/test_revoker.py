"""Revocations through restarts: processes of edges, and brokers that are killed."""

import asyncio
import contextlib
import json
import os
import signal
import time

import aiohttp
import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.cluster.announcing import announce_revocation, stored_revocations
from eventbus.cluster.revocation import Revocation
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.server import NatsServer
from eventbus_edge.access.revoker import (
    Revoker,
)
from eventbus_edge.access.tokens import Claims
from tests.ports import free_port

KEY = "the-api-key-of-restarts"


async def end_nothing(revocation):
    pass


async def revoke_over_http(edge, **body):
    url = f"{edge.url}/api/broadcast/disconnect"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as got:
        assert got.status == 200, await got.text()
        return await got.json()


async def status_of(edge, token):
    """How a node answers the handshake of a token, where it refuses it; 101 where it does not."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as http:
        try:
            async with http.ws_connect(f"{edge.url}/ws", headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as exc:
            return exc.status


async def end(edge, how):
    edge.process.send_signal(how)
    return await edge.end()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_revocations_survive_a_restart_of_an_edge_with_its_own_server(
    start_process, tmp_path, token, how
):
    own = {
        "NATS_URL": "", "BROADCAST_NATS_DATA": str(tmp_path / "nats"), "BROADCAST_NATS_PORT": "0",
        "BROADCAST_API_KEY": KEY, "BROADCAST_DRAIN_TIME": "0",
    }  # fmt: skip
    edge = await start_process(**own)
    old = token("7")
    assert await status_of(edge, old) == 101
    await revoke_over_http(edge, user_id="7")
    await revoke_over_http(edge, channel="user.8")
    await end(edge, how)
    again = await start_process(**own)
    assert await status_of(again, old) == 401
    assert await status_of(again, token("8")) == 101


class Nats:
    """A nats-server that is killed, and started with what it has on disk."""

    def __init__(self, folder, namespace):
        self._server = NatsServer(folder / "nats")

    async def start(self):
        await self._server.start()
        return {"NATS_URL": self._server.url}

    async def kill(self):
        os.kill(self._server.pid, signal.SIGKILL)
        await self._server.stop()


class Redis:
    """A redis-server with an append-only file."""

    def __init__(self, folder, namespace):
        self._port = free_port()
        self._folder = folder

    async def start(self):
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        keep = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", *options, *keep, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        return {"BROADCAST_DRIVER": "redis", "BROADCAST_REDIS_PORT": str(self._port)}

    async def kill(self):
        self._process.kill()
        await self._process.wait()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("make", [Nats, pytest.param(Redis, marks=pytest.mark.redis)])
async def test_revocations_outlive_the_broker_and_all_edges_together(
    make, tmp_path, namespace, start_process, token
):
    broker = make(tmp_path, namespace)
    environ = await broker.start()
    common = {"BROADCAST_API_KEY": KEY, "BROADCAST_DRAIN_TIME": "0", "NATS_URL": ""}

    async def start_two():
        return await asyncio.gather(*(start_process(**common | environ) for _ in range(2)))

    edges = await start_two()
    old = token("7")
    assert await status_of(edges[1], old) == 101
    await revoke_over_http(edges[0], user_id="7")
    for edge in edges:
        edge.process.send_signal(signal.SIGKILL)
        await edge.end()
    await broker.kill()
    environ = await broker.start()
    try:
        for edge in await start_two():
            assert await status_of(edge, old) == 401
            assert await status_of(edge, token("8")) == 101
    finally:
        await broker.kill()


async def test_revocations_of_older_nodes_move_to_the_durable_store(
    start_edge, settings, bus, token
):
    old, now = token("7"), time.time()
    kept = Revocation(at=now, until=now + 600, user_id="7")
    key = f"revocation.{kept.key}"
    await bus.driver.state.put(key, msgspec.json.encode(kept), ttl_s=600)
    edge = await start_edge(settings)
    assert (await edge.refusal(token=old))[0] == 401
    assert await stored_revocations(bus.driver) == {kept.key: kept}


async def test_a_lift_is_not_undone_by_what_nodes_of_older_versions_stored(
    start_edge, settings, bus, token
):
    old, now = token("7"), time.time()
    kept = Revocation(at=now, until=now + 600, user_id="7")
    key = f"revocation.{kept.key}"
    await bus.driver.state.put(key, msgspec.json.encode(kept), ttl_s=600)
    await announce_revocation(bus.driver, bus.subjects, kept.lift(now + 1))
    edge = await start_edge(settings)
    await (await edge.connect(token=old)).subscribe("user.7")


async def test_a_lift_outlives_the_broker_too(tmp_path, settings):
    server = NatsServer(tmp_path / "nats")
    await server.start()
    now = time.time()
    revocation = Revocation(at=now, until=now + 600, user_id="7")
    claims = Claims(sub="7", exp=now + 60, iat=now - 5)
    for last in (revocation, revocation.lift(now + 1)):
        settings = msgspec.structs.replace(settings, nats_url=server.url)
        async with EventBus(settings) as bus:
            await announce_revocation(bus.driver, bus.subjects, last)
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
        await server.start()
        settings = msgspec.structs.replace(settings, nats_url=server.url)
        async with EventBus(settings) as bus:
            revoker = Revoker(bus.driver, bus.subjects, end_nothing)
            await revoker.start()
            assert revoker.forbids_token(claims) == (not last.lifted)
            await revoker.aclose()
    await server.stop()


async def test_revocations_lie_on_disk_and_what_nodes_can_report_again_in_memory(bus, nats):
    driver = bus.driver
    assert isinstance(driver, NatsDriver)
    await driver.prepare()
    js = nats.jetstream()
    kinds = {}
    for store in (driver.state, driver.durable_state):
        info = await js.stream_info(store.name)
        kinds[store.name.rpartition("_")[2]] = info.config.storage
    assert {kind: str(storage) for kind, storage in kinds.items()} == {
        "STATE": "memory", "DURABLE": "file",
    }  # fmt: skip


async def test_more_revocations_than_a_node_keeps_are_logged(settings, caplog, monkeypatch):
    async with EventBus(msgspec.structs.replace(settings, driver="memory")) as bus:
        revoker = Revoker(bus.driver, bus.subjects, end_nothing)
        monkeypatch.setattr(revoker.known, "_limit", 2)
        await revoker.start()
        now = time.time()
        for user in "abc":
            await revoker.spread(Revocation(at=now, until=now + 60, user_id=user))
        await revoker.resync()
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert "revocations are in force" in record.getMessage()
        await revoker.aclose()


def test_the_revocations_of_before_can_be_read():
    """What 0.1 wrote has no issued_before."""
    old = json.dumps({"at": 1.5, "until": 2.5, "user_id": "7"}).encode()
    assert msgspec.json.decode(old, type=Revocation) == Revocation(at=1.5, until=2.5, user_id="7")
