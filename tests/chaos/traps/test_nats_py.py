"""Traps in nats-py: how a plain client behaves, and how the driver does.

A proxy keeps, delays or drops the bytes of a real nats-server. When one of the plain clients
behaves differently, nats-py or nats-server has changed, and the code that avoids the trap can go.
"""

import asyncio
import os
import signal

import pytest
from msgspec.structs import replace
from nats.aio.client import Client

from eventbus.attempts import Backoff
from eventbus.config import Settings
from eventbus.drivers.nats import publish as nats_publish
from eventbus.drivers.nats.connection import connection as nats_connection, cutoff
from eventbus.errors import ConnectionFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts.driver import Inbox
from tests.chaos.traps.proxy import proxied
from tests.eventbus.drivers.nats.conftest import api, connected, kill, opened, until

BYTES = 4 * 1024**2
PATIENCE_S = 30.0
STREAM = "OWN_EVENTS"


@pytest.fixture
async def proxy(own_nats_server):
    async with proxied(own_nats_server) as proxy:
        yield proxy


@pytest.fixture
def direct(own_nats_server):
    """Settings for the server itself."""
    return Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=BYTES)


@pytest.fixture
def behind(direct, proxy):
    """Settings for the proxy in front of the server."""
    return replace(direct, nats_url=proxy.url)


@pytest.fixture
async def plain(proxy):
    """A client as nats-py makes it, behind the proxy."""
    client = Client()
    await client.connect(proxy.url)
    yield client
    await client.close()


async def last_offset(settings):
    """The last offset of the event stream, as the server has it."""
    async with connected(settings.nats_url) as client:
        return (await api(client, f"STREAM.INFO.{STREAM}"))["state"]["last_seq"]


async def test_flush_sends_its_ping_before_the_messages_that_wait(plain, proxy):
    proxy.sent.clear()
    await plain.publish("a", b"1")
    await plain.flush()
    await plain.flush()  # the first one need not have waited for the message
    sent = bytes(proxy.sent)
    assert sent.index(b"PING\r\n") < sent.index(b"PUB a ")


async def test_round_trip_of_the_driver_follows_the_messages_that_wait(behind, proxy):
    async with opened(behind) as driver:
        proxy.sent.clear()
        client = driver._connection.client
        if client.buffer("own.control.a", b"1"):
            await client.flush_soon()
        assert await driver._connection.echo()
        sent = bytes(proxy.sent)
        assert sent.index(b"PUB own.control.a ") < sent.index(b"PUB _INBOX.")


async def test_late_pong_ends_the_reading_of_a_plain_client_which_still_seems_connected(
    plain, proxy
):
    proxy.hold()
    with pytest.raises(TimeoutError):
        await plain.flush(timeout=0.2)
    proxy.release()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([plain._reading_task])
    assert plain.is_connected


async def test_late_pong_costs_the_driver_nothing(direct, behind, proxy):
    async with opened(behind) as away, opened(direct) as there:
        inbox = Inbox()
        await away.subscribe("own.live.a", inbox)
        proxy.hold()
        with pytest.raises(TimeoutError):
            await away._connection.client.flush(timeout=0.2)
        sent = [await there.publish("own.event.a", b"%d" % n) for n in range(20)]
        proxy.release()
        await inbox.until(20)
        assert inbox.offsets == [one.position.offset for one in sent]
        assert (await away.publish("own.event.a", b"after")).position.offset == 21
        counters = away.counters
        assert (counters["losses"], counters["gaps"]) == (0, 0)


async def test_missing_answers_end_the_connection_and_nothing_is_missed(
    direct, behind, proxy, monkeypatch
):
    monkeypatch.setattr(nats_connection, "PING_S", 0.2)
    async with opened(behind) as away, opened(direct) as there:
        inbox = Inbox()
        await away.subscribe("own.live.a", inbox)
        proxy.hold()
        sent = [await there.publish("own.event.a", b"%d" % n) for n in range(20)]
        await until(lambda: away.counters["losses"] > 0)
        proxy.release()
        await inbox.until(20)
        assert inbox.offsets == [one.position.offset for one in sent]
        assert away.counters["gaps"] == 0


async def test_server_that_is_lost_is_not_tried_before_another_one(
    own_nats_server, direct, monkeypatch
):
    monkeypatch.setattr(nats_connection, "PING_S", 0.2)
    monkeypatch.setattr(cutoff, "_EVERY", Backoff(600, 600))  # else it visits other servers
    async with (
        proxied(own_nats_server) as one,
        proxied(own_nats_server) as other,
        opened(replace(direct, nats_url=f"{one.url},{other.url}")) as driver,
    ):
        for _ in range(4):
            url = driver._connection.client.connected_url.geturl()
            lost = one if one.url == url else other
            before = lost.accepted
            lost.hold()
            await until(lambda: not driver.is_connected)
            await until(lambda: driver.is_connected)
            assert lost.accepted == before
            lost.release()


async def test_flush_of_a_plain_client_succeeds_while_there_is_no_server(plain, own_nats_server):
    os.kill(own_nats_server.pid, signal.SIGKILL)
    await until(lambda: not plain.is_connected)
    async with asyncio.timeout(PATIENCE_S):
        await plain.flush()
    await own_nats_server.stop()


async def test_round_trip_of_the_driver_fails_while_there_is_no_server(direct, own_nats_server):
    async with opened(replace(direct, connect_timeout=4.0)) as driver:
        await kill(own_nats_server, driver)
        assert not await driver._connection.echo()
        with pytest.raises(ConnectionFailed):
            await driver.subscribe("own.control.a", Inbox())


async def test_message_whose_acknowledgement_is_late_is_stored_once(
    direct, behind, proxy, monkeypatch
):
    monkeypatch.setattr(nats_publish, "ATTEMPT_S", 0.3)
    async with opened(behind) as driver:
        await driver.publish("own.event.a", b"first")
        proxy.hold()
        publishing = asyncio.create_task(driver.publish("own.event.a", b"second"))
        await until(lambda: driver.counters["publish_retries"] >= 2)
        proxy.release()
        second = await publishing
        assert second.position.offset == 2
        assert (await driver.publish("own.event.a", b"third")).position.offset == 3
        assert await last_offset(direct) == 3


async def test_message_that_failed_is_stored_once_when_it_is_published_again_under_its_id(
    direct, behind, proxy
):
    headers = {"Nats-Msg-Id": "order-7"}
    async with opened(replace(behind, publish_timeout=0.3)) as driver:
        proxy.hold()
        with pytest.raises(Exception, match="was not acknowledged"):
            await driver.publish("own.event.a", b"x", headers)
        proxy.release()
    assert await last_offset(direct) == 1, "it was stored although publishing failed"
    async with opened(direct) as driver:
        again = await driver.publish("own.event.a", b"x", headers)
        assert (again.position.offset, again.duplicate) == (1, True)


async def test_client_that_the_server_cuts_for_not_reading_receives_what_it_missed(tmp_path):
    """nats-server closes a connection with more than `max_pending` bytes to write."""
    count, payload = 250, b"x" * 60_000
    config = {"max_pending": 4 * 1024**2, "write_deadline": "1s"}
    async with (
        NatsServer(tmp_path / "nats", config=config) as server,
        proxied(server) as proxy,
        connected(server.url) as client,
    ):
        there_settings = Settings(
            nats_url=server.url, namespace="own", history_bytes=2**26, history_messages=1000
        )
        away_settings = replace(there_settings, nats_url=proxy.url)

        async def connections():
            answer = await client.request("$SYS.REQ.ACCOUNT.PING.CONNZ", timeout=10)
            return answer.data.count(b'"cid"')

        async with opened(there_settings) as there:
            before = await connections()
            async with opened(away_settings) as away:
                inbox = Inbox()
                await away.subscribe("own.live.a", inbox)
                proxy.hold()
                for number in range(count):
                    await there.publish("own.event.a", b"%03d" % number + payload)
                async with asyncio.timeout(PATIENCE_S):
                    while await connections() > before:  # noqa: ASYNC110 - the server is asked
                        await asyncio.sleep(0.05)
                proxy.release()
                await until(lambda: len(inbox.deliveries) >= count, PATIENCE_S)
                assert [int(one[:3]) for one in inbox.payloads] == list(range(count))
                assert inbox.offsets == list(range(1, count + 1))
                assert away.counters["losses"] >= 1
                assert away.counters["gaps"] == 0


async def test_history_of_large_messages_is_read_over_a_slow_link(own_nats_server, proxy):
    """One batch of direct gets may have 64 MiB, more than passes before its request expires."""
    count = 200
    settings = Settings(
        nats_url=proxy.url, namespace="own", history_bytes=2**26, history_messages=1000
    )
    async with opened(settings) as driver:
        for number in range(count):
            await driver.publish("own.event.a", b"%03d" % number + b"x" * 60_000)
        proxy.bytes_per_second = 4 * 1024**2
        page = await driver.read("own.live.a", after=0, limit=count)
        assert [int(one.payload[:3]) for one in page.messages] == list(range(count))
        assert page.complete
