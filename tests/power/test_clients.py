"""Clients of an edge whose NATS server loses its last messages in a power cut."""

import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus.testing.edge import EdgeServer
from eventbus_edge import ANYONE, ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery import bus_health

pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("power"), pytest.mark.timeout(240)]

RULES = ChannelRules([Rule(Pattern("news"), ChannelKind.PUBLIC, ANYONE)])
KEPT, LOST = range(20), range(20, 30)


@pytest.fixture(autouse=True)
def no_probes(monkeypatch):
    """Nodes store no probes, so that offsets are those of the test's messages."""
    monkeypatch.setattr(bus_health, "CHECK_S", 10_000.0)


@pytest.fixture(params=["process", "disk"])
async def broker(new_broker, request):
    """A server with settings for a durability; for `disk`, it syncs each write."""
    broker = await new_broker(syncs_always=request.param == "disk")
    broker.settings = Settings(
        nats_url=broker.server.url, namespace="own", history_bytes=4 * 1024**2,
        history_durability=request.param, connect_timeout=90.0, publish_timeout=90.0,
    )  # fmt: skip
    return broker


def edge_on(bus):
    return EdgeServer(EdgeSettings(), bus, rules=RULES)


async def publish(bus, data):
    for each in data:
        await bus.publish("news", "tick", each)


def position(frame):
    return {key: frame[key] for key in ("offset", "epoch", "mark")}


@pytest.mark.parametrize("new_messages", [0, 5, 40])
async def test_client_ahead_of_the_store_is_always_notified(broker, new_messages):
    """No matter how many new messages have taken the lost offsets."""
    async with EventBus(broker.settings) as bus:
        await publish(bus, KEPT)
        broker.machine.write_back()
        async with edge_on(bus) as edge:
            client = await edge.connect()
            await client.subscribe("news")
            await publish(bus, LOST)
            frames = [await client.receive(timeout=150) for _ in LOST]
            broker.power_off()
    await broker.restart()
    is_whole = broker.settings.history_durability == "disk"
    async with EventBus(broker.settings) as bus, edge_on(bus) as edge:
        await publish(bus, [f"new {number}" for number in range(new_messages)])
        client = await edge.connect()
        answer = await client.ask("subscribe", channel="news", data=position(frames[-1]))
        assert answer["recovered"] is is_whole
        await publish(bus, ["live"])
        received = [
            (await client.receive(timeout=150))["data"] for _ in range(new_messages * is_whole + 1)
        ]
        assert received[-1] == "live"
        assert received[:-1] == [f"new {number}" for number in range(new_messages * is_whole)]


async def test_connected_client_is_notified_when_the_store_lost_its_messages(broker):
    async with EventBus(broker.settings) as bus, edge_on(bus) as edge:
        await publish(bus, KEPT)
        broker.machine.write_back()
        client = await edge.connect()
        await client.subscribe("news")
        await publish(bus, LOST)
        frames = [await client.receive(timeout=150) for _ in LOST]
        broker.power_off()
        await broker.restart()
        await publish(bus, ["after"])
        frame = await client.receive(timeout=150)
        if broker.settings.history_durability == "process":
            assert frame["event"] == "eb:subscribed"
            assert frame["data"]["recovered"] is False
            assert frame["data"]["offset"] == len(KEPT)
            assert frame["data"]["epoch"] != frames[-1]["epoch"]
            frame = await client.receive(timeout=150)
        assert frame["data"] == "after"
