"""A stream that goes back in time, as the clients of an edge see it."""

import shutil

import pytest

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.config import Settings

pytestmark = pytest.mark.usefixtures("no_probes")

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


async def test_client_that_comes_back_to_a_restored_store_is_told_what_nobody_saw(
    start_edge, own_nats_server, tmp_path
):
    await publish(own(own_nats_server), OLD)
    await keep_copy(own_nats_server, tmp_path)
    async with EventBus(own(own_nats_server)) as bus:
        edge = await start_edge(bus)
        client = await edge.connect("/ws/general")
        await client.next()
        for each in LOST:
            await bus.publish("general", "tick", each)
        frames = await receive(client, len(LOST))
        assert frames[-1]["offset"] == 100
    await go_back(own_nats_server, tmp_path)
    await publish(own(own_nats_server), NEW)
    async with EventBus(own(own_nats_server)) as bus:
        edge = await start_edge(bus)
        client = await edge.connect()
        told = await client.subscribe("general", data=place(frames[-1]))
        assert told["recovered"] is False
        assert told["offset"] == 110
        await bus.publish("general", "tick", "live")
        assert (await client.next())["data"] == "live"


async def test_clients_that_stay_connected_get_all_that_is_new_and_are_told(
    start_edge, own_nats_server, tmp_path
):
    await publish(own(own_nats_server), OLD)
    await keep_copy(own_nats_server, tmp_path)
    async with EventBus(own(own_nats_server)) as bus:
        edge = await start_edge(bus)
        client = await edge.connect("/ws/general")
        await client.next()
        for each in LOST:
            await bus.publish("general", "tick", each)
        before = await receive(client, len(LOST))
        got, gaps = [], []
        async with connect(f"ws://127.0.0.1:{edge.port}/ws") as python:
            subscription = await python.subscribe("general")
            subscription.on("tick", lambda data, message: got.append((data, message.after_gap)))
            subscription.on("eb:subscribed", gaps.append)
            await go_back(own_nats_server, tmp_path)
            await publish(own(own_nats_server), NEW)
            told = await client.next()
            assert told["event"] == "eb:subscribed"
            assert told["data"]["recovered"] is False
            assert told["data"]["offset"] == 80
            assert told["data"]["epoch"] != before[-1]["epoch"]
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
