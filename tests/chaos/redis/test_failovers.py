"""A master with a replica and sentinels: killed, or suspended while its replica is promoted."""

import signal

import pytest

from eventbus.config import Settings
from tests.eventbus.drivers.conftest import until

pytestmark = pytest.mark.timeout(500)
PATIENCE_S = 120
"""Sentinels that stood still for 2 s do nothing for the next 30 s: their "tilt mode"."""


def settings_of(group, namespace, **changes):
    return Settings(
        driver="redis", redis_sentinels=group.addresses, namespace=namespace,
        history_messages=100_000, history_seconds=3600, publish_timeout=PATIENCE_S, **changes,
    )  # fmt: skip


async def follows(group, workload):
    """Wait until all drivers have left the old master for the promoted replica."""

    async def is_done():
        drivers = [edge.node.bus.driver for edge in workload.edges]
        return all(
            [node.address.port for node in driver._nodes.all] == [group.replica.port]
            for driver in (*drivers, *workload.drivers, workload.bus.driver)
        )

    await until(is_done, PATIENCE_S)


async def rejoins(group):
    """Wait until the old master replicates the new one, so that it can acknowledge."""

    async def is_done():
        return "state=online" in await group.replica.command("INFO", "replication")

    await until(is_done, PATIENCE_S)


async def test_loss_by_a_killed_master_is_bounded_and_reported_to_everyone(
    group, namespace, start_workload
):
    """Its replica may lack the last messages: replication does not wait."""
    workload = await start_workload(settings_of(group, namespace))
    await workload.until_more(100)
    await group.master.kill()
    before = workload.snapshot()
    await follows(group, workload)
    await workload.until_more(100)
    await workload.stop()
    await workload.nothing_is_missing(since=before, once=False)
    for receiver in workload.receivers:
        for channel in workload.acked:
            await receiver.until_gap(channel)
    await workload.every_loss_was_reported()
    assert not workload.failed


@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_master_that_wakes_after_its_replica_was_promoted_acknowledges_little(
    group, namespace, start_workload, wait_replicas
):
    """A stopped master wakes as a master, until its sentinels demote it some seconds later.

    With BROADCAST_REDIS_WAIT_REPLICAS nothing that it acknowledges is lost. Without, what it
    acknowledges before the drivers leave it may be, and everyone is notified.
    """
    workload = await start_workload(
        settings_of(group, namespace, redis_wait_replicas=wait_replicas)
    )
    await workload.until_more(100)
    group.master.signal(signal.SIGSTOP)
    try:
        new = group.replica.port

        async def is_promoted():
            reply = await group.sentinels[0].command("SENTINEL", "MASTER", "mymaster")
            return str(new) in reply.split()

        await until(is_promoted, PATIENCE_S)
    finally:
        group.master.signal(signal.SIGCONT)
    await follows(group, workload)
    after = workload.snapshot()
    if wait_replicas:
        await rejoins(group)
    await workload.until_more(50)
    await workload.stop()
    await workload.nothing_is_missing(since=None if wait_replicas else after, once=False)
    await workload.every_loss_was_reported()
    for receiver in workload.receivers:
        for channel in workload.acked:
            await receiver.until_gap(channel)
    assert not workload.failed


async def test_planned_failover_with_waiting_replicas_loses_nothing(
    group, namespace, start_workload
):
    workload = await start_workload(settings_of(group, namespace, redis_wait_replicas=1))
    await workload.until_more(100)
    await group.fail_over()
    await follows(group, workload)
    await rejoins(group)
    await workload.until_more(50)
    await workload.stop()
    await workload.nothing_is_missing(once=False)
    assert not workload.failed


async def test_nodes_continue_when_all_sentinels_are_gone(group, namespace, start_workload):
    """Without sentinels no replica is promoted; the master stays, even after a restart."""
    workload = await start_workload(settings_of(group, namespace))
    await workload.until_more(30)
    for sentinel in group.sentinels:
        await sentinel.kill()
    await workload.until_more(30)
    for sentinel in group.sentinels:
        await sentinel.start()
    await workload.until_more(30)
    await workload.stop()
    await workload.nothing_is_missing()
    workload.no_gap_was_reported()
    assert not workload.failed
