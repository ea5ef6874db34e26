"""The outbox on PostgreSQL and SQLite: what commits is published once, in order."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time

import msgspec
import nats
import pytest
import sqlalchemy as sa
from nats.js.api import DiscardPolicy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from eventbus import EventBus
from eventbus.errors import ConfigError, EventFieldError, PublishFailed
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.integrations.sqlalchemy import DatabaseOutbox, Outbox
from eventbus.outbox import Relay
from eventbus.outbox.database import LEASE_S, engine_of
from eventbus.outbox.postgres import DROP_TRIGGER
from eventbus.outbox.rows import MAX_ERROR, error_text
from eventbus.server import NatsServer

DATABASES = [
    pytest.param("psycopg", marks=pytest.mark.postgres),
    pytest.param("asyncpg", marks=pytest.mark.postgres),
    "aiosqlite",
]
POSTGRES = DATABASES[:2]
WAIT_S = 30
SLACK_S = 10
"""For a busy machine."""


class Placed(Event, ShouldBroadcast, channel="orders.{order_id}", name="outbox.placed"):
    order_id: int
    number: int = 0
    text: str = ""


class Billed(Event, ShouldQueue, name="outbox.billed", queue="bills"):
    order_id: int


@pytest.fixture
async def bus(settings):
    async with EventBus(settings) as opened:
        yield opened


@pytest.fixture(params=DATABASES)
def kind(request):
    return request.param


@pytest.fixture
def outbox():
    return Outbox(sa.MetaData())


@pytest.fixture
async def engine(kind, new_database, outbox):
    engine = engine_of(new_database(kind))
    async with engine.begin() as connection:
        await connection.run_sync(outbox.table.metadata.create_all)
    yield engine
    await engine.dispose()


async def _numbers(bus, channel):
    page = await bus.driver.read(bus.subjects.live(channel), after=None, limit=1000)
    return [json.loads(message.payload)["data"]["number"] for message in page.messages]


@contextlib.asynccontextmanager
async def _running(relay):
    task = asyncio.create_task(relay.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(condition):
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(0.01)


async def test_events_are_published_after_the_commit_and_dropped_by_a_rollback(bus, engine, outbox):
    relay = outbox.relay(engine, bus)
    async with AsyncSession(engine) as session:
        outbox.add(session, Placed(order_id=1, number=1), Placed(order_id=1, number=2))
        await session.flush()
        assert await relay.drain() == 0 if engine.dialect.name == "postgresql" else True
        await session.commit()
        outbox.add(session, Placed(order_id=1, number=3))
        await session.flush()
        await session.rollback()
        outbox.add(session, Placed(order_id=1, number=4))
        savepoint = await session.begin_nested()
        outbox.add(session, Placed(order_id=1, number=5))
        await savepoint.rollback()
        await session.commit()
    assert await relay.drain() == 3
    assert await _numbers(bus, "orders.1") == [1, 2, 4]
    assert await relay.drain() == 0


async def test_plain_session_and_connection_of_one_transaction(bus, engine, outbox):
    def work(connection):
        with Session(bind=connection) as session:
            outbox.add(session, Placed(order_id=1, number=7))
            session.commit()

    async with engine.begin() as connection:
        await connection.run_sync(work)
    await outbox.relay(engine, bus).drain()
    assert await _numbers(bus, "orders.1") == [7]


async def test_event_that_is_invalid_adds_nothing(engine, outbox):
    async with AsyncSession(engine) as session:
        with pytest.raises(EventFieldError):
            outbox.add(session, Placed(order_id=1), Placed(order_id="no number"))
        await session.commit()
    assert (await DatabaseOutbox(engine, outbox.table).stats()).waiting == 0


async def test_queued_event_becomes_a_job_once(bus, engine, outbox):
    event = Billed(order_id=1)
    for _ in range(2):
        async with AsyncSession(engine) as session:
            outbox.add(session, event)
            await session.commit()
    await outbox.relay(engine, bus).drain()
    (stats,) = [each for each in await (await bus.queues()).stats() if each.queue == "bills"]
    assert stats.ready == 1


async def test_message_published_before_a_crash_is_not_stored_a_second_time(bus, engine, outbox):
    async with AsyncSession(engine) as session:
        outbox.add(session, event := Placed(order_id=1, number=1))
        await session.commit()
    await bus.dispatch(event)  # as a relay that died before it deleted the row
    await outbox.relay(engine, bus).drain()
    assert await _numbers(bus, "orders.1") == [1]


async def test_row_that_is_too_large_is_set_aside_and_blocks_no_other(bus, engine, outbox):
    async with AsyncSession(engine) as session:
        outbox.add(
            session,
            Placed(order_id=1, number=1),
            Placed(order_id=1, number=2, text="x" * 100_000),
            Placed(order_id=1, number=3),
        )
        await session.commit()
    store = DatabaseOutbox(engine, outbox.table)
    set_aside = []
    relay = Relay(store, bus, on_set_aside=set_aside.append)
    await relay.drain()
    assert await _numbers(bus, "orders.1") == [1, 3]
    assert set_aside == [1]
    (failure,) = await store.failures(10)
    assert (failure.channel, failure.event) == ("orders.1", "outbox.placed")
    assert "bytes" in failure.error
    stats = await store.stats()
    assert (stats.waiting, stats.set_aside) == (0, 1)
    assert await store.retry([failure.id, 99]) == 1
    assert (await store.stats()).waiting == 1
    await relay.drain()
    assert await store.forget([failure.id]) == 1
    assert await store.forget([failure.id]) == 0
    assert (await store.stats()).set_aside == 0


async def test_relay_continues_when_the_broker_is_back(engine, outbox, own_nats_server, settings):
    settings = msgspec.structs.replace(settings, nats_url=own_nats_server.url, publish_timeout=0.5)
    async with EventBus(settings) as bus:
        async with _running(outbox.relay(engine, bus)):
            await own_nats_server.stop()
            async with AsyncSession(engine) as session:
                outbox.add(session, *(Placed(order_id=1, number=n) for n in range(5)))
                await session.commit()
            store = DatabaseOutbox(engine, outbox.table)
            await asyncio.sleep(1)  # longer than a publish is tried
            stats = await store.stats()
            assert (stats.waiting, stats.set_aside) == (5, 0)
            assert stats.lag_s > 0
            await own_nats_server.start()
            await _until(lambda: _is_empty(store))
        assert await _numbers(bus, "orders.1") == [0, 1, 2, 3, 4]


async def _is_empty(store):
    return (await store.stats()).waiting == 0


@pytest.mark.parametrize("kind", POSTGRES, indirect=True)
async def test_order_within_a_channel_is_that_of_the_commits(bus, engine, outbox):
    async with AsyncSession(engine) as first, AsyncSession(engine) as second:
        outbox.add(first, Placed(order_id=1, number=1))
        await first.flush()
        outbox.add(second, Placed(order_id=1, number=2))
        await second.commit()
        await first.commit()
    await outbox.relay(engine, bus).drain()
    assert await _numbers(bus, "orders.1") == [2, 1]


@pytest.mark.parametrize("kind", POSTGRES, indirect=True)
async def test_commit_wakes_the_relay_within_50_ms(bus, engine, outbox):
    store = DatabaseOutbox(engine, outbox.table)
    relay = outbox.relay(engine, bus)
    waits = []
    async with _running(relay):
        await _until(lambda: _active(relay))
        for number in range(20):
            async with AsyncSession(engine) as session:
                outbox.add(session, Placed(order_id=1, number=number))
                await session.commit()
            begun = time.monotonic()
            await _until(lambda: _is_empty(store))
            waits.append(time.monotonic() - begun)
    assert min(waits) < 0.05, waits  # without a notification, it looks once a second


async def _one_is_active(*relays):
    return sum(relay.is_active for relay in relays) == 1


async def _active(*relays):
    return any(relay.is_active for relay in relays)


@pytest.mark.parametrize("kind", POSTGRES, indirect=True)
async def test_one_relay_is_active_and_another_takes_over_when_it_dies(bus, engine, outbox):
    first, second = outbox.relay(engine, bus), outbox.relay(engine, bus)
    async with _running(first) as task:
        await _until(lambda: _active(first))
        async with _running(second):
            await asyncio.sleep(0.5)
            assert not second.is_active
            task.cancel()
            async with asyncio.timeout(5 + SLACK_S):
                await _until(lambda: _active(second))
            async with AsyncSession(engine) as session:
                outbox.add(session, Placed(order_id=1, number=1))
                await session.commit()
            store = DatabaseOutbox(engine, outbox.table)
            await _until(lambda: _is_empty(store))
    assert await _numbers(bus, "orders.1") == [1]


@pytest.mark.parametrize("kind", POSTGRES, indirect=True)
async def test_relay_survives_a_lost_connection_to_the_database(bus, engine, outbox):
    relay = outbox.relay(engine, bus)
    async with _running(relay):
        await _until(lambda: _active(relay))
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )
        async with AsyncSession(engine) as session:
            outbox.add(session, Placed(order_id=1, number=1))
            await session.commit()
        store = DatabaseOutbox(engine, outbox.table)
        await _until(lambda: _is_empty(store))
    assert await _numbers(bus, "orders.1") == [1]


@pytest.mark.parametrize("kind", POSTGRES[:1], indirect=True)
async def test_table_without_its_trigger_is_reported(bus, engine, outbox):
    async with engine.begin() as connection:
        for statement in DROP_TRIGGER:
            await connection.execute(sa.text(statement))
    with pytest.raises(ConfigError, match="CREATE_TRIGGER"):
        await outbox.relay(engine, bus).drain()


RELAY = """
import asyncio, os
import sqlalchemy as sa
from eventbus import EventBus
from eventbus.integrations.sqlalchemy import Outbox, engine_of

async def main():
    async with EventBus.from_env() as bus:
        relay = Outbox(sa.MetaData()).relay(engine_of(os.environ["DATABASE_URL"]), bus)
        running = asyncio.create_task(relay.run())
        while not relay.is_active:
            await asyncio.sleep(0.01)
        print("active", flush=True)
        await running

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", POSTGRES[:1], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_relay_whose_process_is_killed_or_stopped_is_replaced_within_5_seconds(
    how, bus, engine, outbox, settings
):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RELAY, stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "DATABASE_URL": engine.url.render_as_string(hide_password=False),
            "NATS_URL": settings.nats_url,
            "BROADCAST_CHANNELS_PREFIX": settings.namespace,
            "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        },
    )  # fmt: skip
    try:
        async with asyncio.timeout(WAIT_S):
            assert await process.stdout.readline() == b"active\n"
        relay = outbox.relay(engine, bus)
        async with _running(relay):
            await asyncio.sleep(LEASE_S + 2)
            assert not relay.is_active  # the other one is idle, but runs
            process.send_signal(how)
            begun = time.monotonic()
            await _until(lambda: _active(relay))
            assert time.monotonic() - begun < 5 + SLACK_S
            async with AsyncSession(engine) as session:
                outbox.add(session, Placed(order_id=1, number=1))
                await session.commit()
            if how is signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
            await _until(lambda: _is_empty(DatabaseOutbox(engine, outbox.table)))
        assert await _numbers(bus, "orders.1") == [1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", POSTGRES[:1], indirect=True)
async def test_relay_that_waits_for_the_broker_stays_active(
    engine, outbox, own_nats_server, settings
):
    settings = msgspec.structs.replace(settings, nats_url=own_nats_server.url, publish_timeout=60)
    async with EventBus(settings) as bus:
        first, second = outbox.relay(engine, bus), outbox.relay(engine, bus)
        async with _running(first):
            await _until(lambda: _active(first))
            async with _running(second):
                await own_nats_server.stop()
                async with AsyncSession(engine) as session:
                    outbox.add(session, Placed(order_id=1, number=1))
                    await session.commit()
                await asyncio.sleep(LEASE_S + 2)
                assert (first.is_active, second.is_active) == (True, False)
                await own_nats_server.start()
                await _until(lambda: _is_empty(DatabaseOutbox(engine, outbox.table)))


def test_error_of_a_row_is_a_text_that_every_database_takes():
    assert error_text(ValueError("a\0b\ud800" + "x" * 5000)).startswith("a\ufffdb\ufffdx")
    assert len(error_text(ValueError("x" * 5000))) == MAX_ERROR
    assert error_text(TimeoutError()) == "TimeoutError"


async def test_rows_that_nothing_can_read_are_set_aside_and_block_no_other(bus, engine, outbox):
    store = DatabaseOutbox(engine, outbox.table)
    bad = {"message_id": "x", "kind": "message", "channel": "orders.1", "event": "e",
           "payload": b"{}", "headers": b"{}", "volatile": False}  # fmt: skip
    message = b'{"channel":"a b","event":"e","data":1,"timestamp":"2026-01-01T00:00:00Z","id":"1"}'
    rows = [
        bad | {"payload": b"\x00\xff"},
        bad | {"kind": "carrier-pigeon"},
        bad | {"payload": message},
        bad | {"payload": message.replace(b"a b", b"a"), "headers": b'{"a\\nb": "\\u0000"}'},
        bad | {"kind": "job"},
    ]
    async with AsyncSession(engine) as session:
        for row in rows:
            await session.execute(outbox.table.insert().values(**row))
        outbox.add(session, Placed(order_id=1, number=1))
        await session.commit()
    await outbox.relay(engine, bus).drain()
    assert await _numbers(bus, "orders.1") == [1]
    stats = await store.stats()
    assert (stats.waiting, stats.set_aside) == (0, len(rows))
    assert any("'carrier-pigeon'" in each.error for each in await store.failures(10))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:s3cr3t-pass@localhost/app", "allowed: postgresql, sqlite"),
        ("not a url s3cr3t-pass", "not a database URL"),
        ("", "not a database URL"),
    ],
)
def test_database_url_that_is_not_one_is_refused_and_not_shown(url, message):
    with pytest.raises(ConfigError, match=message) as refused:
        engine_of(url)
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("kind", POSTGRES[:1], indirect=True)
async def test_outboxes_of_two_schemas_have_relays_of_their_own(bus, engine):
    outboxes = [Outbox(sa.MetaData(schema=name)) for name in ("shop", 'Odd "name')]
    async with engine.begin() as connection:
        for outbox in outboxes:
            await connection.execute(sa.schema.CreateSchema(outbox.table.schema))
            await connection.run_sync(outbox.table.metadata.create_all)
    relays = [outbox.relay(engine, bus) for outbox in outboxes]
    async with _running(relays[0]), _running(relays[1]):
        for number, outbox in enumerate(outboxes):
            async with AsyncSession(engine) as session:
                outbox.add(session, Placed(order_id=number, number=number))
                await session.commit()
            await _until(lambda outbox=outbox: _is_empty(DatabaseOutbox(engine, outbox.table)))
    assert [await _numbers(bus, f"orders.{number}") for number in range(2)] == [[0], [1]]


async def test_acknowledged_row_is_not_published_again_when_it_could_not_be_deleted(
    settings, engine, outbox
):
    async with AsyncSession(engine) as session:
        outbox.add(session, Placed(order_id=1, number=1))
        await session.commit()
    protect = ["CREATE RULE keep AS ON DELETE TO eventbus_outbox DO INSTEAD SELECT 1/0"]
    allow = ["DROP RULE keep ON eventbus_outbox"]
    if engine.dialect.name == "sqlite":
        deny = "BEGIN SELECT RAISE(ABORT, 'no'); END"
        protect = [f"CREATE TRIGGER keep BEFORE DELETE ON eventbus_outbox {deny}"]
        allow = ["DROP TRIGGER keep"]
    await _execute(engine, protect)
    async with EventBus(settings) as bus:
        relay = outbox.relay(engine, bus)
        with pytest.raises(sa.exc.SQLAlchemyError):
            await relay.drain()
        assert await _numbers(bus, "orders.1") == [1]
    await _execute(engine, allow)
    await relay.drain()  # publishing would raise, for the bus is closed
    assert (await DatabaseOutbox(engine, outbox.table).stats()).waiting == 0


async def test_channel_whose_messages_are_refused_for_now_holds_up_no_other(
    settings, engine, outbox
):
    async with AsyncSession(engine) as session:
        outbox.add(session, *(Billed(order_id=n) for n in range(5)), Placed(order_id=1, number=1))
        await session.commit()
    async with EventBus(msgspec.structs.replace(settings, queue_bytes=1)) as bus:
        store = DatabaseOutbox(engine, outbox.table)
        async with _running(Relay(store, bus, batch=3)):
            await _until(lambda: _waits(store, 4))
        assert await _numbers(bus, "orders.1") == [1]
        assert (await store.stats()).set_aside == 0


async def test_rows_wait_while_the_stream_is_full_and_follow_in_order(
    engine, outbox, own_nats_server, settings
):
    settings = msgspec.structs.replace(settings, nats_url=own_nats_server.url)
    async with EventBus(settings) as bus:
        store = DatabaseOutbox(engine, outbox.table)
        await _limit_stream(bus, discard=DiscardPolicy.NEW, max_msgs=3)
        async with AsyncSession(engine) as session:
            outbox.add(session, *(Placed(order_id=n % 2, number=n) for n in range(10)))
            await session.commit()
        relay = outbox.relay(engine, bus)
        with pytest.raises(PublishFailed, match="maximum messages exceeded"):
            await relay.drain()
        assert (await store.stats()).set_aside == 0
        async with _running(relay):
            await _limit_stream(bus, discard=DiscardPolicy.OLD, max_msgs=-1)
            await _until(lambda: _is_empty(store))
        assert await _numbers(bus, "orders.0") == [0, 2, 4, 6, 8]
        assert await _numbers(bus, "orders.1") == [1, 3, 5, 7, 9]


async def _limit_stream(bus, **limits):
    client = await nats.connect(bus.settings.nats_url)
    stream = client.jetstream()
    (info,) = await stream.streams_info()
    await stream.update_stream(info.config.evolve(**limits))
    await client.close()


async def test_row_that_nats_denies_is_set_aside_and_published_when_it_is_allowed(
    engine, outbox, settings, tmp_path
):
    password = "a-password-for-relays"

    def users(*denied):
        relay = {"publish": {"deny": list(denied)}, "subscribe": {"allow": [">"]}}
        return {"authorization": {"users": [
            {"user": "relay", "password": password, "permissions": relay}]}}  # fmt: skip

    config = users(f"{settings.namespace}.event.orders.1")
    async with NatsServer(tmp_path / "nats", config=config) as server:
        url = server.url.replace("nats://", f"nats://relay:{password}@")
        async with EventBus(msgspec.structs.replace(settings, nats_url=url)) as bus:
            store = DatabaseOutbox(engine, outbox.table)
            async with AsyncSession(engine) as session:
                outbox.add(session, *(Placed(order_id=n % 2, number=n) for n in range(4)))
                await session.commit()
            async with _running(outbox.relay(engine, bus)):
                await _until(lambda: _is_empty(store))
                assert await _numbers(bus, "orders.0") == [0, 2]
                failures = await store.failures(10)
                assert [each.channel for each in failures] == ["orders.1", "orders.1"]
                assert all("permission" in each.error.lower() for each in failures)
                server.reload(users("nothing"))
                await _until(lambda: _is_retried(store, bus))
            assert await _numbers(bus, "orders.1") == [1, 3]


async def _is_retried(store, bus):
    """Retry the rows until nats-server has read its configuration."""
    await store.retry([each.id for each in await store.failures(10)])
    await _until(lambda: _is_empty(store))
    return (await store.stats()).set_aside == 0


@pytest.mark.parametrize("kind", POSTGRES, indirect=True)
async def test_relays_and_their_waking_survive_restarts_of_the_database(
    bus, engine, outbox, postgres
):
    first, second = outbox.relay(engine, bus), outbox.relay(engine, bus)
    async with _running(first), _running(second):
        for number, mode in enumerate(("fast", "immediate")):
            await _until(lambda: _active(first, second))
            await asyncio.to_thread(postgres.stop, mode)
            await asyncio.to_thread(postgres.start)
            # The pool of the relays' engine does not know that its connections have ended.
            async with _new_engine(engine) as fresh:
                async with AsyncSession(fresh) as session:
                    outbox.add(session, Placed(order_id=1, number=number))
                    await session.commit()
                store = DatabaseOutbox(fresh, outbox.table)
                await _until(lambda store=store: _is_empty(store))
        await _until(lambda: _one_is_active(first, second))
    assert await _numbers(bus, "orders.1") == [0, 1]


@contextlib.asynccontextmanager
async def _new_engine(engine):
    fresh = engine_of(engine.url.render_as_string(hide_password=False))
    try:
        yield fresh
    finally:
        await fresh.dispose()


async def _waits(store, rows):
    return (await store.stats()).waiting <= rows


async def _execute(engine, statements):
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))
