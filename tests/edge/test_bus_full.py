"""A broker that stores nothing: a node that only listens says so, and when it is over."""

import asyncio
import resource
import sys

import aiohttp
import pytest

from eventbus.config import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits files by prlimit(2)")
KEY = "the-api-key-of-bus-full"


@pytest.fixture
def no_probes():
    """Here nodes store probes: by them they notice that the broker stores nothing."""


async def test_node_is_degraded_while_its_broker_stores_nothing(start_edge, own_nats_server):
    settings = Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=4 * 1024**2)
    edge = await start_edge(settings, metrics_open=True, api_key=KEY)

    async with aiohttp.ClientSession(edge.url) as http:

        async def ready():
            async with http.get("/readyz") as response:
                return response.status, await response.json()

        async def until(status):
            async with asyncio.timeout(40):
                while (await ready())[1].get("status") != status:  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.1)

        async def stores():
            async with http.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            return next(line for line in lines if line.startswith("eventbus_edge_bus_stores "))

        await until("ready")
        assert await stores() == "eventbus_edge_bus_stores 1.0"
        limit = (1, resource.RLIM_INFINITY)
        resource.prlimit(own_nats_server.pid, resource.RLIMIT_FSIZE, limit)
        await until("degraded")
        code, body = await ready()
        assert code == 200  # clients still get what is not stored, histories and presence
        assert "its disk may be full" in body["reason"]
        assert "nats://" not in str(body)
        assert await stores() == "eventbus_edge_bus_stores 0.0"
        client = await edge.connect()
        assert await client.subscribe("general")
        await own_nats_server.stop()
        await own_nats_server.start()
        await until("ready")
        assert "reason" not in (await ready())[1]
        assert await stores() == "eventbus_edge_bus_stores 1.0"
