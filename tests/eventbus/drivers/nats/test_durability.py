"""Durability "disk": streams are on servers that sync each write, or the bus fails to open."""

import asyncio
import contextlib
import logging

import pytest
from msgspec.structs import replace

from eventbus.config import Settings
from eventbus.errors import StreamMismatch
from eventbus.server import NatsServer, syncs_always
from tests.clusters import cluster_settings
from tests.eventbus.drivers.nats.conftest import api, connected, opened

pytestmark = pytest.mark.server

TAG = {"server_tags": ["sync-always"]}
CLASSES = "orders.>:10/1h/disk prices.>:10/1h"
WHAT_TO_CONFIGURE = r'server_tags: \["sync-always"\]` .* `sync_interval: always`'


def of(*servers, **changes):
    urls = ",".join(server.url for server in servers)
    return Settings(nats_url=urls, namespace="own", history_bytes=1024**2, **changes)


async def placements(url):
    """The placement tags of each stream, by its name without the digest of a class's pattern."""
    async with connected(url) as client:
        found = await api(client, "STREAM.LIST")
    return {
        stream["config"]["name"].partition("--")[0]: stream["config"]
        .get("placement", {})
        .get("tags")
        for stream in found["streams"]
    }


@pytest.fixture
async def tagged(tmp_path):
    async with NatsServer(tmp_path / "tagged", config=TAG) as server:
        yield server


@pytest.mark.parametrize(
    "asked", [{"history_durability": "disk"}, {"retention": CLASSES}], ids=["all", "a class"]
)
async def test_server_without_the_tag_is_refused_with_what_to_configure(own_nats_server, asked):
    with pytest.raises(StreamMismatch, match=WHAT_TO_CONFIGURE) as refused:
        async with opened(of(own_nats_server, **asked)):
            pass
    assert "has no tag sync-always" in str(refused.value)


async def test_queue_on_a_server_without_the_tag_is_refused(own_nats_server):
    async with opened(of(own_nats_server, queue_durability="disk")) as driver:
        with pytest.raises(StreamMismatch, match=WHAT_TO_CONFIGURE):
            await driver.queues.push("default", "1", b"{}", 0)
        with pytest.raises(StreamMismatch, match=WHAT_TO_CONFIGURE):
            await driver.prepare()


async def test_class_for_disk_is_placed_with_the_stream_that_acknowledges_its_messages(tagged):
    async with opened(of(tagged, retention=CLASSES)) as driver:
        await driver.prepare()
    tags = ["sync-always"]
    assert await placements(tagged.url) == {
        "OWN_EVENTS": tags, "OWN_EVENTS_orders": tags, "OWN_EVENTS_prices": None,
        "OWN_QUEUE": None, "OWN_FAILED": None, "KV_OWN_STATE": None, "KV_OWN_DURABLE": tags,
    }  # fmt: skip


async def test_queues_are_placed_by_a_setting_of_their_own(tagged):
    async with opened(of(tagged, queue_durability="disk")) as driver:
        await driver.prepare()
    tags = ["sync-always"]
    assert await placements(tagged.url) == {
        "OWN_EVENTS": None, "OWN_QUEUE": tags, "OWN_FAILED": tags,
        "KV_OWN_STATE": None, "KV_OWN_DURABLE": None,
    }  # fmt: skip


async def test_streams_from_before_are_used_on_a_server_that_has_the_tag(tagged):
    async with opened(of(tagged, retention="orders.>:10/1h")) as driver:
        await driver.prepare()
    async with opened(of(tagged, retention="orders.>:10/1h/disk")) as driver:
        await driver.prepare()
    assert (await placements(tagged.url))["OWN_EVENTS_orders"] == ["sync-always"]


async def test_user_that_cannot_see_the_tag_is_served(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    permissions = {"publish": {"deny": ["$SYS.>"]}}
    users = [{"user": "a", "password": "b", "permissions": permissions}]
    async with NatsServer(tmp_path, config={"authorization": {"users": users}}) as server:
        url = server.url.replace("//", "//a:b@")
        async with opened(replace(of(server, history_durability="disk"), nats_url=url)) as driver:
            assert await driver.publish("own.event.a", b"{}") is not None
    assert "cannot check whether its server syncs each write" in caplog.text


@pytest.mark.parametrize("asked", [{"history_durability": "disk"}, {"queue_durability": "disk"}])
async def test_embedded_server_syncs_always_when_the_settings_ask_for_disk(tmp_path, asked):
    own = Settings(nats_data=str(tmp_path), nats_port=0, history_bytes=1024**2)
    async with opened(own):
        assert not syncs_always(tmp_path)
    async with opened(replace(own, **asked)) as driver:
        assert syncs_always(tmp_path)
        await driver.prepare()


async def test_embedded_server_of_a_process_with_other_settings_is_refused(tmp_path):
    own = Settings(nats_data=str(tmp_path), nats_port=0, history_bytes=1024**2)
    async with opened(own):
        with pytest.raises(StreamMismatch, match="the process that starts it has these settings"):
            async with opened(replace(own, history_durability="disk")):
                pass


@pytest.fixture
async def new_cluster(tmp_path):
    """Start three servers; those of the given numbers have the tag."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*tagged):
            servers = [
                NatsServer(
                    tmp_path / str(number), config={**config, **(TAG if number in tagged else {})}
                )
                for number, config in enumerate(cluster_settings(3), 1)
            ]
            for server in servers:
                stack.push_async_callback(server.stop)
            await asyncio.gather(*(server.start() for server in servers))
            return servers

        yield start


async def test_stream_goes_to_the_server_of_a_cluster_that_syncs_or_nowhere(new_cluster):
    servers = await new_cluster(2)
    patient = of(*servers, history_durability="disk", connect_timeout=30.0)
    with pytest.raises(StreamMismatch, match="takes 3 servers of the cluster that sync") as refused:
        async with opened(replace(patient, history_replicas=3)):
            pass
    assert "no suitable peers" in str(refused.value)
    assert "sync_interval: always" in str(refused.value)
    async with opened(patient), connected(servers[0].url) as client:
        info = await api(client, "STREAM.INFO.OWN_EVENTS")
    assert info["cluster"]["leader"] == "nats-2"


async def test_existing_stream_of_a_cluster_is_not_moved_unasked(new_cluster):
    servers = await new_cluster(1, 2, 3)
    patient = of(*servers, connect_timeout=30.0)
    async with opened(patient):
        pass
    wanted = replace(patient, history_durability="disk")
    with pytest.raises(StreamMismatch, match="nats stream edit OWN_EVENTS --tag sync-always"):
        async with opened(wanted):
            pass
    async with connected(servers[0].url) as client:
        config = (await api(client, "STREAM.INFO.OWN_EVENTS"))["config"]
        edited = {**config, "placement": {"tags": ["sync-always"]}}
        assert "error" not in await api(client, "STREAM.UPDATE.OWN_EVENTS", edited)
    async with opened(wanted) as driver:
        assert await driver.publish("own.event.a", b"{}") is not None
