"""What each kind of NATS user of compose/nats/permissions.conf may do, on the cluster of three."""

import asyncio
import os
import time

import nkeys
import pytest
import trustme
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.cluster.announcing import announce_revocation, stored_revocations
from eventbus.cluster.revocation import Revocation
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
            with pytest.raises(ConnectionFailed, match="no permission to subscribe"):
                await bus.driver.subscribe(subject, print)
        with pytest.raises(EventBusError, match="no permission"):
            await bus.driver.read(bus.subjects.live("general"), after=None, limit=1)


async def test_edge_subscribes_and_reads_and_cannot_publish_events(deployment):
    settings = deployment.settings("edge")
    received = asyncio.Queue()
    async with EventBus(settings) as edge, EventBus(deployment.settings("publisher")) as publisher:
        live = edge.subjects.live("orders.1")
        await edge.driver.subscribe(live, received.put_nowait)
        await published(publisher, "orders.1")
        async with asyncio.timeout(40):
            assert (await received.get()).payload == b'{"event":"x","data":1}'
        page = await edge.driver.read(live, after=None, limit=1)
        assert len(page.messages) == 1
        with pytest.raises(PublishFailed, match=r"no permission to publish to eb\.event\.orders"):
            await published(edge, "orders.1")


async def test_edge_and_command_line_revoke_and_nobody_else_can(deployment):
    now = time.time()
    for user in ("edge", "cli"):
        revocation = Revocation(at=now, until=now + 60, user_id=f"revoked by {user}")
        async with EventBus(deployment.settings(user)) as bus:
            await announce_revocation(bus.driver, bus.subjects, revocation)
            assert revocation.key in await stored_revocations(bus.driver)
    async with EventBus(deployment.settings("worker")) as bus:
        with pytest.raises(EventBusError, match="no permission"):
            await announce_revocation(
                bus.driver, bus.subjects, Revocation(at=now, until=now + 60, user_id="7")
            )


async def test_worker_takes_and_fails_jobs(deployment):
    async with (
        EventBus(deployment.settings("worker")) as worker,
        EventBus(deployment.settings("publisher")) as publisher,
    ):
        store = await publisher.queues()
        await store.push("default", "job-1", b"{}", 0)
        reader = (await worker.queues()).reader("default")
        async with asyncio.timeout(40):
            job = await reader.wait()
        assert job.payload == b"{}"
        await job.done()
        await reader.aclose()


async def test_publisher_queues_nothing_it_could_take_back(deployment):
    async with EventBus(deployment.settings("publisher")) as publisher:
        queues = await publisher.queues()
        await queues.push("default", "job-2", b"{}", 0)
        with pytest.raises(EventBusError, match="no permission"):
            await queues.reader("default").wait()


async def test_webhooks_need_no_more_than_an_edge_is_granted(deployment):
    received = asyncio.Queue()

    async def receive(request):
        received.put_nowait(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    (port,) = deployment.free_ports(1)
    loop = asyncio.get_running_loop()
    edge = await loop.run_in_executor(None, lambda: deployment.start_edge(
        "edge-webhooks", port, BROADCAST_WORKERS="1",
        BROADCAST_WEBHOOK_URL=f"http://127.0.0.1:{runner.addresses[0][1]}/hook",
        BROADCAST_WEBHOOK_SECRET=deployment.api_key,
    ))  # fmt: skip
    try:
        async with connect(f"wss://127.0.0.1:{port}/ws", tls=deployment.client_tls) as client:
            await client.subscribe("general")
            async with asyncio.timeout(40):
                assert "channel_occupied" in str(await received.get())
        assert not [line for line in edge.lines() if "permissions violation" in line.lower()]
    finally:
        await loop.run_in_executor(None, edge.stop)
        await runner.cleanup()


async def refusal(settings):
    """What is said of a login that fails, in less time than a retry takes."""
    async with asyncio.timeout(40):
        with pytest.raises(ConnectionFailed) as caught:
            await EventBus(settings).open()
    return str(caught.value)


async def test_certificate_of_another_authority_is_refused_at_once(deployment, tmp_path):
    certificate = trustme.CA().issue_cert("edge.eventbus")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "stranger.pem")
    path = str(tmp_path / "stranger.pem")
    message = await refusal(deployment.settings("edge", NATS_CERT=path, NATS_KEY=path))
    assert "NATS_CERT" in message


async def test_certificate_alone_admits_nobody(deployment):
    assert "NATS_NKEY" in await refusal(deployment.settings("edge", NATS_NKEY=""))


async def test_key_of_another_kind_of_user_is_not_another_right(deployment):
    """The certificate says that one belongs to the house; the nkey says who one is."""
    settings = deployment.settings("publisher")
    as_edge = deployment.settings("edge", NATS_NKEY=settings.nats_nkey)
    assert "NATS_INBOX_PREFIX" in await refusal(as_edge)


def test_edge_with_wrong_credentials_ends_and_says_why(deployment, tmp_path):
    """No endless retry: the operator sees the reason, and its exit code."""
    wrong = tmp_path / "wrong.nk"
    wrong.write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    environ = deployment.environment("edge", NATS_NKEY=str(wrong), BROADCAST_WORKERS="1")
    done = deployment.eventbus("edge", "run", environ=environ, seconds=30)
    assert done.returncode == 1
    assert "refuses the credentials" in done.stderr
    assert wrong.read_text() not in done.stderr
