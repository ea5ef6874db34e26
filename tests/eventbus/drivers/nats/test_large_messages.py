"""Large messages end a batch of the server early, which is not the end of what it has."""

import asyncio

import pytest
from msgspec.structs import replace

from eventbus.drivers.nats import consumer as nats_consumer
from eventbus.drivers.queues import Failure
from tests.eventbus.drivers.nats.conftest import opened

COUNT = 80
PAYLOAD = b"x" * 900_000
ROOM = 256 * 1024**2


@pytest.fixture
def roomy(own_settings):
    return replace(own_settings, history_bytes=ROOM, failed_bytes=ROOM, publish_timeout=30)


async def test_all_failures_are_listed_however_large_their_jobs_are(roomy):
    async with opened(roomy) as driver:
        failures = [Failure(f"job-{i}", "q", "{}", PAYLOAD) for i in range(COUNT)]
        for failure in failures:
            await driver.queues.add_failure(failure)
        assert list(await driver.queues.failures(COUNT + 1)) == failures
        assert list(await driver.queues.failures(COUNT - 1)) == failures[:-1]
        assert await driver.queues.failure("job-79") == failures[-1]


async def test_consumer_takes_a_short_batch_for_no_gap(roomy):
    async with opened(roomy) as driver:
        await asyncio.gather(*(driver.publish("own.event.a", PAYLOAD) for _ in range(COUNT)))
        found = await nats_consumer._after(driver._stream, ">", 1, 256)
        assert found == list(range(1, COUNT + 1))
        assert nats_consumer._first_gap(found, 0, COUNT) is None
