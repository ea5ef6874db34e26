"""A stream that goes back in time, as the clients of an edge see it."""

import shutil

import pytest

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.config import Settings

OLD, LOST, NEW = range(80), range(80, 100), [f"new {number}" for number in range(30)]


async def publish(settings, data):
    async with EventBus(settings) as bus:
        for each in data:
            await bus.publish("general", "tick", each)


async def receive(client, count):
    return [await client.next() for _ in range(count)]


def place(frame):
    return {key: frame[key] for key in ("offset", "epoch", "mark")}


async def keep_copy(server, folder):
    await server.stop()
    shutil.copytree(folder / "nats" / "jetstream", folder / "copy")
    await server.start()


async def go_back(server, folder):
    await server.stop()
    shutil.rmtree(folder / "nats" / "jetstream")
    shutil.copytree(folder / "copy", folder / "nats" / "jetstream")
    await server.start()


def own(server):
    return Settings(nats_url=server.url, history_bytes=4 * 1024**2, history_messages=200)


async def client_of_what_is_lost(start_edge, bus):
    """A client of a new edge, and the frames that it got, which the copy of the store lacks."""
    edge = await start_edge(bus)
    client = await edge.connect("/ws/general")
    await client.next()
    for each in LOST:
        await bus.publish("general", "tick", each)
    return edge, client, await receive(client, len(LOST))


@pytest.fixture
async def copied(own_nats_server, tmp_path):
    """A server with some messages, of whose store there is a copy."""
    await publish(own(own_nats_server), OLD)
    await keep_copy(own_nats_server, tmp_path)
    return own_nats_server


async def test_client_that_resumes_on_a_restored_store_is_not_recovered(
    start_edge, copied, tmp_path
):
    async with EventBus(own(copied)) as bus:
        _, _, frames = await client_of_what_is_lost(start_edge, bus)
        assert frames[-1]["offset"] == 100
    await go_back(copied, tmp_path)
    await publish(own(copied), NEW)
    async with EventBus(own(copied)) as bus:
        edge = await start_edge(bus)
        client = await edge.connect()
        answer = await client.subscribe("general", data=place(frames[-1]))
        assert answer["recovered"] is False
        assert answer["offset"] == 110
        await bus.publish("general", "tick", "live")
        assert (await client.next())["data"] == "live"


async def test_connected_clients_get_all_new_messages_and_a_notice(start_edge, copied, tmp_path):
    async with EventBus(own(copied)) as bus:
        edge, client, before = await client_of_what_is_lost(start_edge, bus)
        got, gaps = [], []
        async with connect(f"ws://127.0.0.1:{edge.port}/ws") as python:
            subscription = await python.subscribe("general")
            subscription.on("tick", lambda data, message: got.append((data, message.after_gap)))
            subscription.on("eb:subscribed", gaps.append)
            await go_back(copied, tmp_path)
            await publish(own(copied), NEW)
            notice = await client.next()
            assert notice["event"] == "eb:subscribed"
            assert notice["data"]["recovered"] is False
            assert notice["data"]["offset"] == 80
            assert notice["data"]["epoch"] != before[-1]["epoch"]
            after = await receive(client, len(NEW))
            assert [frame["data"] for frame in after] == NEW
            assert [frame["offset"] for frame in after] == list(range(81, 111))
            await bus.publish("general", "tick", "end")
            assert (await client.next())["data"] == "end"
            await subscription.history()  # all that was sent before has come
            assert [data for data, _ in got] == [*NEW, "end"]
            assert [is_gap for _, is_gap in got] == [True] + [False] * len(NEW)
            assert subscription.gaps == 1
        # Who comes back from the new ones is recovered, from the lost ones not.
        for frame, recovered in ((after[4], True), (before[9], False)):
            other = await edge.connect()
            assert (await other.subscribe("general", data=place(frame)))["recovered"] is recovered
