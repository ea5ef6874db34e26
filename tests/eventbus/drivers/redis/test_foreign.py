"""What others write where only eventbus writes harms nobody, and is counted."""

import asyncio
import secrets

import pytest
from redis.asyncio import Redis

from eventbus.channels import Pattern
from eventbus.drivers.redis.wire import STORED_PREFIX
from eventbus.testing.contracts.driver import Inbox


@pytest.fixture
async def raw(redis_server):
    async with Redis(port=redis_server.port) as client:
        yield client


def key(subjects, part, channel="room"):
    return f"{{{subjects.live(channel)}}}:{part}".encode()


async def until(true):
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the state of a connection has no event
            await asyncio.sleep(0.01)


async def kill_pubsub(raw, driver):
    """Cut one driver's connection for messages as CLIENT KILL does."""
    [node] = driver._nodes.all
    name = node.messages._connection._writer.get_extra_info("sockname")
    await raw.execute_command("CLIENT", "KILL", "ADDR", f"127.0.0.1:{name[1]}")
    await until(lambda: driver.counters["losses"] == 1)


ENTRIES = {
    "unknown fields": ("*", {"x": "y"}),
    "no body": ("*", {"p": "0"}),
    "previous is no number": ("*", {"b": "0\nx", "p": "x"}),
    "body is none": ("*", {"b": b"\xff\x00", "p": "0"}),
    "headers are none": ("*", {"b": b"3\n[1]x", "p": "0"}),
    "fields more than ours": ("*", {"b": "0\nx", "p": "0", "q": "1"}),
    "huge": ("*", {"b": b"x" * 5_000_000}),
    "the highest id": ("18446744073709551615-18446744073709551615", {"b": "0\nx", "p": "0"}),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
async def test_foreign_entry_ends_neither_reading_nor_publishing_nor_reconnecting(
    make_redis, raw, subjects, entry, caplog
):
    driver, publisher = await make_redis(), await make_redis()
    inbox, every, other = Inbox(), Inbox(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    await driver.subscribe(subjects.live_filter(Pattern("*")), every)
    await driver.subscribe(subjects.live("other"), other)
    first = await publisher.publish(subjects.event("room"), b"1")
    await every.until(1)
    await raw.xadd(key(subjects, "s"), entry[1], id=entry[0])
    await kill_pubsub(raw, driver)
    second = await publisher.publish(subjects.event("room"), b"2")
    await publisher.publish(subjects.event("other"), b"3")
    await inbox.until(2)
    await other.until(1)
    await every.until_payload(lambda payloads: b"2" in payloads)
    await until(lambda: driver.is_connected)
    third = await publisher.publish(subjects.event("room"), b"4")
    await inbox.until(3)
    positions = [first.position, second.position, third.position]
    assert [d.position for d in inbox.deliveries] == positions
    page = await driver.read(subjects.live("room"), after=first.position.offset - 1, limit=9)
    assert [d.position for d in page.messages] == positions
    assert page.complete
    assert driver.counters["gaps"] == 0
    assert publisher.counters["foreign"] == 1
    assert "foreign" in caplog.text
    assert await raw.exists(key(subjects, "sx"))
    assert await raw.ttl(key(subjects, "sx")) > 0


async def test_foreign_entry_below_the_last_offset_is_skipped_and_a_page_is_full_anyway(
    make_redis, raw, subjects
):
    driver = await make_redis()
    stored = [await driver.publish(subjects.event("room"), b"x") for _ in range(10)]
    name, entries = key(subjects, "s"), await raw.xrange(key(subjects, "s"))
    await raw.delete(name)
    for number, (entry_id, fields) in enumerate(entries):
        bad = {"x": "y"} if number in {3, 4} else fields
        await raw.xadd(name, bad, id=entry_id)
    page = await driver.read(subjects.live("room"), after=0, limit=5)
    kept = [result.position for n, result in enumerate(stored) if n not in {3, 4}]
    assert [d.position for d in page.messages] == kept[:5]
    page = await driver.read(subjects.live("room"), after=0, limit=100)
    assert [d.position for d in page.messages] == kept
    assert driver.counters["foreign"] == 4


@pytest.mark.parametrize("part", ["s", "m", "i", "j", "e"])
@pytest.mark.parametrize("kind", ["string", "list", "hash"])
async def test_key_of_another_type_is_put_aside(make_redis, raw, subjects, part, kind, namespace):
    driver, publisher, inbox = await make_redis(), await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    await publisher.publish(subjects.event("room"), b"1")
    await inbox.until(1)
    name = f"{{{namespace}.live.}}:e".encode() if part == "e" else key(subjects, part)
    await raw.delete(name)
    match kind:
        case "string":
            await raw.set(name, b"\xff\xfe")
        case "list":
            await raw.rpush(name, "x")
        case "hash":
            await raw.hset(name, mapping={"e": b'x"\xff', "l": "many", "t": "x", "o": "y"})
    page = await driver.read(subjects.live("room"), after=None, limit=9)
    assert len(page.messages) in {0, 1}
    await kill_pubsub(raw, driver)
    await until(lambda: driver.is_connected)
    await publisher.publish(subjects.event("room"), b"2")
    await publisher.publish(subjects.event("fresh"), b"3")
    await inbox.until_payload(lambda payloads: b"2" in payloads)
    page = await driver.read(subjects.live("room"), after=None, limit=9)
    assert page.messages[-1].payload == b"2"
    assert len(await publisher.stored(subjects.live("room"), 9)) == 1
    assert driver.is_connected


FRAMES = {
    "bytes": b"\xff\xfe",
    "another epoch": STORED_PREFIX + b"abc 7 0 1700000000000001 0\nx",
    "an epoch that is none": STORED_PREFIX + b'x","a":"b 7 0 1700000000000001 0\nx',
    "an offset out of all bounds": STORED_PREFIX
    + b"EPOCH 9999999999999999 0 1700000000000001 0\nx",
    "an offset that is not there": STORED_PREFIX
    + b"EPOCH 9000000000000000 5 1700000000000001 0\nx",
    "a time that is none": STORED_PREFIX + b"EPOCH 5 0 999999999999999999 0\nx",
    "huge": b"x" * 5_000_000,
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_foreign_message_on_a_channel_loses_and_duplicates_nothing(
    make_redis, raw, subjects, frame
):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    stored = [await driver.publish(subjects.event("room"), b"1")]
    epoch = stored[0].position.epoch.encode()
    await inbox.until(1)
    await raw.publish(subjects.live("room"), frame.replace(b"EPOCH", epoch))
    stored += [await driver.publish(subjects.event("room"), payload) for payload in (b"2", b"3")]
    await inbox.until_payload(lambda payloads: b"3" in payloads)
    positions = [d.position for d in inbox.deliveries if d.position]
    assert positions == [result.position for result in stored]
    assert driver.counters["gaps"] == 0
    assert driver.is_connected


async def test_foreign_keys_and_names_of_state_are_skipped_or_put_aside(make_redis, raw, namespace):
    driver = await make_redis()
    await driver.state.put("node.a", b"1")
    tag = f"{{{namespace}.state}}"
    for name in (b"\xff\xfe", b"", b"a..b", b"x" * 5000):
        await raw.hset(f"{tag}:v", name, b"\x00")
        await raw.zadd(f"{tag}:e", {name: 1})
    changes = asyncio.Queue()
    await driver.state.watch(">", lambda key, value: changes.put_nowait((key, value)))
    assert await driver.state.entries(">") == {"node.a": b"1"}
    await driver.state.put("node.b", b"2", ttl_s=1)
    async with asyncio.timeout(20):
        while await changes.get() != ("node.b", None):
            pass
    assert driver.counters["foreign"] > 0
    for part in "veg":
        await raw.delete(f"{tag}:{part}")
        await raw.rpush(f"{tag}:{part}", "x")
        await driver.state.put("node.c", b"3")
        assert (await driver.state.entries(">"))["node.c"] == b"3"


async def test_keeper_survives_unexpected_exceptions(make_redis, raw, subjects, caplog):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    settle, failures = driver._listeners.settle, [RuntimeError("odd"), asyncio.CancelledError()]

    async def failing():
        if failures:
            raise failures.pop(0)
        return await settle()

    driver._listeners.settle = failing
    await kill_pubsub(raw, driver)
    await until(lambda: not failures and driver.is_connected)
    await driver.publish(subjects.event("room"), b"x")
    await inbox.until(1)
    assert "RuntimeError" in caplog.text


async def test_connection_whose_reader_fails_is_replaced(make_redis, subjects, caplog):
    driver, inbox = await make_redis(), Inbox()
    await driver.subscribe(subjects.live("room"), inbox)
    [node] = driver._nodes.all
    receive = node.messages._on_message

    def failing(*args):
        node.messages._on_message = receive
        raise RuntimeError(secrets.token_hex(4))

    node.messages._on_message = failing
    await driver.publish(subjects.event("room"), b"1")
    await driver.publish(subjects.event("room"), b"2")
    await inbox.until(2)
    assert inbox.payloads == [b"1", b"2"]
    await until(lambda: driver.is_connected)
    assert driver.counters["losses"] == 1
    assert "RuntimeError" in caplog.text
