"""One Redis server that is killed, suspended or replaced while messages pass through two edges."""

import asyncio
import signal

import pytest

from eventbus.config import Settings
from eventbus.drivers.redis import link

MANY = 1_000_000

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def impatient(monkeypatch):
    """Make connections give up on a silent server after half a second instead of four."""
    monkeypatch.setattr(link, "PING_S", 0.1)
    monkeypatch.setattr(link, "DEAD_S", 0.5)


def settings_of(server, namespace):
    return Settings(
        driver="redis", redis_port=server.port, namespace=namespace, history_messages=MANY,
        history_seconds=3600, publish_timeout=30,
    )  # fmt: skip


async def test_nothing_is_lost_when_a_server_with_an_append_only_file_is_killed(
    own_redis, namespace, start_workload
):
    workload = await start_workload(settings_of(own_redis, namespace))
    for _ in range(2):
        await workload.until_more(50)
        await own_redis.kill()
        await own_redis.start()
    await workload.until_more(50)
    await workload.stop()
    await workload.nothing_is_missing()
    workload.no_gap_was_reported()
    assert not workload.failed
    epochs = {receipt.epoch for acked in workload.acked.values() for receipt in acked.values()}
    assert len(epochs) == 1


async def test_loss_is_reported_to_everyone_when_a_server_without_a_file_is_killed(
    start_redis, namespace, start_workload
):
    server = await start_redis("--appendonly", "no")
    workload = await start_workload(settings_of(server, namespace))
    await workload.until_more(50)
    await server.kill()
    before = workload.snapshot()
    await server.start()
    await workload.until_more(50)
    await workload.stop()
    await workload.nothing_is_missing(since=before)
    for receiver in workload.receivers:
        for channel in workload.acked:
            await receiver.until_gap(channel)
    assert not workload.failed
    for channel, acked in workload.acked.items():
        old = {acked[number].epoch for number in before[channel]}
        new = {acked[number].epoch for number in set(acked) - before[channel]}
        assert old.isdisjoint(new)


async def test_nothing_is_lost_when_a_server_hangs_and_goes_on(
    own_redis, namespace, start_workload, impatient
):
    workload = await start_workload(settings_of(own_redis, namespace))
    await workload.until_more(50)
    own_redis.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(40):
            while any(edge.node.bus.driver.is_connected for edge in workload.edges):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
    finally:
        own_redis.signal(signal.SIGCONT)
    await workload.until_more(50)
    await workload.stop()
    await workload.nothing_is_missing()
    workload.no_gap_was_reported()
    assert not workload.failed
