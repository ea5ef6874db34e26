"""Clients are notified how many connections, of all nodes, are subscribed to their channels."""

import asyncio
import time

import pytest

from eventbus_edge.cluster import counts
from tests.edge.pusher.test_api import APP, SETTINGS, Client

COUNTED = SETTINGS | {"pusher_subscription_counts": True}
EVENT = "pusher_internal:subscription_count"


async def open_client(edge):
    return await Client(await edge.connect(f"/app/{APP.key}", greeted=False)).greeted()


async def count_is(client, channel, expected):
    """Read counts until the expected one; returns all that were read."""
    found = []
    while not found or found[-1] != expected:
        frame = await client.next()
        assert (frame["event"], frame["channel"]) == (EVENT, channel), frame
        found.append(frame["data"]["subscription_count"])
    return found


@pytest.fixture
def start(start_edge, bus):
    async def start(which=None, **changes):
        return await start_edge(bus if which is None else which, **COUNTED | changes)

    return start


async def test_connections_of_all_nodes_and_protocols_are_counted(
    start, settings, know_each_other, token
):
    nodes = [await start(), await start(settings)]
    await know_each_other(*nodes)
    first, second = [await open_client(node) for node in nodes]
    await first.join("private-user.7")
    await count_is(first, "private-user.7", 1)
    await second.join("private-user.7")
    assert await count_is(second, "private-user.7", 2) == [2]
    assert await count_is(first, "private-user.7", 2) == [2]
    native = await nodes[1].connect(token=token("7"))
    await native.subscribe("user.7")
    for client in (first, second):
        assert await count_is(client, "private-user.7", 3) == [3]
    await second._client.socket.close()
    assert await count_is(first, "private-user.7", 2) == [2]
    assert await native.receives_nothing()


async def test_connections_of_a_killed_node_do_not_count(start, start_process, connect):
    dying = await start_process(
        PUSHER_APP_ID=APP.id,
        PUSHER_APP_KEY=APP.key,
        PUSHER_APP_SECRET=APP.secret,
        PUSHER_SUBSCRIPTION_COUNTS="true",
    )
    client = await open_client(await start())
    await client.join("general")
    other = Client(await connect(dying.port, f"/app/{APP.key}"))
    await other.greeted()
    await other.join("general")
    await count_is(client, "general", 2)
    dying.process.kill()
    await count_is(client, "general", 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xff", b"[" * 5000, b"{}", b'{"node":1}', b'{"node":"n","counts":{"general":-1}}',
        b'{"node":"unknown","counts":{"general":7},"wanted":["general","a b",""]}',
    ],
)  # fmt: skip
async def test_foreign_message_changes_no_count(start, nats, namespace, payload):
    client = await open_client(await start())
    await client.join("general")
    await count_is(client, "general", 1)
    await nats.publish(f"{namespace}.control.counts", payload)
    await nats.flush()
    second = await open_client(await start())
    await second.join("general")
    assert await count_is(client, "general", 2) == [2]


async def test_many_connections_are_counted_less_often(start, monkeypatch):
    monkeypatch.setattr(counts, "MANY", 2)
    monkeypatch.setattr(counts, "MANY_S", 6.0)
    edge = await start()
    clients = [await open_client(edge) for _ in range(5)]
    for client in clients[:3]:
        await client.join("general")
    await count_is(clients[0], "general", 3)
    begun = time.monotonic()
    for client in clients[3:]:
        await client.join("general")
        await asyncio.sleep(2 * counts.TURN_S)  # each join falls into a turn of its own
    assert await count_is(clients[0], "general", 5) == [5]
    assert time.monotonic() - begun > 1.0


async def test_presence_channels_and_other_clients_get_no_counts(start, start_edge, bus):
    edge = await start()
    member = await open_client(edge)
    await member.join("presence-room", "7")
    await member.sign_in("7")
    await member.join("general")
    await count_is(member, "general", 1)
    client = await open_client(await start_edge(bus, **SETTINGS))
    await client.join("general")
    another = await open_client(edge)
    await another.join("general")
    assert await count_is(member, "general", 2) == [2]  # the other node does not count
    assert await client.receives_nothing()
