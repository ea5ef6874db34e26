"""A NATS connection and its consumers keep working, whatever the other side sends."""

import asyncio
import contextlib
import os
import signal

import nats
import pytest

from eventbus.config import Settings
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.nats.errors import refused_subject
from eventbus.server import NatsServer
from eventbus.tasks import fault_count
from eventbus.testing.contracts.driver import Inbox

BYTES = 4 * 1024**2
GREETINGS = [
    b"INFO []\r\n",
    b"INFO null\r\n",
    b"INFO {\r\n",
    b'INFO {"max_payload": "much", "connect_urls": 7}\r\n',
    b"INFO " + b"x" * 1_000_000,
    b"\xff\xfe\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"-ERR 'permissions violation for publish to \"x'\r\n",
    b"",
]


@contextlib.asynccontextmanager
async def stranger(port, greeting):
    """Something else than a NATS server on a port; gives an event that is set at each greeting."""
    greeted = asyncio.Event()

    async def greet(_reader, writer):
        with contextlib.suppress(OSError):
            writer.write(greeting)
            await writer.drain()
            greeted.set()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", port)
    try:
        yield greeted
    finally:
        server.close()


@pytest.mark.parametrize("greeting", GREETINGS, ids=range(len(GREETINGS)))
async def test_driver_reconnects_although_something_else_took_the_servers_place_for_a_while(
    own_nats_server, greeting
):
    driver, inbox = (
        NatsDriver(Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=BYTES)),
        Inbox(),
    )
    await driver.open()
    try:
        await driver.subscribe("own.live.a", inbox)
        await own_nats_server.stop()
        async with stranger(own_nats_server.port, greeting) as greeted, asyncio.timeout(20):
            for _ in range(2):
                await greeted.wait()
                greeted.clear()
        await own_nats_server.start()
        async with asyncio.timeout(20):
            await driver.publish("own.event.a", b'{"n":1}')
            [delivery] = await inbox.until(1)
        assert delivery.payload == b'{"n":1}'
    finally:
        await driver.aclose()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('nats: Permissions Violation for Publish to "a.b"', ("publish", "a.b")),
        ('nats: Permissions Violation for Publish to "a.b', ("publish", "a.b")),
        ("nats: Permissions Violation for Publish to a.b", ("publish", "")),
        ("nats: Permissions Violation for ", ("", "")),
        ("", ("", "")),
    ],
)
def test_words_of_a_refusal_may_be_any(text, found):
    assert refused_subject(nats.errors.Error(text)) == found


async def test_watchdog_that_fails_continues(own_nats_server, monkeypatch, caplog):
    """Its own fault is made; what it is there for, a client that is closed for good, is real."""
    driver = NatsDriver(
        Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=BYTES)
    )
    await driver.open()
    try:
        connection = driver._connection
        rebuild, failures = connection._rebuild, []

        async def fail_once():
            if not failures:
                failures.append(True)
                raise RuntimeError("unforeseen")
            await rebuild()

        monkeypatch.setattr(connection, "_rebuild", fail_once)
        before = fault_count()
        await connection.client.close()
        async with asyncio.timeout(20):
            assert await connection.wait_connected(20)
        assert fault_count() == before + 1
        await driver.publish("own.event.a", b"{}")
    finally:
        await driver.aclose()


async def test_foreign_messages_on_a_consumers_inbox_are_ignored(settings, nats_server, namespace):
    driver = NatsDriver(settings)
    await driver.open()
    raw = await nats.connect(nats_server.url)
    try:
        consumer = await driver.consume("group", f"{namespace}.live.a", ConsumerSettings(30.0))
        taking = asyncio.create_task(consumer.take(1))
        async with asyncio.timeout(30):
            while not consumer._pull.is_open:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        errors = driver.counters["errors"]
        for payload in (b"", b"{", b"\xff", b'{"status":100}'):
            for headers in (None, {"Status": "x"}, {"Nats-Msg-Id": "1"}):
                await raw.publish(f"{consumer._pull._inbox}.1", payload, headers=headers)
                await raw.publish(f"{consumer._pull._inbox}.other", payload, headers=headers)
        await raw.flush()
        await driver.publish(f"{namespace}.event.a", b'{"n":1}')
        async with asyncio.timeout(20):
            (held,) = await taking
        assert held.delivery.payload == b'{"n":1}'
        await held.ack()
        assert driver.counters["errors"] == errors
    finally:
        await raw.close()
        await driver.aclose()


async def test_foreign_messages_on_a_queues_inbox_and_foreign_jobs_end_no_reader(
    settings, nats_server, namespace
):
    driver = NatsDriver(settings)
    await driver.open()
    raw = await nats.connect(nats_server.url)
    try:
        reader = driver.queues.reader("jobs")
        assert await reader.fetch(1) == []
        subject = f"{namespace}.queue.jobs"
        jetstream = raw.jetstream()
        for attempts in ("²", "-1", "9" * 5000, "one", ""):
            await jetstream.publish(subject, b"\xff", headers={"Eb-Attempts": attempts})
        taken = []
        async with asyncio.timeout(20):
            while len(taken) < 5:
                taken += await reader.fetch(5 - len(taken))
        assert [job.attempt for job in taken] == [1] * 5
        for job in taken:
            await job.done()
        waiting = asyncio.create_task(reader.wait())
        async with asyncio.timeout(30):
            while not reader._polls.pull.is_open:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        for number in range(4):
            await raw.publish(f"{reader._polls.pull._inbox}.{number}", b"\xff")
        await raw.flush()
        async with asyncio.timeout(20):
            await waiting
        await driver.queues.push("jobs", "id", b"job", 0.0)
        async with asyncio.timeout(20):
            while (job := await reader.wait()) is None:
                pass
        assert job.payload == b"job"
        await job.done()
    finally:
        await raw.close()
        await driver.aclose()


async def test_embedded_server_that_is_killed_is_started_again_over_and_over(tmp_path):
    driver = NatsDriver(
        Settings(
            nats_data=str(tmp_path / "data"), nats_port=0, namespace="own", history_bytes=BYTES
        )
    )
    await driver.open()
    try:
        for n in range(3):
            os.kill(driver.server.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                await driver.publish("own.event.a", b'{"n":%d}' % n)
        assert isinstance(driver.server, NatsServer)
    finally:
        await driver.aclose()
    assert not driver.server.is_running


async def test_driver_closes_whole_although_its_closer_is_cancelled(own_nats_server):
    driver = NatsDriver(
        Settings(nats_url=own_nats_server.url, namespace="own", history_bytes=BYTES)
    )
    await driver.open()
    client = driver._connection.client
    closing = asyncio.create_task(driver.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert client.is_closed
    await driver.aclose()
