"""The pull protocol on a real server: messages, and how requests end."""

import asyncio
from types import SimpleNamespace

import nats
import pytest

from eventbus.drivers.nats import pull as pulls
from eventbus.drivers.nats.auth import Servers, make_login
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.pull import SILENT, Pull, is_normal_end

PATIENCE_S = 25.0


@pytest.fixture
async def raw(settings):
    client = await nats.connect(settings.nats_url)
    yield client
    await client.close()


@pytest.fixture
async def stream(raw, namespace):
    """A stream with one consumer, which has no message yet."""
    api = raw.jetstream()
    await api.add_stream(name=namespace, subjects=[f"{namespace}.>"], max_bytes=1024**2)
    await api.add_consumer(namespace, durable_name="c", ack_policy="explicit")

    async def publish(*payloads):
        for payload in payloads:
            await api.publish(f"{namespace}.x", payload)

    yield SimpleNamespace(name=namespace, api=api, publish=publish)
    await api.delete_stream(namespace)


@pytest.fixture
async def make_pull(settings):
    connection = NatsConnection(
        Servers.of(settings.nats_url),
        make_login(settings),
        on_lost=lambda: None,
        on_reconnected=lambda: None,
    )
    await connection.open()
    made = []

    def make(stream, consumer="c"):
        received = []
        pull = Pull(connection, stream, consumer, received.append)
        pull.received = received
        made.append(pull)
        return pull

    yield make
    for pull in made:
        await pull.aclose()
    await connection.aclose()


async def ended(pull):
    async with asyncio.timeout(PATIENCE_S):
        while pull.is_open:
            await pull.wait()
    return pull.status


async def received(pull, count):
    async with asyncio.timeout(PATIENCE_S):
        while len(pull.received) < count:
            await pull.wait()
    return [message.data for message in pull.received]


async def test_full_batch_ends_a_request(stream, make_pull):
    await stream.publish(b"1", b"2", b"3", b"4")
    pull = make_pull(stream.name)
    await pull.request(3)
    assert await ended(pull) == ""
    assert [message.data for message in pull.received] == [b"1", b"2", b"3"]
    await pull.request(3)
    assert is_normal_end(await ended(pull))
    assert [message.data for message in pull.received] == [b"1", b"2", b"3", b"4"]


async def test_request_without_messages_ends_at_once_as_expected(stream, make_pull):
    pull = make_pull(stream.name)
    await pull.request(3)
    assert await ended(pull) == "404"
    assert is_normal_end("404")
    assert pull.received == []


async def test_request_waits_for_messages_and_is_kept_alive_by_heartbeats(stream, make_pull):
    pull = make_pull(stream.name)
    await pull.request(2, expires_s=PATIENCE_S, heartbeat_s=1.0)
    for _ in range(3):
        heard_at = pull._heard_at
        async with asyncio.timeout(PATIENCE_S):
            while pull._heard_at == heard_at:  # noqa: ASYNC110 - a heartbeat is no event
                await asyncio.sleep(0.01)
    assert pull.is_open
    await stream.publish(b"1")
    assert await received(pull, 1) == [b"1"]
    assert pull.is_open
    await stream.publish(b"2")
    assert await ended(pull) == ""
    assert await received(pull, 2) == [b"1", b"2"]


async def test_request_expires_as_expected(stream, make_pull):
    pull = make_pull(stream.name)
    await pull.request(2, expires_s=0.3, heartbeat_s=0.1)
    assert await ended(pull) == "408"
    assert is_normal_end("408")


async def test_late_status_of_an_earlier_request_does_not_end_the_present_one(
    raw, stream, make_pull
):
    pull = make_pull(stream.name)
    statuses = await raw.subscribe(f"{pull._inbox}.1")
    await raw.flush()
    await pull.request(2, expires_s=0.5, heartbeat_s=0.2)
    await pull.request(2, expires_s=PATIENCE_S, heartbeat_s=1.0)
    while True:
        message = await statuses.next_msg(PATIENCE_S)
        if message.headers["Status"] != "100":
            break
    await pull._client.flush()  # it has received that status, too
    assert pull.is_open
    await stream.publish(b"1", b"2")
    assert await received(pull, 2) == [b"1", b"2"]


async def test_deleted_consumer_ends_a_request_as_a_fault(stream, make_pull):
    pull = make_pull(stream.name)
    await pull.request(2, expires_s=PATIENCE_S, heartbeat_s=1.0)
    await pull._client.flush()
    await stream.api.delete_consumer(stream.name, "c")
    status = await ended(pull)
    assert status == "409"
    assert not is_normal_end(status)


async def test_unknown_consumer_ends_a_request_as_a_fault(stream, make_pull):
    pull = make_pull(stream.name, "unknown")
    await pull.request(2, expires_s=PATIENCE_S, heartbeat_s=1.0)
    status = await ended(pull)
    assert status == "503"  # nobody answers on its subject
    assert not is_normal_end(status)


async def test_request_without_any_answer_ends_as_silent(raw, stream, make_pull, monkeypatch):
    monkeypatch.setattr(pulls, "_NO_WAIT_SILENCE_S", 0.2)
    asked = await raw.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{stream.name}.deaf")
    await raw.flush()
    pull = make_pull(stream.name, "deaf")
    await pull.request(1)
    assert await ended(pull) == SILENT
    assert not is_normal_end(SILENT)
    await asked.next_msg(PATIENCE_S)


async def test_nothing_arrives_after_the_close(stream, make_pull):
    pull = make_pull(stream.name)
    await pull.request(5, expires_s=PATIENCE_S, heartbeat_s=1.0)
    await stream.publish(b"1")
    assert await received(pull, 1) == [b"1"]
    await pull.aclose()
    await pull.aclose()
    assert not pull.is_open
    await stream.publish(b"2")
    await pull._client.flush()
    assert [message.data for message in pull.received] == [b"1"]
