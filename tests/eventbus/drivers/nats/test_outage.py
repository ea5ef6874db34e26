"""While NATS is away: what waits for it, for how long, and what is refused at once."""

import asyncio
import re
import time

import pytest
from msgspec.structs import replace

from eventbus.errors import ConnectionFailed, PublishFailed
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import kill, opened, paused, until

CALLERS = 12
TIMEOUT_S = 1.0
SLACK_S = 5.0
PATIENCE_S = 60.0
"""For a machine that stands still for a moment; callers that wait for each other take longer."""
WORK = {
    "push": lambda driver, i: driver.queues.push("q", f"job-{i}", b"{}", 0.0),
    "push delayed": lambda driver, i: driver.queues.push("q", f"job-{i}", b"{}", 30.0),
    "fetch": lambda driver, i: driver.queues.reader(f"q{i}").fetch(1),
    "put": lambda driver, i: driver.state.put(f"key.{i}", b"1"),
    "delete": lambda driver, i: driver.durable_state.delete(f"key.{i}"),
    "claim": lambda driver, i: driver.state.claim(f"key.{i}", b"1", ttl_s=5),
    "entries": lambda driver, i: driver.state.entries(f"key.{i}"),
    "watch": lambda driver, i: driver.state.watch(f"key.{i}", lambda *_: None),
    "subscribe": lambda driver, i: driver.subscribe(f"own.live.c{i}", lambda _: None),
    "read": lambda driver, i: driver.read(f"own.live.c{i}", after=None, limit=1),
    "publish": lambda driver, i: driver.publish(f"own.event.c{i}", b"{}"),
}


@pytest.fixture
def impatient(own_settings):
    return replace(own_settings, connect_timeout=TIMEOUT_S, publish_timeout=TIMEOUT_S)


async def seconds_of(work):
    """How long it took to fail."""
    started = time.monotonic()
    with pytest.raises((PublishFailed, ConnectionFailed)):
        await work
    return time.monotonic() - started


async def fail_together(driver):
    """All callers of all kinds fail within little more than their own timeout."""
    kinds = [kind for kind in WORK for _ in range(CALLERS)]
    work = [begin(driver, i) for begin in WORK.values() for i in range(CALLERS)]
    took = await asyncio.gather(*map(seconds_of, work))
    limit = 3 * TIMEOUT_S + SLACK_S
    assert limit < CALLERS * TIMEOUT_S
    late = {kind for kind, seconds in zip(kinds, took, strict=True) if seconds > limit}
    assert not late, max(took)


async def test_callers_that_need_the_broker_fail_together(impatient, own_nats_server):
    async with opened(impatient) as driver:
        await driver.prepare()
        await kill(own_nats_server, driver)
        await fail_together(driver)


async def test_callers_fail_together_when_the_broker_hangs(impatient, own_nats_server):
    async with opened(impatient) as driver:
        await driver.prepare()
        with paused(own_nats_server):
            await fail_together(driver)


async def test_jobs_that_waited_for_the_broker_are_stored_in_the_order_of_their_calls(
    own_settings, own_nats_server
):
    async with opened(own_settings) as driver:
        await driver.queues.push("q", "first", b"{}", 0.0)
        await kill(own_nats_server, driver)
        pushes = [
            asyncio.create_task(driver.queues.push("q", f"job-{i}", b"%d" % i, 0.0))
            for i in range(50)
        ]
        await own_nats_server.start()
        stored = await asyncio.gather(*pushes)
        offsets = [one.position.offset for one in stored]
        assert offsets == sorted(offsets)
        jobs = []
        reader = driver.queues.reader("q")
        while len(jobs) < 51:
            jobs += await reader.fetch(51)
        assert [job.payload for job in jobs[1:]] == [b"%d" % i for i in range(50)]
        await reader.aclose()


async def test_error_of_a_job_says_why_it_was_not_stored(impatient, own_nats_server):
    async with opened(impatient) as driver:
        await kill(own_nats_server, driver)
        await until(lambda: "refused" in driver._connection.faults.why or driver.counters["errors"])
        with pytest.raises(PublishFailed, match=r"a job for queue q .* within 1 s: not connected"):
            await driver.queues.push("q", "1", b"{}", 0.0)


async def test_volatile_messages_are_refused_at_once_and_never_arrive_late(
    own_settings, own_nats_server
):
    inbox = Inbox()
    async with opened(own_settings) as driver:
        await driver.subscribe("own.live.a", inbox)
        await kill(own_nats_server, driver)
        started = time.monotonic()
        for _ in range(50):
            with pytest.raises(PublishFailed, match="not kept for later"):
                await driver.publish("own.live.a", b"stale")
        assert time.monotonic() - started < PATIENCE_S  # of a timeout of 10 s each, 500 s
        assert driver.counters["unsent"] == 50
        await own_nats_server.start()
        await driver.publish("own.event.a", b"stored")  # waits for the connection
        await driver.publish("own.live.a", b"fresh")
        await inbox.until(2)
        assert sorted(inbox.payloads) == [b"fresh", b"stored"]


async def test_volatile_messages_that_were_not_written_yet_are_dropped_with_the_connection(
    own_settings, own_nats_server
):
    async with opened(own_settings) as driver:
        client = driver._connection.client
        client._flusher_task.cancel()  # nothing is written any more
        await asyncio.wait([client._flusher_task])
        for headers in ({}, {"A": "b"}):
            command = b"HPUB" if headers else b"PUB"
            client._pending.append(command + b" own.live.a 5\r\nstale\r\n")
        client._pending.append(b"PUB own.control.a 4\r\nkept\r\n")
        await kill(own_nats_server, driver)
        assert driver.counters["unsent"] == 2
        assert client._pending == [b"PUB own.control.a 4\r\nkept\r\n"]


async def test_purge_while_another_holds_the_lease_says_so(impatient):
    async with opened(impatient) as driver:
        await driver.publish("own.event.a", b"1")
        assert await driver.state.claim("purging", b"another process", ttl_s=30)
        with pytest.raises(ConnectionFailed, match="another purge has held the lease for 1 s"):
            await driver.purge("own.live.a")
        await driver.state.delete("purging")
        assert await driver.purge("own.live.a") == 1


async def test_return_of_a_lost_connection_is_logged_with_its_duration(
    own_settings, own_nats_server, caplog
):
    async with opened(own_settings) as driver:
        for _ in range(2):
            caplog.clear()
            await kill(own_nats_server, driver)
            await own_nats_server.start()
            await until(lambda: driver.is_connected)
            lines = [record.getMessage() for record in caplog.records]
            address = driver._connection.address
            assert f"the connection to NATS at {address} is lost" in lines
            [back] = [line for line in lines if "is back" in line]
            assert re.fullmatch(
                rf"the connection to NATS at {address} is back, after \d+\.\d s", back
            )


async def test_close_after_a_lost_connection_ends_cleanly_on_every_python(
    own_settings, own_nats_server, monkeypatch, caplog
):
    """On Python 3.12.1 and 3.13.0, a lost connection raises TypeError: CPython gh-136234."""
    transport = asyncio.selector_events._SelectorSocketTransport
    write = transport.writelines

    def writelines(self, payload):
        if self._conn_lost:
            raise TypeError("'NoneType' object is not callable")
        write(self, payload)

    monkeypatch.setattr(transport, "writelines", writelines)
    async with opened(own_settings) as driver:
        reader = driver.queues.reader("q")
        await reader.fetch(1)
        service = await driver.announce("x", "1", version="1.0.0", description="", metadata={})
        connection = driver._connection
        connection.client._transport._io_writer.transport.abort()
        await asyncio.sleep(0)  # it is lost, and nats-py does not know yet
        assert connection.client.is_connected
        publishing = asyncio.create_task(driver.publish("own.control.a", b"x" * 300_000))
        await asyncio.wait([publishing])
        assert not isinstance(publishing.exception(), TypeError)
        await service.aclose()
        await reader.aclose()
    assert "closing a NATS client" not in caplog.text
    assert "not callable" not in caplog.text
