"""A master known to a sentinel, and its failover."""

import asyncio

import pytest

from eventbus.config import Settings
from eventbus.drivers.redis import RedisDriver
from eventbus.errors import ConnectionFailed
from eventbus.testing.driver_contract import Inbox


async def until(true, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - the state of other processes
            await asyncio.sleep(0.05)


async def test_failover_to_a_replica_goes_on_and_tells_that_messages_may_be_lost(
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
    driver, inbox = await make_redis(settings, publish_timeout=20), Inbox()
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
