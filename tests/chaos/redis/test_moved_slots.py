"""A cluster whose slots move while messages flow, and presence entries with them."""

import asyncio

import pytest

from eventbus.channels import Subjects
from eventbus.config import Settings
from tests.chaos.redis.workload import CHANNELS

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 40.0


async def move(cluster, name):
    """Move the slot of a name to the next master, key by key, as `redis-cli --cluster` does.

    While the keys are spread over two nodes, commands for several keys get TRYAGAIN, others ASK.
    """
    source = await cluster.node_of(name)
    target = cluster.nodes[(cluster.nodes.index(source) + 1) % len(cluster.nodes)]
    slot = await source.command("CLUSTER", "KEYSLOT", name)
    ids = {node: await node.command("CLUSTER", "MYID") for node in (source, target)}
    await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    while keys := (await source.command("CLUSTER", "GETKEYSINSLOT", slot, "1")).split():
        moved = await source.command(
            "MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys
        )
        assert moved in {"OK", "NOKEY"}
    for node in (target, source, *cluster.nodes):
        await node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    assert await cluster.node_of(name) is target


async def test_nothing_is_lost_and_members_stay_while_slots_move(
    own_cluster, namespace, start_workload, token
):
    settings = Settings(
        driver="redis", redis_port=own_cluster.nodes[0].port, redis_cluster=True,
        namespace=namespace, history_messages=100_000, history_seconds=3600, publish_timeout=40,
    )  # fmt: skip
    workload = await start_workload(settings)
    names = [Subjects(namespace).live(channel) for channel in CHANNELS]
    ann, bob = [
        await edge.connect(token=token(user))
        for edge, user in zip(workload.edges, ("ann", "bob"), strict=True)
    ]
    await ann.subscribe("presence.room")
    await bob.subscribe("presence.room")
    assert (await ann.next())["event"] == "eb:presence.joined"
    await workload.until_more(50)
    for name in (*names, f"{namespace}.state"):
        await move(own_cluster, name)
        await workload.until_more(20)
    await workload.stop()
    await workload.nothing_is_missing()
    workload.no_gap_was_reported()
    assert not workload.failed
    for client in (ann, bob):
        answer = await client.ask("presence", channel="presence.room")
        assert answer["event"] == "eb:presence", "nobody seemed to leave"
        assert {member["user_id"] for member in answer["data"]["members"]} == {"ann", "bob"}
    cid = await workload.edges[1].connect(token=token("cid"))
    await cid.subscribe("presence.room")
    async with asyncio.timeout(PATIENCE_S):
        joined = await ann.next()
    assert (joined["event"], joined["data"]["user_id"]) == ("eb:presence.joined", "cid")
