"""A master known to a sentinel, and its failover."""

import asyncio
import signal

import pytest

from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.redis.driver import RedisDriver
from eventbus.drivers.redis.sentinel import find_master
from eventbus.drivers.redis.target import (
    Address,
    Target,
)
from eventbus.errors import ConnectionFailed, PublishFailed
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.conftest import until

PATIENCE_S = 45.0
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def group_settings(group, namespace):
    return Settings(
        driver="redis", redis_sentinels=group.addresses, namespace=namespace,
        history_messages=100_000, publish_timeout=PATIENCE_S,
    )  # fmt: skip


class Publishing:
    """Publishes to a channel until it is stopped."""

    def __init__(self, driver, subject):
        self.acked = {}
        self._driver, self._subject, self._stop = driver, subject, asyncio.Event()
        self._number = 0

    async def _publish(self):
        while not self._stop.is_set():
            self._number += 1
            payload = str(self._number).encode()
            self.acked[payload] = (await self._driver.publish(self._subject, payload)).position
            await asyncio.sleep(0.002)

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._publish()) for _ in range(4)]
        return self

    async def __aexit__(self, *exc):
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def test_planned_failover_is_followed_at_once_and_what_it_lost_is_reported_as_a_gap(
    make_redis, group, group_settings, subjects
):
    publisher, listener = await make_redis(group_settings), await make_redis(group_settings)
    inbox, every, quiet, gaps = Inbox(), Inbox(), Inbox(), []
    await listener.subscribe(subjects.live("room"), inbox)
    await listener.subscribe(subjects.live("quiet"), quiet)
    subscription = await listener.subscribe(subjects.live_filter(Pattern("*")), every)
    subscription.on_gap = lambda: gaps.append(1)
    before = await publisher.publish(subjects.event("quiet"), b"before")
    await quiet.until(1)
    async with Publishing(publisher, subjects.event("room")) as publishing:
        await inbox.until(100)
        await group.fail_over()

        async def is_followed():
            return all(
                [node.address.port for node in driver._nodes.all] == [group.replica.port]
                for driver in (publisher, listener)
            )

        await until(is_followed, PATIENCE_S)
        # The demoted master takes messages until its sentinels make it a replica, 8 s later.
        assert "role:master" in await group.master.command("INFO", "replication")
        switched = len(publishing.acked)
        await inbox.until(len(inbox.deliveries) + 200)
    await inbox.until_payload(
        lambda payloads: set(list(publishing.acked)[switched:]) <= set(payloads)
    )
    assert len(publishing.acked) > switched
    epochs = {position.epoch for position in publishing.acked.values()}
    assert len(epochs) == 2  # earlier ones may be lost, and nobody may assume otherwise
    assert inbox.offsets == sorted(set(inbox.offsets))
    assert listener.counters["gaps"] >= 1
    assert gaps
    after = await publisher.publish(subjects.event("quiet"), b"after")
    assert after.position.epoch != before.position.epoch
    await quiet.until(2)
    assert quiet.deliveries[-1].position == after.position


async def test_with_acknowledging_replicas_a_planned_failover_loses_nothing(
    make_redis, group, group_settings, subjects
):
    publisher = await make_redis(group_settings, redis_wait_replicas=1)
    async with Publishing(publisher, subjects.event("room")) as publishing:
        while len(publishing.acked) < 50:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        await group.fail_over()
        old = group.master.port
        while publisher._nodes.all and publisher._nodes.all[0].address.port == old:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        # The new master has a replica when its sentinels have turned the old one into that.
        async def has_replica():
            return "state=online" in await group.replica.command("INFO", "replication")

        await until(has_replica, PATIENCE_S)
        many = len(publishing.acked)
        while len(publishing.acked) < many + 20:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    page = await publisher.read(subjects.live("room"), after=None, limit=100_000)
    assert set(publishing.acked) <= {delivery.payload for delivery in page.messages}


async def test_message_that_too_few_replicas_have_is_not_acknowledged(
    make_redis, redis_settings, subjects
):
    driver = await make_redis(redis_settings, redis_wait_replicas=1, publish_timeout=1.5)
    with pytest.raises(
        PublishFailed, match=r"0 replicas.*BROADCAST_REDIS_WAIT_REPLICAS requires 1"
    ):
        await driver.publish(subjects.event("room"), b"x")


async def test_master_that_becomes_a_replica_by_hand_is_not_used_any_more(
    make_redis, start_redis, subjects, namespace, monkeypatch
):
    monkeypatch.setattr("eventbus.drivers.redis.driver.CHECK_S", 0.1)
    monkeypatch.setattr("eventbus.drivers.redis.nodes.CHECK_S", 0.1)
    server, other = await start_redis(), await start_redis()
    driver = await make_redis(Settings(redis_port=server.port, namespace=namespace))
    await server.command("REPLICAOF", "127.0.0.1", str(other.port))

    async def is_refused():
        return not driver.is_connected and driver.counters["refusals"] > 0

    await until(is_refused)
    await server.command("REPLICAOF", "NO", "ONE")

    async def is_back():
        return driver.is_connected

    await until(is_back)
    await driver.publish(subjects.event("room"), b"x")


async def test_sentinel_that_was_cut_off_does_not_lead_back_to_the_old_master(group):
    settings = Settings(redis_sentinels=group.addresses[::-1])
    old, new = (Address("127.0.0.1", s.port) for s in (group.master, group.replica))
    assert await find_master(Target.of(settings), []) == old
    stale = group.sentinels[2]
    stale.signal(signal.SIGSTOP)
    try:
        await group.fail_over()

        async def is_over():
            reply = await group.sentinels[0].command("SENTINEL", "MASTER", "mymaster")
            return str(new.port) in reply.split()

        await until(is_over, PATIENCE_S)
        assert await find_master(Target.of(settings), [old]) == new
    finally:
        stale.signal(signal.SIGCONT)
    assert await find_master(Target.of(settings), [new]) == new
    assert await find_master(Target.of(settings), []) == new


async def test_failover_to_a_replica_continues_and_reports_that_messages_may_be_lost(
    make_redis, start_redis, start_sentinel, namespace, subjects
):
    master = await start_redis()
    replica = await start_redis("--replicaof", "127.0.0.1", str(master.port))
    sentinel = await start_sentinel(master.port)

    async def in_step():
        info = await master.command("INFO", "replication")
        known = await sentinel.command("SENTINEL", "REPLICAS", "mymaster")
        return "state=online" in info and str(replica.port) in known

    await until(in_step)
    settings = Settings(
        redis_sentinels=(f"127.0.0.1:{sentinel.port}",), namespace=namespace, connect_timeout=3
    )
    driver, inbox = await make_redis(settings, publish_timeout=PATIENCE_S), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    before = await driver.publish(subjects.event("room"), b"before")
    await inbox.until(1)
    assert driver._nodes.all[0].address.port == master.port
    await master.kill()
    after = await driver.publish(subjects.event("room"), b"after")
    assert driver._nodes.all[0].address.port == replica.port
    assert after.position.epoch != before.position.epoch
    await inbox.until(2)
    assert inbox.payloads == [b"before", b"after"]
    assert driver.is_connected


async def test_sentinel_that_does_not_know_the_service_names_the_variable(
    start_redis, start_sentinel
):
    master = await start_redis()
    sentinel = await start_sentinel(master.port)
    driver = RedisDriver(
        Settings(
            redis_sentinels=(f"127.0.0.1:{sentinel.port}",),
            redis_sentinel_service="other",
            connect_timeout=0.5,
        )
    )
    with pytest.raises(ConnectionFailed, match="BROADCAST_REDIS_SENTINEL_SERVICE"):
        await driver.open()


async def test_sentinels_that_are_not_there_are_named():
    driver = RedisDriver(Settings(redis_sentinels=("127.0.0.1:1",), connect_timeout=0.3))
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1.*BROADCAST_REDIS_SENTINELS"):
        await driver.open()
