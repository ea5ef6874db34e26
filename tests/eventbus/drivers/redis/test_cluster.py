"""The redis driver on a cluster of three masters: sharding, filters, lost nodes, moved slots."""

import asyncio
import re

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.testing.contracts.driver import Inbox

CHANNELS = [f"room.{i}" for i in range(30)]


@pytest.fixture
def own_settings(own_cluster, namespace):
    return Settings(
        driver="redis",
        redis_port=own_cluster.nodes[0].port,
        redis_cluster=True,
        namespace=namespace,
        history_messages=100_000,
    )


async def until(true, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - the state of a connection has no event
            await asyncio.sleep(0.01)


class Publishing:
    """Publishes to one channel, ten at once, until it is stopped."""

    def __init__(self, driver, subject):
        self.acked = {}
        self._driver, self._subject = driver, subject
        self._stop = asyncio.Event()
        self._number = 0

    async def _publish(self):
        while not self._stop.is_set():
            self._number += 1
            payload = str(self._number).encode()
            self.acked[payload] = (await self._driver.publish(self._subject, payload)).position

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._publish()) for _ in range(10)]
        return self

    async def __aexit__(self, *exc):
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def test_keys_of_a_channel_lie_where_its_messages_are_sent(
    make_redis, cluster_settings, redis_cluster, subjects
):
    driver = await make_redis(cluster_settings)
    used = set()
    for channel in CHANNELS:
        await driver.publish(subjects.event(channel), b"x")
        live = subjects.live(channel)
        keys = await (await redis_cluster.node_of(live)).command("KEYS", f"{{{live}}}:*")
        assert sorted(keys.split()) == [f"{{{live}}}:{part}" for part in "ims"]
        assert {key_slot(key.encode()) for key in keys.split()} == {key_slot(live.encode())}
        used.add((await redis_cluster.node_of(live)).port)
    assert len(used) == 3


async def test_exact_listeners_use_sharded_pubsub_alone(
    make_redis, cluster_settings, redis_cluster, subjects
):
    driver, inbox = await make_redis(cluster_settings), Inbox()
    live = subjects.live("room")
    node = await redis_cluster.node_of(live)
    await driver.subscribe(live, inbox)
    assert (await node.command("PUBSUB", "SHARDNUMSUB", live)).split()[-1] == "1"
    assert (await node.command("PUBSUB", "NUMSUB", live)).split()[-1] == "0"


async def test_whole_cluster_receives_a_message_only_while_there_is_a_filter(
    make_redis, cluster_settings, redis_cluster, subjects
):
    driver, inbox, every = await make_redis(cluster_settings), Inbox(), Inbox()
    live = subjects.live("room")
    await driver.subscribe(live, inbox)
    async with Redis(port=redis_cluster.nodes[0].port) as client, client.pubsub() as classic:
        await classic.subscribe(live)
        assert (await classic.get_message(timeout=30))["type"] == "subscribe"
        for root in (subjects.event, subjects.live):
            await driver.publish(root("room"), b"quiet")
        subscription = await driver.subscribe(subjects.live_filter(Pattern(">")), every)
        await driver.publish(subjects.event("room"), b"loud")
        received = await classic.get_message(timeout=30)
        assert received["data"].endswith(b"loud")
        await inbox.until(3)
        assert (await every.until(1))[0].payload == b"loud"
        await subscription.aclose()


async def test_filter_gets_each_message_once_although_every_node_reports_it(
    make_redis, cluster_settings, subjects
):
    listener, publisher = await make_redis(cluster_settings), await make_redis(cluster_settings)
    every, one = Inbox(), Inbox()
    await listener.subscribe(subjects.live_filter(Pattern("room.*")), every)
    await listener.subscribe(subjects.live(CHANNELS[0]), one)
    for root in (subjects.event, subjects.live):
        await asyncio.gather(
            *(publisher.publish(root(name), name.encode()) for name in CHANNELS for _ in range(10))
        )
    await every.until(600)
    await one.until(20)
    await publisher.publish(subjects.live("room.end"), b"end")
    await every.until_payload(lambda payloads: b"end" in payloads)
    assert len(every.deliveries) == 601
    for channel in CHANNELS:
        live = subjects.live(channel)
        mine = [d for d in every.deliveries if d.subject == live]
        offsets = [d.position.offset for d in mine if d.position]
        assert offsets == list(range(offsets[0], offsets[0] + 10))


async def test_other_channels_continue_while_a_node_is_gone_and_nothing_acknowledged_is_lost(
    make_redis, own_settings, own_cluster, subjects
):
    driver, inboxes = await make_redis(own_settings), {name: Inbox() for name in CHANNELS}
    for name, inbox in inboxes.items():
        await driver.subscribe(subjects.live(name), inbox)
    every = Inbox()
    await driver.subscribe(subjects.live_filter(Pattern("room.*")), every)
    homes = {name: await own_cluster.node_of(subjects.live(name)) for name in CHANNELS}
    gone = homes[CHANNELS[0]]
    other = next(name for name in CHANNELS if homes[name] is not gone)
    async with (
        Publishing(driver, subjects.event(CHANNELS[0])) as broken,
        Publishing(driver, subjects.event(other)) as whole,
    ):
        await inboxes[CHANNELS[0]].until(100)
        await gone.kill()
        await until(lambda: not driver.is_connected)
        await inboxes[other].until(len(inboxes[other].deliveries) + 200)
        assert not driver.is_connected
        await gone.start()
        await inboxes[CHANNELS[0]].until(len(inboxes[CHANNELS[0]].deliveries) + 100)
    for name, publishing in ((CHANNELS[0], broken), (other, whole)):
        await inboxes[name].until(len(publishing.acked))
        got = {d.payload: d.position for d in inboxes[name].deliveries}
        assert got == publishing.acked
        assert inboxes[name].offsets == sorted(set(inboxes[name].offsets))
    await every.until(len(broken.acked) + len(whole.acked))
    assert len(every.deliveries) == len(broken.acked) + len(whole.acked)
    assert driver.is_connected


async def test_moving_a_slot_loses_and_duplicates_nothing(
    make_redis, own_settings, own_cluster, subjects
):
    driver, inbox, every, cursor = await make_redis(own_settings), Inbox(), Inbox(), Inbox()
    live = subjects.live("room")
    await driver.subscribe(live, inbox)
    await driver.subscribe(subjects.live_filter(Pattern("*")), every)
    source = await own_cluster.node_of(live)
    target = next(node for node in own_cluster.nodes if node is not source)
    slot = await source.command("CLUSTER", "KEYSLOT", live)
    ids = {node: await node.command("CLUSTER", "MYID") for node in own_cluster.nodes}
    async with Publishing(driver, subjects.event("room")) as publishing:
        await inbox.until(100)
        await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        await driver.publish(live, b"volatile, between nodes")
        keys = (await source.command("CLUSTER", "GETKEYSINSLOT", slot, "10")).split()
        assert await source.command(
            "MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys
        ) == "OK"  # fmt: skip
        for node in (target, source, *own_cluster.nodes):
            await node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        await inbox.until(len(inbox.deliveries) + 200)
    assert await own_cluster.node_of(live) is target
    for box in (inbox, every):
        await box.until(len(publishing.acked) + 1)
        stored = {d.payload: d.position for d in box.deliveries if d.position}
        assert stored == publishing.acked
        assert box.offsets == sorted(set(box.offsets))
        assert [d.payload for d in box.deliveries if not d.position] == [b"volatile, between nodes"]
    assert driver.counters["losses"] == 0
    await driver.publish(live, b"volatile, at its new node")
    await inbox.until_payload(lambda payloads: b"volatile, at its new node" in payloads)
    assert cursor.deliveries == []


async def test_any_node_of_the_url_leads_to_all(make_redis, redis_cluster, namespace, subjects):
    ports = [1, redis_cluster.nodes[2].port]
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    driver = await make_redis(Settings(redis_url=url, namespace=namespace))
    for channel in CHANNELS:
        await driver.publish(subjects.event(channel), b"x")
    assert len(driver._nodes.all) == 3


@pytest.mark.parametrize("how", ["planned", "crash"])
async def test_failover_of_a_node_continues_and_its_channels_have_another_epoch(
    make_redis, own_settings, own_cluster, start_redis, subjects, how
):
    driver, inbox, other_inbox = await make_redis(own_settings), Inbox(), Inbox()
    master = await own_cluster.node_of(subjects.live("room"))
    homes = {name: await own_cluster.node_of(subjects.live(name)) for name in CHANNELS}
    other = next(name for name in CHANNELS if homes[name] is not master)
    replica = await start_redis(
        "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "yes"
    )
    await replica.command("CLUSTER", "MEET", "127.0.0.1", str(master.port))
    master_id = await master.command("CLUSTER", "MYID")

    async def poll(true):
        async with asyncio.timeout(40):
            while not await true():  # noqa: ASYNC110 - the state of other processes
                await asyncio.sleep(0.1)

    async def replicates():
        return await replica.command("CLUSTER", "REPLICATE", master_id) == "OK"

    async def is_in_step():
        info = await master.command("INFO", "replication")
        total = re.search(r"master_repl_offset:(\d+)", info)
        replica = re.search(r"slave0:.*state=online,offset=(\d+)", info)
        return total and replica and total[1] == replica[1]

    await poll(replicates)
    await poll(is_in_step)
    await driver.subscribe(subjects.live("room"), inbox)
    await driver.subscribe(subjects.live(other), other_inbox)
    before = await driver.publish(subjects.event("room"), b"before")
    before_other = await driver.publish(subjects.event(other), b"before")
    await inbox.until(1)
    await poll(is_in_step)  # or else a crash would lose the message

    async def is_promoted():
        return "role:master" in await replica.command("INFO", "replication")

    if how == "planned":
        assert await replica.command("CLUSTER", "FAILOVER") == "OK"
    else:
        await master.kill()
    await poll(is_promoted)
    after = await driver.publish(subjects.event("room"), b"after")
    after_other = await driver.publish(subjects.event(other), b"after")
    assert after.position.epoch != before.position.epoch
    assert after.position.offset > before.position.offset
    assert after_other.position.epoch == before_other.position.epoch
    await inbox.until(2)
    await other_inbox.until(2)
    assert inbox.deliveries[-1].position == after.position
    assert driver.counters["gaps"] == 1
    page = await driver.read(subjects.live("room"), after=None, limit=9)
    assert page.messages[-1].payload == b"after"


async def test_subscription_that_is_sent_to_the_wrong_node_reaches_the_right_one_without_a_loss(
    make_redis, cluster_settings, subjects
):
    driver = await make_redis(cluster_settings)
    layout = driver._nodes.layout
    driver._nodes.layout = layout._replace(slots=tuple((i + 1) % 3 for i in layout.slots))
    inbox = Inbox()
    await driver.subscribe(subjects.live("a"), inbox)
    await driver.publish(subjects.event("a"), b"1")
    assert [each.payload for each in await inbox.until(1)] == [b"1"]
    assert driver.counters["losses"] == 0
