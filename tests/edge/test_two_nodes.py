"""Two nodes on one NATS, which know of each other by nothing else."""

import pytest


@pytest.fixture
async def nodes(start_edge):
    return await start_edge(), await start_edge()  # each with a bus of its own


async def test_clients_of_one_channel_on_two_nodes_receive_the_same(nodes, bus):
    clients = [await node.connect("/ws/general") for node in nodes for _ in range(2)]
    for client in clients:
        await client.next()
    receipts = [await bus.publish("general", "n", n) for n in range(20)]
    for client in clients:
        received = [await client.next() for _ in range(20)]
        assert [message["data"] for message in received] == list(range(20))
        assert [message["offset"] for message in received] == [
            receipt.offset for receipt in receipts
        ]
        assert [message["id"] for message in received] == [receipt.id for receipt in receipts]


async def test_a_whisper_reaches_the_other_node_and_not_its_sender(nodes, token):
    alice = await nodes[0].connect("/ws/chat.1", token=token("alice"))
    near = await nodes[0].connect("/ws/chat.1", token=token("near"))
    far = await nodes[1].connect("/ws/chat.1", token=token("far"))
    for client in (alice, near, far):
        await client.next()
    await alice.send("whisper", channel="chat.1", event="typing", data=1)
    for client in (near, far):
        frame = await client.next()
        assert (frame["event"], frame["user_id"]) == ("client-typing", "alice")
    assert await alice.receives_nothing()


async def test_a_connection_is_excluded_on_any_node(nodes, bus):
    first, second = [await node.connect("/ws/general") for node in nodes]
    await first.next()
    await second.next()
    excluded = second.greeting["data"]["connection_id"]
    await bus.publish("general", "e", 1, except_connection=excluded)
    assert (await first.next())["data"] == 1
    assert await second.receives_nothing()


async def test_namespaces_do_not_receive_each_others_messages(nodes, nats, namespace):
    client = await nodes[0].connect("/ws/general")
    await client.next()
    await nats.publish(f"x{namespace}.live.general", b"1")
    await nats.publish(f"{namespace}.live.general", b"2")
    assert (await client.next())["data"] == 2
    assert await client.receives_nothing()
