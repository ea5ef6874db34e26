"""A NATS server that answers and stores nothing: publishers and nodes say what is wrong."""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys

import msgspec
import nats
import pytest

from eventbus.config import Settings
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.errors import PublishFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import BYTES, opened

pytestmark = pytest.mark.server

EVENT = "own.event.a"

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits files by prlimit(2)")


@contextlib.asynccontextmanager
async def publishing(url, **changes):
    """An open driver that soon gives up what is not acknowledged."""
    settings = Settings(nats_url=url, namespace="own", history_bytes=BYTES, publish_timeout=2.5)
    async with opened(msgspec.structs.replace(settings, **changes)) as driver:
        yield driver


def fail_writes(server, *, fail=True):
    """Have each write of a server to a file fail, as on a full disk."""
    size = 1 if fail else resource.RLIM_INFINITY
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@linux
async def test_publishers_learn_that_the_stream_stores_nothing_and_what_to_do(own_nats_server):
    async with publishing(own_nats_server.url) as driver:
        await driver.publish(EVENT, b"{}")
        assert await driver.check() == ""
        fail_writes(own_nats_server)
        with pytest.raises(PublishFailed) as caught:
            await driver.publish(EVENT, b"{}")
        for words in ("stream OWN_EVENTS can be read", "stores nothing", "disk", "restart"):
            assert words in str(caught.value)
        assert "stores nothing" in await driver.check()
        # nats-server keeps refusing when there is room again, until it is restarted.
        fail_writes(own_nats_server, fail=False)
        with pytest.raises(PublishFailed, match="restart"):
            await driver.publish(EVENT, b"{}")
        await own_nats_server.stop()
        await own_nats_server.start()
        async with asyncio.timeout(20):
            await driver.publish(EVENT, b"{}")
        assert await driver.check() == ""


@linux
async def test_subscriber_that_does_not_publish_learns_it_too_and_is_notified_of_the_end(
    own_nats_server, caplog
):
    async with publishing(own_nats_server.url) as driver:
        assert await driver.check() == ""
        fail_writes(own_nats_server)
        async with asyncio.timeout(30):
            while not (fault := await driver.check()):  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.5)  # a probe that was stored counts for some seconds
        assert "stores nothing" in fault
        assert "stream OWN_EVENTS stores no messages" in caplog.text
        await own_nats_server.stop()
        await own_nats_server.start()
        async with asyncio.timeout(30):
            while await driver.check():  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.1)
        assert "stream OWN_EVENTS stores messages again" in caplog.text


async def test_limit_of_jetstreams_storage_is_named(tmp_path):
    limits = {"store_dir": str(tmp_path / "nats"), "max_file_store": 200_000}
    async with NatsServer(tmp_path / "nats", config={"jetstream": limits}) as server:
        raw = await nats.connect(server.url)
        await raw.jetstream().add_stream(
            name="OWN_EVENTS", subjects=["own.event.>"], allow_direct=True,
            republish=nats.js.api.RePublish(src="own.event.>", dest="own.live.>"),
        )  # fmt: skip
        await raw.close()
        async with publishing(server.url) as driver:
            messages = [driver.publish(EVENT, b"x" * 40_000) for _ in range(20)]
            with pytest.raises(PublishFailed, match="max_file_store"):
                await asyncio.gather(*messages)
            assert "max_file_store" in await driver.check()


async def test_memory_that_is_used_up_is_named_and_known_to_the_check(tmp_path):
    limits = {"store_dir": str(tmp_path / "nats"), "max_memory_store": 3000}
    async with (
        NatsServer(tmp_path / "nats", config={"jetstream": limits}) as server,
        publishing(server.url) as driver,
    ):
        assert await driver.check() == ""
        await driver.state.put("node.large", b"x" * 5000, ttl_s=60)  # the last that fits
        with pytest.raises(PublishFailed, match="max_memory_store"):
            await driver.state.put("node.next", b"x" * 5000, ttl_s=60)
        assert "KV_OWN_STATE stores no entries" in await driver.check()


async def test_user_without_permission_for_the_probe_logs_once_that_storage_is_unknown(
    tmp_path, caplog
):
    password = "a-password-for-watching"
    allowed = ["_INBOX.>", "$JS.API.STREAM.INFO.*"]
    users = [
        {"user": "all", "password": password},
        {"user": "edge", "password": password, "permissions": {
            "publish": {"allow": allowed}, "subscribe": {"allow": [">"]}}},
    ]  # fmt: skip
    config = {"authorization": {"users": users}}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        address = server.url.removeprefix("nats://")
        async with (
            publishing(f"nats://all:{password}@{address}"),
            publishing(f"nats://edge:{password}@{address}") as driver,
        ):
            caplog.set_level("INFO")
            assert [await driver.check() for _ in range(3)] == [""] * 3
            assert caplog.text.count("cannot watch whether") == 1


async def test_probes_reach_no_subscriber_group_or_list(own_nats_server):
    inbox = Inbox()
    async with publishing(own_nats_server.url) as driver:
        await driver.subscribe("own.live.>", inbox)
        consumer = await driver.consume("group", "own.live.>", ConsumerSettings(30.0))
        taking = asyncio.create_task(consumer.take(10))
        before = (await driver._stream.state()).last
        assert await driver.check() == ""
        assert await driver.check() == ""
        assert (await driver._stream.state()).last > before  # a probe was stored
        await driver.publish(EVENT, b'{"n":1}')
        async with asyncio.timeout(20):
            (held,) = await taking
            await inbox.until(1)
        assert held.delivery.payload == b'{"n":1}'
        assert inbox.payloads == [b'{"n":1}']
        assert await driver.stored("own.live.>", 10) == {"own.live.a": 1}


async def test_a_busy_stream_is_not_probed(own_nats_server):
    async with publishing(own_nats_server.url) as driver:
        await driver.check()
        for n in range(3):
            await driver.publish(EVENT, b"{}")
            last = (await driver._stream.state()).last
            assert await driver.check() == "", n
            assert (await driver._stream.state()).last == last


@linux
async def test_embedded_server_whose_writes_failed_for_a_moment_is_restarted(tmp_path):
    async with publishing("", nats_data=str(tmp_path / "nats"), nats_port=0) as driver:
        await driver.publish(EVENT, b"{}")
        fail_writes(driver.server)
        with pytest.raises(PublishFailed, match="stores nothing"):
            await driver.publish(EVENT, b"{}")
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(PublishFailed):
                    await driver.publish(EVENT, b"{}")
                    break
        assert await driver.check() == ""


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, with 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_embedded_server_on_a_full_disk_is_restarted_when_there_is_room(small_disk, caplog):
    async with publishing("", nats_data=str(small_disk / "nats"), nats_port=0) as driver:
        await driver.publish(EVENT, b"{}")
        room = os.statvfs(small_disk)
        fill = small_disk / "fill"
        with contextlib.suppress(OSError):
            fill.write_bytes(b"x" * (room.f_bavail * room.f_bsize))
        with pytest.raises(PublishFailed, match="stores nothing"):
            await driver.publish(EVENT, b"x" * 20_000)
        async with asyncio.timeout(20):
            while "the nats-server cannot store messages; it is restarted" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        fill.unlink()
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(PublishFailed):
                    await driver.publish(EVENT, b"x" * 20_000)
                    break
        assert await driver.check() == ""
