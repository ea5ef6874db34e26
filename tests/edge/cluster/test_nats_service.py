"""On NATS, nodes are seen by the tools for micro services (`nats micro ls`; NATS ADR-32)."""

import asyncio
import json

import nats as nats_py
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.server import NatsServer

PATIENCE_S = 40.0


async def ask(client, verb, count, seconds=PATIENCE_S):
    """The answers of `count` instances; fewer when there are no more in time."""
    inbox = client.new_inbox()
    answers = []
    subscription = await client.subscribe(inbox)
    await client.publish(f"$SRV.{verb}", reply=inbox)
    try:
        while len(answers) < count:
            message = await subscription.next_msg(timeout=seconds)
            answers.append(json.loads(message.data))
    except nats_py.errors.TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return answers


async def until(is_so):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def settings(own_nats_server, namespace):
    """A server of the test's own, on which there are no other nodes."""
    return Settings(nats_url=own_nats_server.url, namespace=namespace, history_bytes=4 * 1024**2)


@pytest.fixture
async def nats(own_nats_server):
    client = await nats_py.connect(own_nats_server.url, reconnect_time_wait=0.05)
    yield client
    await client.close()


async def test_two_nodes_answer_a_ping_each_with_its_id(start_edge, settings, nats):
    nodes = [(await start_edge(settings)).node for _ in range(2)]
    answers = await ask(nats, "PING", 3, seconds=1.0)
    assert {answer["id"] for answer in answers} == {node.id for node in nodes}
    assert len(answers) == 2
    for answer in answers:
        assert answer["type"] == "io.nats.micro.v1.ping_response"
        assert answer["name"] == "eventbus-edge"
        assert answer["metadata"]["node"] == answer["id"]
        assert answer["version"].count(".") == 2


async def test_one_node_can_be_asked_for_what_it_is(start_edge, settings, nats):
    first, _ = [(await start_edge(settings)).node for _ in range(2)]
    [info] = await ask(nats, f"INFO.eventbus-edge.{first.id}", 2, seconds=0.5)
    assert (info["id"], info["type"]) == (first.id, "io.nats.micro.v1.info_response")
    assert info["description"]
    [stats] = await ask(nats, f"STATS.eventbus-edge.{first.id}", 1)
    assert (stats["id"], stats["type"]) == (first.id, "io.nats.micro.v1.stats_response")
    assert stats["started"].startswith("20")


async def test_node_that_has_ended_answers_no_more(start_edge, settings, nats):
    staying, ending = [await start_edge(settings) for _ in range(2)]
    await ending.runner.cleanup()
    [answer] = await ask(nats, "PING", 2, seconds=0.5)
    assert answer["id"] == staying.node.id


async def test_node_answers_again_after_the_server_was_away(
    start_edge, settings, nats, own_nats_server
):
    async with EventBus(settings) as bus:
        edge = await start_edge(bus)
        await own_nats_server.stop()
        await own_nats_server.start()
        assert await bus.driver._connection.wait_connected(PATIENCE_S)
        await until(lambda: nats.is_connected)
        assert [answer["id"] for answer in await ask(nats, "PING", 1)] == [edge.node.id]


async def test_node_answers_once_through_a_client_that_took_the_place_of_another(
    start_edge, settings, nats
):
    async with EventBus(settings) as bus:
        edge = await start_edge(bus)
        before = bus.driver.counters["rebuilds"]
        await bus.driver._connection.client.close()  # as some errors of the server do
        await until(lambda: bus.driver.counters["rebuilds"] > before)
        async with asyncio.timeout(PATIENCE_S):
            answers = []
            while not answers:
                answers = await ask(nats, "PING", 2, seconds=0.3)
        assert [answer["id"] for answer in answers] == [edge.node.id]


async def test_on_other_drivers_nodes_start_anyway(start_edge):
    edge = await start_edge(Settings(driver="memory"))
    client = await edge.connect()
    await client.subscribe("general")


async def test_node_without_the_right_to_be_a_service_works_anyway(
    start_edge, namespace, tmp_path, caplog
):
    permissions = {"publish": ">", "subscribe": {"allow": ">", "deny": "$SRV.>"}}
    user = {"user": "edge", "password": "pw", "permissions": permissions}
    async with NatsServer(tmp_path / "own", config={"authorization": {"users": [user]}}) as server:
        url = server.url.replace("nats://", "nats://edge:pw@")
        settings = Settings(nats_url=url, namespace=namespace, history_bytes=4 * 1024**2)
        edge = await start_edge(settings)
        client = await edge.connect()
        await client.subscribe("general")
        await until(lambda: "permissions violation" in caplog.text.lower())
        assert await client.receives_nothing()
        await client.socket.close()
        await edge.runner.cleanup()
