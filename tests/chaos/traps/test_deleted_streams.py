"""Streams that an operator deletes or purges while processes are connected."""

import asyncio

import pytest
from msgspec.structs import replace

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.marks import MarkedPosition
from eventbus.errors import PublishFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts import Inbox
from tests.eventbus.drivers.nats.conftest import BYTES, PATIENCE_S, api, connected, opened

STREAM = "OWN_EVENTS"
PASSWORD = "a-password-for-publishers"


async def delete(settings):
    async with connected(settings.nats_url) as client:
        assert (await api(client, f"STREAM.DELETE.{STREAM}"))["success"]


async def is_there(settings):
    async with connected(settings.nats_url) as client:
        return "error" not in await api(client, f"STREAM.INFO.{STREAM}")


async def test_deleted_stream_is_recreated_for_the_next_message(own_settings):
    async with opened(own_settings) as one, opened(own_settings) as other:
        inbox, every, gaps = Inbox(), Inbox(), []
        await other.subscribe("own.live.a", inbox)
        subscription = await other.subscribe("own.live.>", every)
        subscription.on_gap = lambda: gaps.append(1)
        before = [await one.publish("own.event.a", b"%d" % n) for n in range(5)]
        await inbox.until(5)
        await delete(own_settings)
        after = [await one.publish("own.event.a", b"new %d" % n) for n in range(3)]
        assert [sent.position.offset for sent in after] == [1, 2, 3]
        assert after[0].position.epoch != before[0].position.epoch
        for box in (inbox, every):
            await box.until(8)
            assert [one.position for one in box.deliveries[5:]] == [sent.position for sent in after]
        assert gaps
        seen = MarkedPosition(*before[4].position, inbox.deliveries[4].time)
        assert not (await one.resume("own.live.a", seen, 500)).complete


async def test_deleted_stream_is_recreated_without_a_publisher(own_settings):
    async with opened(own_settings) as driver:
        await delete(own_settings)
        assert "not found" in await driver.check()
        async with asyncio.timeout(PATIENCE_S):
            while not await is_there(own_settings):  # noqa: ASYNC110 - the server is asked
                await asyncio.sleep(0.02)
        assert await driver.check() == ""


async def test_publisher_that_may_not_create_the_stream_reports_that_it_is_missing(tmp_path):
    publisher = {"publish": {"allow": ["own.event.>", "$JS.API.STREAM.INFO.>"]}}
    users = [
        {"user": "admin", "password": PASSWORD},
        {"user": "publisher", "password": PASSWORD, "permissions": publisher},
    ]
    async with NatsServer(tmp_path / "nats", config={"authorization": {"users": users}}) as server:
        url = server.url.replace("://", f"://{{}}:{PASSWORD}@")
        admin = Settings(nats_url=url.format("admin"), namespace="own", history_bytes=BYTES)
        async with opened(admin) as driver:
            await driver.publish("own.event.a", b"x")
        limited = replace(admin, nats_url=url.format("publisher"), publish_timeout=6)
        async with opened(limited) as driver:
            await driver.publish("own.event.a", b"x")
            await delete(admin)
            with pytest.raises(PublishFailed, match="no stream captures the subject"):
                await driver.publish("own.event.a", b"x")


async def test_clients_of_edges_learn_that_the_stream_was_deleted(own_settings, start_edge):
    edge = await start_edge(own_settings)
    async with EventBus(own_settings) as bus:
        client = await edge.connect("/ws/general")
        await client.next()
        receipt = await bus.publish("general", "tick", 1)
        assert (await client.next())["data"] == 1
        await delete(own_settings)
        await bus.publish("general", "tick", 2)
        notice = await client.next()
        assert (notice["event"], notice["data"]["recovered"]) == ("eb:subscribed", False)
        assert (await client.next())["data"] == 2
        late = await edge.connect()
        cursor = {"offset": receipt.offset, "epoch": receipt.epoch}
        assert (await late.subscribe("general", data=cursor))["recovered"] is False


async def test_clients_of_edges_learn_that_the_stream_was_purged_when_they_resume(
    own_settings, start_edge
):
    edge = await start_edge(own_settings)
    async with EventBus(own_settings) as bus:
        client = await edge.connect("/ws/general")
        await client.next()
        sent = [await bus.publish("general", "tick", n) for n in range(4)]
        frames = [await client.next() for _ in range(4)]
        async with connected(own_settings.nats_url) as nats:
            assert (await api(nats, f"STREAM.PURGE.{STREAM}"))["success"]
        await bus.publish("general", "tick", 4)
        assert (await client.next())["data"] == 4, "connected clients miss nothing"
        for frame, recovered in ((frames[1], False), (frames[3], True)):
            late = await edge.connect()
            cursor = {key: frame[key] for key in ("offset", "epoch", "mark")}
            answer = await late.subscribe("general", data=cursor)
            assert answer["recovered"] is recovered, frame
        assert sent[3].offset == frames[3]["offset"]
