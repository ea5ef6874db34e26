"""What the memory driver cannot show: a bucket that is lost, replaced, or somebody else's."""

import asyncio
import json
import os
import signal

import nats
import pytest
import pytest_asyncio

from eventbus.config import Settings
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.nats.state import bucket_stream
from eventbus.errors import ConnectionFailed, EncodingError, InvalidPattern, StreamMismatch
from eventbus.testing.contracts.driver import Changes


@pytest_asyncio.fixture
async def driver(settings):
    driver = NatsDriver(settings)
    await driver.open()
    yield driver
    await driver.aclose()


@pytest_asyncio.fixture
async def plain(nats_server):
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def test_server_that_lost_its_memory_gets_a_bucket_again_and_watchers_continue(
    own_nats_server,
):
    settings = Settings(nats_url=own_nats_server.url, namespace="lost", history_bytes=2**22)
    driver, changes = NatsDriver(settings), Changes()
    await driver.open()
    try:
        state = driver.state
        await state.watch("a.>", changes)
        await state.put("a.1", b"before")
        assert state.losses == 0
        await own_nats_server.stop()
        writing = asyncio.create_task(state.put("a.2", b"during"))
        await own_nats_server.start()
        await writing
        assert state.losses >= 1
        assert await state.entries("a.>") == {"a.2": b"during"}
        await state.put("a.3", b"after")
        await changes.until("a.3", b"after")
    finally:
        await driver.aclose()


async def test_bucket_recreated_under_a_live_connection_counts_as_a_loss(driver, plain):
    state = driver.state
    await state.put("a", b"1")
    await state.put("b", b"1")
    await plain.jsm().delete_stream(state.name)
    await state.put("c", b"1")
    assert state.losses >= 1
    assert await state.entries(">") == {"c": b"1"}


async def test_entries_are_those_of_a_nats_kv_bucket(driver, plain, namespace):
    await driver.state.put("node.7", b"here", ttl_s=30)
    bucket = await plain.jetstream().key_value(f"{namespace.upper()}_STATE")
    assert (await bucket.get("node.7")).value == b"here"
    changes = Changes()
    await driver.state.watch("node.*", changes)
    await bucket.put("node.8", b"by another program")
    await bucket.delete("node.7")
    await changes.until("node.8", b"by another program")
    await changes.until("node.7", None)
    assert await driver.state.entries("node.*") == {"node.8": b"by another program"}


async def test_foreign_publish_on_a_subject_of_changes_is_not_a_change(driver, plain, namespace):
    changes = Changes()
    await driver.state.watch(">", changes)
    await plain.publish(f"{namespace}.state.forged", b"x")
    await plain.flush()
    await driver.state.put("real", b"1")
    await changes.until("real", b"1")
    assert changes.received == [("real", b"1")]


async def test_bucket_that_cannot_work_is_refused_and_named(driver, plain, namespace):
    name = f"KV_{namespace.upper()}_STATE"
    config = {"name": name, "subjects": [f"$KV.{namespace.upper()}_STATE.>"], "storage": "memory"}
    await plain.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())
    with pytest.raises(StreamMismatch, match=f"{name} exists .* republish"):
        await driver.state.put("a", b"1")
    with pytest.raises(StreamMismatch):
        await driver.state.watch("a", Changes())


async def test_a_durable_bucket_in_memory_is_refused_and_named(driver, plain, settings):
    config = dict(bucket_stream(None, settings, "durable").config) | {"storage": "memory"}
    await plain.request(f"$JS.API.STREAM.CREATE.{config['name']}", json.dumps(config).encode())
    with pytest.raises(StreamMismatch, match=f"{config['name']} exists .* storage"):
        await driver.durable_state.put("a", b"1")


async def test_a_durable_bucket_with_fewer_copies_is_used_and_logged(plain, settings, caplog):
    config = bucket_stream(None, settings, "durable").config
    await plain.request(f"$JS.API.STREAM.CREATE.{config['name']}", json.dumps(config).encode())
    driver = NatsDriver(settings)
    await driver.open()
    driver.durable_state._stream.config["num_replicas"] = 3
    await driver.durable_state.put("a", b"1")
    assert "has 1 copies, not 3" in caplog.text
    await driver.aclose()


async def test_durable_entries_outlive_a_server_that_is_killed(own_nats_server):
    settings = Settings(nats_url=own_nats_server.url, namespace="kept", history_bytes=2**22)
    driver = NatsDriver(settings)
    await driver.open()
    try:
        await driver.durable_state.put("a.ended", b"1", ttl_s=1)
        await driver.durable_state.put("a.1", b"kept", ttl_s=600)
        await driver.state.put("a.1", b"lost", ttl_s=600)
        os.kill(own_nats_server.pid, signal.SIGKILL)
        await own_nats_server.stop()
        await asyncio.sleep(1)
        await own_nats_server.start()
        assert await driver.durable_state.entries("a.1") == {"a.1": b"kept"}
        async with asyncio.timeout(20):
            while "a.ended" in await driver.durable_state.entries(">"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await driver.state.entries("a.>") == {}
    finally:
        await driver.aclose()


@pytest.mark.parametrize("key", ["", "a..b", "a.*", "a.>", "a b", "ä", "x" * 301, "a\r\nb", "{a}"])
async def test_invalid_key_is_refused(driver, key):
    with pytest.raises(InvalidPattern):
        await driver.state.put(key, b"1")
    with pytest.raises(InvalidPattern):
        await driver.state.delete(key)


async def test_an_entry_too_large_is_refused_at_once(driver):
    with pytest.raises(EncodingError):
        await driver.state.put("a", b"x" * 70_000)


async def test_state_of_a_driver_that_is_not_open_is_an_error(settings):
    with pytest.raises(ConnectionFailed, match="not open"):
        _ = NatsDriver(settings).state


async def test_broken_connection_counts_as_a_loss_although_the_bucket_is_the_same(driver):
    await driver.state.put("a", b"1")
    assert driver.state.losses == 0
    await driver._connection.client.force_reconnect()
    async with asyncio.timeout(20):
        while not driver.state.losses:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    await driver.state.put("b", b"1")
    assert await driver.state.entries(">") == {"a": b"1", "b": b"1"}


async def test_entry_that_a_lagging_replica_does_not_have_yet_is_waited_for(driver, monkeypatch):
    """A replica that has just been started answers with a beginning of what there is."""
    state = driver.state
    for number in range(5):
        await state.put(f"a.{number}", b"%d" % number)
    await state.delete("a.0")
    await state.put("b", b"of another pattern")
    state._is_replicated = True
    get, lagging = state._get, [2, 1, 0]

    async def read(subject, start):
        batch = await get(subject, start)
        return batch[: lagging.pop(0)] if lagging else batch

    monkeypatch.setattr(state, "_get", read)
    assert await state.entries("a.>") == {f"a.{number}": b"%d" % number for number in range(1, 5)}
    assert not lagging
    assert await state.entries("none.>") == {}


async def test_replica_that_keeps_lagging_is_an_error_and_no_empty_answer(driver, monkeypatch):
    state = driver.state
    await state.put("a", b"1")
    state._is_replicated, state._timeout = True, 0.3

    async def nothing(_subject, _start):
        return []

    monkeypatch.setattr(state, "_get", nothing)
    with pytest.raises(ConnectionFailed, match="lag behind their leader"):
        await state.entries(">")
