"""Redis in place of NATS (compose.redis.yaml): what is its own, edges and Redis restarted."""

import asyncio
import contextlib
import signal

import pytest

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.redis,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.timeout(240),
]
CLIENTS = 60


@pytest.fixture(scope="module")
def front(new_front):
    with new_front("redis") as made:
        yield made


async def test_edge_publishes_through_its_api(front):
    body = {"channel": "general", "event": "tick", "data": 1}
    async with (
        front.connect() as client,
        front.api() as session,
    ):
        general = await client.subscribe("general")
        async with session.post("/api/broadcast/events", json=body) as response:
            assert response.status == 200, await response.text()
        async with asyncio.timeout(30):
            assert (await anext(aiter(general))).data == 1


async def all_got(listeners, count):
    expected = list(range(count))
    async with asyncio.timeout(40):
        while any(len(each.got) < count for each in listeners):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)
    assert [each for each in listeners if each.got != expected or each.gaps] == []


async def test_nothing_is_lost_when_edges_and_redis_are_restarted(front, publishing):
    async with contextlib.AsyncExitStack() as stack:
        listeners = await front.listen(stack, "chat.restart", CLIENTS)
        numbers = publishing("chat.restart")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(numbers.run())
            await numbers.more()
            for edge in (0, 1):
                await asyncio.to_thread(front.restart_edge, edge, signal.SIGTERM)
                await numbers.more()
            for number in (signal.SIGTERM, signal.SIGKILL):
                await asyncio.to_thread(front.restart_redis, number)
                await numbers.more()
            numbers.stop()
        await all_got(listeners, numbers.count)


async def test_edges_keep_their_clients_while_redis_is_away_and_are_not_ready(front, publish):
    async with front.connect(token=front.token()) as client:
        listener = await client.subscribe("user.7")
        states = []
        client.on_state(states.append)
        assert front.deployment.processes["redis"].stop() == 0
        try:
            for port in front.edge_ports:
                await status_becomes(front, port, 503)
        finally:
            await asyncio.to_thread(front.restart_redis, signal.SIGTERM)
        for port in front.edge_ports:
            await status_becomes(front, port, 200)
        await publish("user.7", 0)
        async with asyncio.timeout(30):
            assert (await anext(aiter(listener))).data == 0
        assert states == []
    for edge in front.edges:
        assert "the connection to Redis at" in edge.log.read_text()


async def status_becomes(front, port, status):
    async with (
        front.session() as session,
        asyncio.timeout(40),
    ):
        while True:
            async with session.get(f"https://localhost:{port}/readyz") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.05)


def test_edges_were_refused_nothing(front):
    """Last of the module: what the user of edges is granted is all that they ask for."""
    for edge in front.edges:
        assert "NOPERM" not in edge.log.read_text()
