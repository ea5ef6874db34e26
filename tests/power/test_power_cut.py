"""Power cuts of NATS servers while messages are published: acknowledged messages are kept.

Or, where docs/deployment.md says so, it is not.
"""

import asyncio
import os
import signal

import pytest

from eventbus.config import Settings
from tests.power.publishing import ALL, Publishers, lost, stored

pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("power-brokers"), pytest.mark.timeout(240)]


def settings_of(*brokers, **changes):
    return Settings(
        nats_url=",".join(broker.server.url for broker in brokers),
        namespace="own", history_bytes=16 * 1024**2, history_messages=ALL,
        connect_timeout=90.0, publish_timeout=90.0, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_server_that_syncs_always_loses_nothing_that_it_acknowledged(new_broker, seed):
    broker = await new_broker(syncs_always=True)
    settings = settings_of(broker, history_durability="disk")
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(300)
        broker.power_off()
        await publishers.stop()
        await broker.restart(seed)
    assert lost(publishers.acknowledged, await stored(settings)) == set()


async def test_default_server_loses_all_that_it_acknowledged_since_the_last_sync(new_broker):
    broker = await new_broker()
    settings = settings_of(broker)
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(100)
        await publishers.stop()
        broker.machine.write_back()
        before = set(publishers.acknowledged)
        publishers.begin()
        await publishers.more(100)
        broker.power_off()
        await publishers.stop()
        await broker.restart()
    since = set(publishers.acknowledged) - before
    assert lost(publishers.acknowledged, await stored(settings)) == since
    assert len(since) >= 100


async def test_syncing_needs_a_file_system_that_commits_the_name_of_a_file_with_the_file(
    new_broker,
):
    """nats-server 2.15.1 does not sync the folders of a new stream; ext4, XFS and btrfs do."""
    broker = await new_broker("posix", syncs_always=True)
    settings = settings_of(broker, history_durability="disk")
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(100)
        broker.power_off()
        await publishers.stop()
        await broker.restart()
    assert await stored(settings) == {}


async def test_restarted_embedded_server_has_all_acknowledged_messages(new_machine):
    machine = new_machine()
    settings = Settings(
        nats_data=str(machine.folder / "nats"), nats_port=0, history_durability="disk",
        history_bytes=16 * 1024**2, history_messages=ALL, namespace="own",
        environment="production", publish_timeout=90.0, connect_timeout=90.0,
    )  # fmt: skip
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(100)
        os.kill(publishers.server.pid, signal.SIGKILL)
        machine.power_off()
        machine.power_on()
        await publishers.more(300)
        await publishers.stop()
        assert lost(publishers.acknowledged, await publishers.stored()) == set()


async def test_power_cut_of_one_broker_of_three_loses_nothing_by_default(new_cluster):
    brokers = await new_cluster([False, False, False])
    settings = settings_of(*brokers, history_replicas=3)
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(100)
        leader = await publishers.leader(brokers)
        leader.power_off()
        await publishers.more(100)
        await leader.restart()
        await publishers.more(100)
        await publishers.stop()
        assert lost(publishers.acknowledged, await publishers.stored()) == set()


async def test_class_for_disk_is_placed_on_the_server_that_syncs_and_loses_nothing(new_cluster):
    brokers = await new_cluster([True, False, False])
    settings = settings_of(*brokers, retention=f"orders.>:{ALL}/24h/disk prices.>:{ALL}/24h")
    async with (
        Publishers(settings) as orders,
        Publishers(settings, "prices.1") as prices,
    ):
        for broker in brokers:
            broker.machine.write_back()  # the list of streams
        for publishers in (orders, prices):
            publishers.begin()
            await publishers.more(100)
        for broker in brokers:
            broker.power_off()
        for publishers in (orders, prices):
            await publishers.stop()
        await asyncio.gather(*(broker.restart() for broker in brokers))
    assert lost(orders.acknowledged, await stored(settings)) == set()
    assert lost(prices.acknowledged, await stored(settings, "prices.1")) == set()


@pytest.mark.parametrize("syncs_always", [True, False])
async def test_only_always_survives_a_power_cut_of_one_broker_while_others_have_crashed(
    new_cluster, syncs_always
):
    """Two brokers of three stored the messages: one loses them, and the other one is down.

    Jepsen saw this in nats-server 2.12.1, with pauses (nats-io/nats-server#7567).
    """
    brokers = await new_cluster([syncs_always] * 3)
    durability = "disk" if syncs_always else "process"
    settings = settings_of(*brokers, history_replicas=3, history_durability=durability)
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(50)
        await publishers.stop()
        await publishers.caught_up(3)
        for broker in brokers:
            broker.machine.write_back()
        leader = await publishers.leader(brokers)
        late, cut = (broker for broker in brokers if broker is not leader)
        late.kill()
        publishers.begin()
        await publishers.more(50)
        await publishers.stop()
        cut.power_off()
        leader.kill()
        await asyncio.gather(cut.restart(), late.restart_process())
        async with Publishers(settings_of(late, cut, history_replicas=3)) as others:
            others.begin()
            await others.more(10)
            await others.stop()
            missing = lost(publishers.acknowledged, await others.stored())
    assert bool(missing) is not syncs_always
