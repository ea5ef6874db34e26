"""What each kind of NATS user of compose/nats/permissions.conf may do, on the cluster of three."""

import asyncio

import pytest

from eventbus.bus import EventBus
from eventbus.errors import ConnectionFailed, EventBusError, PublishFailed

pytestmark = pytest.mark.xdist_group("deployment")


async def published(bus, channel="general"):
    return await bus.driver.publish(bus.subjects.event(channel), b'{"event":"x","data":1}')


async def test_setup_replicates_the_streams(deployment):
    async with EventBus(deployment.settings("publisher")) as bus:
        assert (await published(bus)).position.offset >= 1


async def test_publisher_publishes_and_cannot_read(deployment):
    async with EventBus(deployment.settings("publisher")) as bus:
        await published(bus)
        for subject in (bus.subjects.live("general"), bus.subjects.event("general"), "eb.live.>"):
            with pytest.raises(ConnectionFailed, match="no permission to listen"):
                await bus.driver.subscribe(subject, print)
        with pytest.raises(EventBusError, match="no permission"):
            await bus.driver.read(bus.subjects.live("general"), after=None, limit=1)


async def test_edge_hears_and_reads_and_cannot_publish_events(deployment):
    settings = deployment.settings("edge")
    heard = asyncio.Queue()
    async with EventBus(settings) as edge, EventBus(deployment.settings("publisher")) as publisher:
        live = edge.subjects.live("orders.1")
        await edge.driver.subscribe(live, heard.put_nowait)
        await published(publisher, "orders.1")
        async with asyncio.timeout(10):
            assert (await heard.get()).payload == b'{"event":"x","data":1}'
        page = await edge.driver.read(live, after=None, limit=1)
        assert len(page.messages) == 1
        with pytest.raises(PublishFailed, match=r"no permission to publish to eb\.event\.orders"):
            await published(edge, "orders.1")


async def test_worker_takes_and_fails_jobs(deployment):
    async with (
        EventBus(deployment.settings("worker")) as worker,
        EventBus(deployment.settings("publisher")) as publisher,
    ):
        store = await publisher.queues()
        await store.push("default", "job-1", b"{}", 0)
        reader = (await worker.queues()).reader("default")
        async with asyncio.timeout(15):
            job = await reader.wait()
        assert job.payload == b"{}"
        await job.done()
        await reader.aclose()
