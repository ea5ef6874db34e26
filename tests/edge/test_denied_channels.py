"""A node whose Redis user lacks the permission for one channel: only that channel is affected."""

import asyncio

import pytest
import redis.asyncio
from msgspec.structs import replace

from eventbus.bus import EventBus

pytestmark = pytest.mark.redis


ALLOWED = ("control.*", "state.*", "durable.*", "live.general")


@pytest.fixture
async def make_user(start_redis):
    """Settings of a Redis user who may use only these channels: `await make_user("live.a")`."""
    settings = start_redis()
    client = redis.asyncio.Redis(port=settings.redis_port)
    user = f"node-{settings.namespace}"

    async def make(*channels):
        names = (f"&{settings.namespace}.{name}" for name in channels)
        await client.execute_command(
            "ACL", "SETUSER", user, "reset", "on", ">s", "~*", "+@all", *names
        )
        return replace(settings, redis_username=user, redis_password="s")

    yield make
    await client.execute_command("ACL", "DELUSER", user)
    await client.aclose()


async def test_client_that_joins_a_denied_channel_gets_an_error_and_others_are_unaffected(
    make_user, start_redis, start_edge
):
    edge = await start_edge(await make_user(*ALLOWED))
    async with EventBus(start_redis()) as bus:
        client = await edge.connect("/ws/general")
        await client.next()
        async with asyncio.timeout(5):  # other failures are retried for longer
            answer = await client.ask("subscribe", channel="public")
        assert answer["event"] == "eb:error"
        assert answer["data"]["code"] == "unavailable"
        assert "refuses the subscription" in answer["data"]["message"]
        await bus.publish("general", "tick", 1)
        assert (await client.next())["data"] == 1
        assert edge.node.bus.driver.counters["losses"] == 0
        await make_user(*ALLOWED, "live.public")
        await client.subscribe("public")
        await bus.publish("public", "tick", 2)
        assert (await client.next())["data"] == 2
