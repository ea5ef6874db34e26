"""Redis without memory, disk or replicas: publishers and nodes report it, and recover."""

import asyncio

import aiohttp
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import PublishFailed

PATIENCE_S = 40.0

pytestmark = pytest.mark.timeout(300)


def settings_of(server, namespace, **changes):
    return Settings(
        driver="redis", redis_port=server.port, namespace=namespace,
        **{"history_messages": 100_000, "history_seconds": 3600, "publish_timeout": 30} | changes,
    )  # fmt: skip


class Memory:
    """No memory for another write."""

    words = "its memory is full"

    async def fill(self, server):
        await server.command("CONFIG", "SET", "maxmemory", "1")

    async def clear(self, server):
        await server.command("CONFIG", "SET", "maxmemory", "0")


class Disk:
    """A snapshot that cannot be written: there is a folder where the file should be."""

    words = "it cannot write its files"

    async def fill(self, server):
        (server.folder / "dump.rdb").unlink(missing_ok=True)
        (server.folder / "dump.rdb").mkdir()
        await server.command("CONFIG", "SET", "save", "3600 1")
        await self._snapshot(server, "err")

    async def clear(self, server):
        (server.folder / "dump.rdb").rmdir()
        await self._snapshot(server, "ok")

    async def _snapshot(self, server, status):
        async with asyncio.timeout(PATIENCE_S):
            while f"rdb_last_bgsave_status:{status}" not in await server.command(
                "INFO", "persistence"
            ):
                await server.command("BGSAVE")
                await asyncio.sleep(0.1)


class Replicas:
    """Fewer replicas than the server requires."""

    words = "min-replicas-to-write"

    async def fill(self, server):
        await server.command("CONFIG", "SET", "min-replicas-to-write", "1")

    async def clear(self, server):
        await server.command("CONFIG", "SET", "min-replicas-to-write", "0")


async def number_in_info(server, name):
    lines = (await server.command("INFO")).splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.fixture(params=[Memory, Disk, Replicas])
def lack(request):
    return request.param()


async def test_publishers_and_nodes_report_that_nothing_is_stored_and_recover(
    start_redis, namespace, start_edge, lack
):
    server = await start_redis()
    edge = await start_edge(settings_of(server, namespace), metrics_open=True)
    async with (
        EventBus(settings_of(server, namespace)) as bus,
        EventBus(settings_of(server, namespace, publish_timeout=1.0)) as impatient,
        aiohttp.ClientSession(edge.url) as http,
    ):

        async def ready():
            async with http.get("/readyz") as response:
                return response.status, await response.json()

        async def becomes(status):
            async with asyncio.timeout(PATIENCE_S):
                while (await ready())[1]["status"] != status:  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.05)

        async def stores():
            async with http.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            return next(line for line in lines if line.startswith("eventbus_edge_bus_stores "))

        client = await edge.connect("/ws/general")
        await client.next()
        await bus.publish("general", "tick", 1)
        assert (await client.next())["data"] == 1
        assert await bus.driver.check() == ""
        await lack.fill(server)
        with pytest.raises(PublishFailed, match=lack.words):
            await impatient.publish("general", "tick", 2)
        assert lack.words in await bus.driver.check()
        await becomes("degraded")
        code, body = await ready()
        assert code == 200
        assert str(server.port) not in body["reason"]
        assert await stores() == "eventbus_edge_bus_stores 0.0"
        late = await edge.connect()
        assert (await late.subscribe("general", data={"history": 10}))["offset"]
        assert (await late.next())["data"] == 1  # what is stored can be read
        await lack.clear(server)
        await becomes("ready")
        assert await stores() == "eventbus_edge_bus_stores 1.0"
        await bus.publish("general", "tick", 3)
        assert (await client.next())["data"] == 3


async def test_nothing_is_lost_while_publishers_wait_for_memory(
    start_redis, namespace, start_workload, lack
):
    server = await start_redis()
    workload = await start_workload(settings_of(server, namespace))
    for _ in range(2):
        await workload.until_more(30)
        await lack.fill(server)
        retries = workload.bus.driver.counters["publish_retries"]
        async with asyncio.timeout(PATIENCE_S):
            while workload.bus.driver.counters["publish_retries"] < retries + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await lack.clear(server)
    await workload.until_more(30)
    await workload.stop()
    await workload.nothing_is_missing()
    workload.no_gap_was_reported()
    assert not workload.failed


async def test_messages_that_redis_has_evicted_are_never_called_recovered(
    start_redis, namespace, start_edge, token
):
    """With an evicting policy, Redis drops whole histories, and keys of the driver's own."""
    server = await start_redis("--maxmemory-policy", "allkeys-random")
    settings = settings_of(server, namespace)
    edge = await start_edge(settings)
    grant = token("7", channels=["room.>"])
    rooms = [f"room.{number}" for number in range(60)]
    async with EventBus(settings) as bus:
        sent = {room: [await bus.publish(room, "tick", 0)] for room in rooms}
        for number in range(1, 10):
            for room in rooms:
                sent[room].append(await bus.publish(room, "tick", number))
        used = await number_in_info(server, "used_memory")
        await server.command("CONFIG", "SET", "maxmemory", str(used))
        filling = 0
        while (
            int((await server.command("INFO", "stats")).split("evicted_keys:")[1].split()[0]) < 90
        ):
            filling += 1
            await bus.publish(f"filling.{filling}", "tick", "x" * 20_000)
        await server.command("CONFIG", "SET", "maxmemory", "0")
        outcomes = set()
        for room in rooms:
            client = await edge.connect(token=grant)
            seen = sent[room][4]
            answer = await client.subscribe(room, data={"offset": seen.offset, "epoch": seen.epoch})
            outcomes.add(answer["recovered"])
            await bus.publish(room, "tick", "live")
            got = []
            while not got or got[-1] != "live":
                frame = await client.next()
                if not frame["event"].startswith("eb:"):
                    got.append(frame["data"])
            if answer["recovered"]:
                assert got == [5, 6, 7, 8, 9, "live"], room
            await client.socket.close()
        assert False in outcomes
