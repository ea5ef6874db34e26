"""Queued events: defined, stored, held for a transaction, delayed, and kept when they failed."""

import asyncio
import datetime
from collections.abc import AsyncIterator

import msgspec
import nats
import pytest
import pytest_asyncio

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import Capability
from eventbus.drivers.memory import MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.queues import Failure
from eventbus.errors import (
    EncodingError,
    EventDefinitionError,
    EventFieldError,
    InvalidName,
    InvalidPayload,
    NotSupported,
    PublishFailed,
    StreamMismatch,
    UnknownEvent,
)
from eventbus.events import (
    Event,
    QueuePolicy,
    ShouldBroadcast,
    ShouldQueue,
    event_definition,
    policy_of,
    validate_queue,
    with_event_meta,
)
from eventbus.queue import job_of, queue_store
from eventbus.queue.jobs import event_of, failed_job, failure_of, read_failure, read_job


class QueuedInvoice(Event, ShouldQueue, queue="invoices", tries=5, timeout=30, backoff=(1, 5, 30)):
    order_id: int


class QueuedLater(Event, ShouldQueue, queue="later"):
    seconds: float

    def queue_delay(self) -> float:
        return self.seconds


class QueuedAfterCommit(Event, ShouldQueue, queue="commits", after_commit=True):
    n: int


class QueuedLoudly(Event, ShouldQueue, ShouldBroadcast, channel="queued.{room}"):
    room: str


class NotQueued(Event, ShouldBroadcast, channel="queued.plain"):
    n: int


class QueuedElsewhere(Event, ShouldQueue, queue_connection="null"):
    n: int


@pytest.fixture
def queue_settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, failed_bytes=1024**2)


@pytest_asyncio.fixture(params=["memory", "nats"])
async def bus(request, queue_settings) -> AsyncIterator[EventBus]:
    changed = msgspec.structs.replace(queue_settings, driver=request.param)
    async with EventBus(changed) as bus:
        yield bus


# Definitions


def test_policy_is_said_in_the_class_statement_and_inherited():
    class QueuedInvoiceCopy(QueuedInvoice, tries=9):
        pass

    policy = event_definition(QueuedInvoiceCopy).queue
    assert policy == QueuePolicy("invoices", 9, 30.0, (1.0, 5.0, 30.0))
    assert event_definition(QueuedInvoice).queue == policy._replace(tries=5)
    assert event_definition(NotQueued).queue is None


def test_policy_may_depend_on_the_event_by_methods():
    class QueuedByMethods(Event, ShouldQueue):
        urgent: bool

        def queue_on(self) -> str:
            return "urgent" if self.urgent else "slow"

        def queue_tries(self) -> int:
            return 2

        def queue_timeout(self) -> datetime.timedelta:
            return datetime.timedelta(minutes=1)

        def queue_backoff(self) -> list[datetime.timedelta | int]:
            return [datetime.timedelta(seconds=3), 7]

        def queue_after_commit(self) -> bool:
            return self.urgent

    policy = policy_of(QueuedByMethods(urgent=True), "it")
    assert policy == QueuePolicy("urgent", 2, 60.0, (3.0, 7.0), 0.0, None, after_commit=True)
    assert policy_of(QueuedByMethods(urgent=False), "it").queue == "slow"


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("queue", "a.b", "not a queue's name"),
        ("queue", "", "not a queue's name"),
        ("queue", "x" * 65, "not a queue's name"),
        ("queue", 7, "not a queue's name"),
        ("tries", 0, "1 to 1000"),
        ("tries", True, "1 to 1000"),
        ("tries", 2.0, "1 to 1000"),
        ("timeout", 0, "more than 0 seconds"),
        ("timeout", -1, "0 to 86,400 seconds"),
        ("timeout", float("nan"), "0 to 86,400 seconds"),
        ("timeout", "30", "0 to 86,400 seconds"),
        ("backoff", (1, -5), "-5 is not a time"),
        ("backoff", range(3), "not a time"),
        ("backoff", [1] * 101, "100 are allowed"),
        ("delay", float("inf"), "not a time"),
        ("delay", datetime.datetime(2030, 1, 1), "no time zone"),  # noqa: DTZ001 - what is tested
        ("queue_connection", "", "not the name of a driver"),
        ("after_commit", 1, "neither True nor False"),
    ],
)
def test_invalid_policy_is_reported_at_the_class(keyword, value, expected):
    with pytest.raises(EventDefinitionError, match=expected) as caught:
        type("QueuedWrongly", (Event, ShouldQueue), {}, **{keyword: value})
    assert f"QueuedWrongly: {keyword}: " in str(caught.value)


def test_policy_that_a_method_gives_is_checked_at_the_dispatch():
    class QueuedBadly(Event, ShouldQueue):
        def queue_tries(self) -> int:
            return -1

    with pytest.raises(EventDefinitionError, match=r"QueuedBadly.queue_tries\(\): -1"):
        job_of(QueuedBadly())


def test_queue_keywords_without_should_queue_are_refused():
    with pytest.raises(EventDefinitionError, match="has tries and is not queued: mix in Should"):

        class QueuedNot(Event, tries=3):
            pass


def test_field_cannot_bear_the_name_of_a_policy_method():
    with pytest.raises(EventDefinitionError, match="'queue_delay'"):

        class QueuedField(Event, ShouldQueue):
            queue_delay: int


@pytest.mark.parametrize(
    ("backoff", "pauses"), [((), [0, 0]), ((2,), [2, 2]), ((1, 5, 30), [1, 5, 30, 30])]
)
def test_last_step_of_a_backoff_repeats(backoff, pauses):
    policy = QueuePolicy(backoff=backoff)
    assert [policy.pause_after(attempt) for attempt in range(1, len(pauses) + 1)] == pauses


def test_queue_names_are_one_token():
    assert validate_queue("high_priority-2") == "high_priority-2"
    for name in ("a b", "a.b", "*", ">", "", "ä", None):
        with pytest.raises(ValueError, match="not a queue's name"):
            validate_queue(name)


# Jobs


def test_event_keeps_its_id_time_and_metadata_through_a_job():
    event = QueuedInvoice(order_id=7).to_others("conn-1")
    job = read_job(msgspec.json.encode(job_of(event)))
    again = event_of(job)
    assert again == event
    assert again.event_meta == event.event_meta


def test_invalid_event_is_refused_before_it_is_queued():
    with pytest.raises(EventFieldError, match="order_id"):
        job_of(QueuedInvoice(order_id="seven"))  # type: ignore[arg-type]


def test_event_of_a_foreign_id_that_no_queue_takes_is_refused():
    event = QueuedInvoice(order_id=7)
    meta = msgspec.structs.replace(event.event_meta, id="a.b c")
    with pytest.raises(InvalidName, match=r"'a\.b c' cannot be queued"):
        job_of(with_event_meta(event, meta))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"event":"X"}',
        pytest.param(b"null", id="null"),
    ],
)
def test_payload_that_is_not_a_job_is_reported(payload):
    with pytest.raises(InvalidPayload) as caught:
        read_job(payload)
    assert caught.value.reason == "bad_job"


@pytest.mark.parametrize(
    "change",
    [
        {"tries": 0},
        {"timeout": 0},
        {"meta": {"id": "a.b", "timestamp": "2026-01-01T00:00:00Z"}},
        {"meta": {"id": "", "timestamp": "2026-01-01T00:00:00Z"}},
    ],
)
def test_job_with_an_invalid_policy_or_id_is_reported(change):
    job = msgspec.json.decode(msgspec.json.encode(job_of(QueuedInvoice(order_id=1))))
    with pytest.raises(InvalidPayload):
        read_job(msgspec.json.encode(job | change))


def test_job_of_an_unknown_event_or_unfit_data_is_reported():
    job = job_of(QueuedInvoice(order_id=1))
    with pytest.raises(UnknownEvent, match=r"'NeverHeardOf'.*--app"):
        event_of(msgspec.structs.replace(job, event="NeverHeardOf"))
    with pytest.raises(InvalidPayload, match="order_id") as caught:
        event_of(msgspec.structs.replace(job, data=msgspec.Raw(b'{"order_id":"x"}')))
    assert caught.value.reason == "bad_event"


@pytest.mark.parametrize("text", ["a", "é", "\U0001f600", "\n", '"'])
def test_failure_is_bounded_ascii_and_read_again(text):
    failed = failed_job(ValueError(text * 5000), job=None, key="seq-1", queue="q", attempts=2)
    assert len(failed.message) == 1000
    assert len(failed.traceback) <= 4000
    assert failed.error == "ValueError"
    failure = failure_of(failed, b"\xff")
    assert failure.info.isascii()
    assert len(failure.info) < 16_000
    again = read_failure(failure)
    assert msgspec.structs.replace(again, traceback="") == msgspec.structs.replace(
        failed, traceback=""
    )
    assert failed.traceback.endswith(again.traceback)
    assert "cannot be read" in read_failure(failure._replace(info="x")).message


# Storing


async def test_dispatch_stores_a_queued_event_and_does_not_run_it(bus):
    received = []
    bus.listen(QueuedInvoice, NotQueued)(received.append)
    event = QueuedInvoice(order_id=7)

    (receipt,) = await bus.dispatch(event)

    assert (receipt.queue, receipt.channel, receipt.id) == ("invoices", "", event.event_meta.id)
    assert receipt.offset is not None
    assert received == []
    (stats,) = [each for each in await (await bus.queues()).stats() if each.queue == "invoices"]
    assert stats == ("invoices", 1, 0, 0)


async def test_queued_and_other_events_go_together(bus):
    received = []
    bus.listen(QueuedLoudly, NotQueued)(received.append)
    receipts = await bus.dispatch(QueuedLoudly(room="a"), NotQueued(n=1))
    assert [(each.queue, each.channel) for each in receipts] == [
        ("default", ""),
        (None, "queued.plain"),
    ]
    assert received == [NotQueued(n=1)]


async def test_same_event_dispatched_twice_is_queued_once(bus):
    event = QueuedInvoice(order_id=7)
    (first,), (second,) = await bus.dispatch(event), await bus.dispatch(event)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.offset == second.offset
    assert (await (await bus.queues()).stats())[0].ready == 1


async def test_job_is_taken_once_and_counts_its_attempts(bus):
    await bus.dispatch(QueuedInvoice(order_id=7))
    store = await bus.queues()
    reader = store.reader("invoices")
    (taken,) = await reader.fetch(5)
    assert (taken.queue, taken.attempt) == ("invoices", 1)
    assert await reader.fetch(5) == []
    assert (await store.stats())[0][1:] == (0, 1, 0)

    await taken.retry(0.05)
    taken = await reader.wait()
    assert taken.attempt == 2
    await taken.hand_back()
    taken = await reader.wait()
    assert taken.attempt == 2, "handing back is no attempt"
    await taken.done()
    assert (await store.stats())[0][1:] == (0, 0, 0)
    await reader.aclose()


async def test_job_that_arrives_when_nobody_waits_is_handed_back(bus):
    store = await bus.queues()
    reader = store.reader("invoices")
    await reader.fetch(1)
    waiting = asyncio.create_task(reader.wait())
    await asyncio.sleep(0.1)  # until the broker has the request; there is nothing to see
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await bus.dispatch(QueuedInvoice(order_id=7))

    taken = await asyncio.wait_for(store.reader("invoices").wait(), 30)
    assert taken.attempt == 1


async def test_reader_waits_for_the_next_job(bus):
    store = await bus.queues()
    reader = store.reader("invoices")
    waiting = asyncio.create_task(reader.wait())
    await asyncio.sleep(0.05)
    await bus.dispatch(QueuedInvoice(order_id=7))
    taken = await asyncio.wait_for(waiting, 30)
    assert taken.attempt == 1
    await taken.done()
    await reader.aclose()


async def test_delayed_event_waits_and_then_comes(bus):
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await bus.dispatch(QueuedLater(seconds=0.8))
    store = await bus.queues()
    reader = store.reader("later")
    assert await reader.fetch(1) == []
    assert (await store.stats())[0] == ("later", 0, 0, 1)
    taken = await asyncio.wait_for(reader.wait(), 30)
    assert 0.7 < loop.time() - begun < 20
    assert event_of(read_job(taken.payload)) == QueuedLater(seconds=0.8)
    await taken.done()
    assert (await store.stats())[0] == ("later", 0, 0, 0)
    await reader.aclose()


async def test_delayed_event_dispatched_twice_comes_once(bus):
    event = QueuedLater(seconds=0.4)
    await bus.dispatch(event)
    (receipt,) = await bus.dispatch(event)
    assert receipt.duplicate
    assert (await (await bus.queues()).stats())[0].delayed == 1


async def test_failures_are_listed_retried_forgotten_and_flushed(bus):
    store = await bus.queues()
    reader = store.reader("invoices")
    for n in range(3):
        await bus.dispatch(QueuedInvoice(order_id=n))
    for n, taken in enumerate(await reader.fetch(3)):
        await taken.fail(Failure(f"id-{n}", "invoices", '{"n":1}', taken.payload))

    assert [each.id for each in await store.failures(10)] == ["id-0", "id-1", "id-2"]
    assert [each.id for each in await store.failures(2)] == ["id-0", "id-1"]
    assert await store.failure_count() == 3
    assert (await store.stats())[0][1:] == (0, 0, 0)

    assert not await store.forget("nobody")
    assert not await store.forget("not an id")
    assert await store.forget("id-0")
    assert not await store.retry("id-0")
    assert await store.retry("id-1")
    taken = await asyncio.wait_for(reader.wait(), 30)
    assert taken.attempt == 1, "a retry has all tries again"
    assert event_of(read_job(taken.payload)) == QueuedInvoice(order_id=1)
    await taken.fail(Failure("id-1", "invoices", "{}", taken.payload))
    assert await store.retry("id-1"), "also a second time"
    assert await store.flush() == 1
    assert await store.failure_count() == 0
    assert await store.failures(10) == []


async def test_failures_before_any_job_are_none(bus):
    store = await bus.queues()
    assert await store.failures(10) == []
    assert await store.failure_count() == 0
    assert await store.flush() == 0
    assert not await store.retry("id")
    assert await store.stats() == []


async def test_failed_job_of_any_bytes_is_kept_as_it_was(bus):
    store = await bus.queues()
    await store.push("odd", "one", b"\xff\x00odd", 0)
    (taken,) = await store.reader("odd").fetch(1)
    await taken.fail(Failure(taken.key, "odd", "{}", taken.payload))
    (failure,) = await store.failures(1)
    assert (failure.payload, failure.queue) == (b"\xff\x00odd", "odd")


# Transactions


async def _fail_after(bus: EventBus, event: Event) -> None:
    async with bus.transaction():
        await event.dispatch()
        raise ZeroDivisionError


async def test_event_after_commit_is_held_until_the_transaction_is_left(bus):
    async with bus.transaction():
        assert await bus.dispatch(QueuedAfterCommit(n=1), QueuedAfterCommit(n=2)) == ()
        assert await (await bus.queues()).stats() == []
    assert (await (await bus.queues()).stats())[0] == ("commits", 2, 0, 0)


async def test_event_after_commit_is_dropped_when_the_transaction_fails(bus):
    with pytest.raises(ZeroDivisionError):
        await _fail_after(bus, QueuedAfterCommit(n=1))
    assert await (await bus.queues()).stats() == []


async def test_only_what_is_after_commit_is_held(bus):
    with pytest.raises(ZeroDivisionError):
        await _fail_after(bus, QueuedInvoice(order_id=1))
    assert [each.queue for each in await (await bus.queues()).stats()] == ["invoices"]


async def test_inner_transaction_that_fails_drops_its_own_events_alone(bus):
    async with bus.transaction():
        await QueuedAfterCommit(n=1).dispatch()
        with pytest.raises(ZeroDivisionError):
            await _fail_after(bus, QueuedAfterCommit(n=2))
        async with bus.transaction():
            await QueuedAfterCommit(n=3).dispatch()
        assert await (await bus.queues()).stats() == []
    taken = await (await bus.queues()).reader("commits").fetch(9)
    assert [event_of(read_job(each.payload)).n for each in taken] == [1, 3]


class Unencodable(Event, ShouldBroadcast, channel="general"):
    n: int

    def broadcast_with(self):
        return object()


async def test_failed_dispatch_queues_none_of_its_events_at_the_end_of_the_transaction(bus):
    async with bus.transaction():
        again = QueuedAfterCommit(n=1)
        await bus.dispatch(again)
        for others in ([Unencodable(n=1)], [QueuedAfterCommit(n="x")]):
            with pytest.raises((EncodingError, EventFieldError)):
                await bus.dispatch(QueuedAfterCommit(n=2), *others)
            with pytest.raises((EncodingError, EventFieldError)):
                await bus.dispatch(*others, again, QueuedAfterCommit(n=3))
    taken = await (await bus.queues()).reader("commits").fetch(9)
    assert [event_of(read_job(each.payload)).n for each in taken] == [1]


class _Refusing(MemoryDriver):
    """Stores queued events and publishes nothing."""

    async def publish(self, subject, payload, headers):
        raise PublishFailed("no", driver=self.name)


async def test_dispatch_that_fails_at_the_broker_queues_nothing_after_the_commit():
    class Sent(Event, ShouldBroadcast, channel="general", name="queue.sent"):
        n: int

    async with EventBus(Settings(), _Refusing()) as bus:
        async with bus.transaction():
            with pytest.raises(PublishFailed):
                await bus.dispatch(QueuedAfterCommit(n=1), Sent(n=1), QueuedAfterCommit(n=2))
            await bus.dispatch(QueuedAfterCommit(n=3))
        taken = await (await bus.queues()).reader("commits").fetch(9)
        assert [event_of(read_job(each.payload)).n for each in taken] == [3]


async def test_without_a_transaction_nothing_is_held(bus):
    (receipt,) = await QueuedAfterCommit(n=1).dispatch()
    assert receipt.queue == "commits"


async def test_tasks_that_continue_after_a_transaction_are_not_held(bus):
    left = asyncio.Event()

    async def late():
        await left.wait()
        return await QueuedAfterCommit(n=1).dispatch()

    async with bus.transaction():
        task = asyncio.create_task(late())
    left.set()
    assert len(await task) == 1


async def test_transaction_of_another_task_does_not_hold(bus):
    async with bus.transaction():
        pass
    entered, leave = asyncio.Event(), asyncio.Event()

    async def other():
        async with bus.transaction():
            entered.set()
            await leave.wait()

    task = asyncio.create_task(other())
    await entered.wait()
    assert len(await QueuedAfterCommit(n=1).dispatch()) == 1
    leave.set()
    await task


# What drivers cannot do


class _Plain(MemoryDriver):
    name = "plain"
    capabilities = frozenset({Capability.HISTORY})


async def test_driver_without_queues_is_named_with_what_to_do():
    async with EventBus(Settings(), _Plain()) as bus:
        with pytest.raises(
            NotSupported, match="plain has no queue: set BROADCAST_DRIVER"
        ) as caught:
            await bus.dispatch(QueuedInvoice(order_id=1))
        assert caught.value.driver == "plain"
        with pytest.raises(NotSupported):
            queue_store(bus.driver)


async def test_queue_connection_chooses_the_driver(bus):
    with pytest.raises(NotSupported, match="the driver null has no queue"):
        await bus.dispatch(QueuedElsewhere(n=1))


# NATS itself


async def test_stream_has_what_the_design_says(queue_settings):
    async with EventBus(queue_settings) as bus:
        await bus.dispatch(QueuedInvoice(order_id=1))
        await (await bus.queues()).reader("invoices").fetch(1)
        client = await nats.connect(queue_settings.nats_url)
        name = f"{queue_settings.namespace.upper()}_QUEUE"
        config = (await client.jetstream().stream_info(name)).config
        assert (config.retention, config.subjects) == (
            "workqueue",
            [f"{queue_settings.namespace}.queue.>"],
        )
        (consumer,) = await client.jetstream().consumers_info(name)
        assert (consumer.name, consumer.config.ack_wait) == ("invoices", 30)
        await client.close()


async def test_workers_with_different_leases_settle_on_the_longest(queue_settings):
    """With a shorter one, another worker would get a job that still runs, before its extension."""
    waits = []
    client = await nats.connect(queue_settings.nats_url)
    name = f"{queue_settings.namespace.upper()}_QUEUE"
    long = msgspec.structs.replace(queue_settings, queue_lease=600.0)
    async with EventBus(long) as first, EventBus(queue_settings) as second:
        await first.dispatch(QueuedInvoice(order_id=1))
        (job,) = await (await first.queues()).reader("invoices").fetch(1)
        for bus in (second, first, second):
            store = await bus.queues()
            store.invalidate("invoices")
            await store.reader("invoices").fetch(1)
            waits.append((await client.jetstream().consumer_info(name, "invoices")).config.ack_wait)
        await job.done()
    assert waits == [600, 600, 600]
    async with EventBus(queue_settings) as alone:
        await (await alone.queues()).reader("invoices").fetch(1)
        info = await client.jetstream().consumer_info(name, "invoices")
    assert info.config.ack_wait == 30, "the lease may become shorter when nobody has the longer one"
    await client.close()


async def test_job_too_large_to_be_kept_if_it_failed_is_refused(queue_settings):
    class QueuedLarge(Event, ShouldQueue):
        text: str

    async with EventBus(queue_settings) as bus:
        with pytest.raises(EncodingError, match="too large"):
            await bus.dispatch(QueuedLarge(text="x" * 60_000))
        await bus.dispatch(QueuedLarge(text="x" * 40_000))


async def test_jobs_beyond_the_bound_are_refused_and_none_is_dropped(queue_settings):
    small = msgspec.structs.replace(queue_settings, queue_bytes=2000)
    async with EventBus(small) as bus:
        stored = 0

        async def dispatch_many() -> None:
            nonlocal stored
            for n in range(100):
                await bus.dispatch(QueuedInvoice(order_id=n))
                stored += 1

        with pytest.raises(PublishFailed, match="BROADCAST_QUEUE_BYTES allows 2000"):
            await dispatch_many()
        assert (await (await bus.queues()).stats())[0].ready == stored > 0


async def test_stream_that_cannot_work_is_reported(queue_settings):
    client = await nats.connect(queue_settings.nats_url)
    namespace = queue_settings.namespace
    await client.jetstream().add_stream(
        name=f"{namespace.upper()}_QUEUE", subjects=[f"{namespace}.queue.>"], max_bytes=100_000
    )
    await client.close()
    async with EventBus(queue_settings) as bus:
        with pytest.raises(StreamMismatch, match='retention is "limits", not "workqueue"'):
            await bus.dispatch(QueuedInvoice(order_id=1))


async def test_stream_without_schedules_takes_jobs_and_says_what_delays_need(queue_settings):
    client = await nats.connect(queue_settings.nats_url)
    namespace = queue_settings.namespace
    await client.jetstream().add_stream(
        name=f"{namespace.upper()}_QUEUE",
        subjects=[f"{namespace}.queue.>"],
        retention="workqueue",
        max_bytes=100_000,
    )
    await client.close()
    async with EventBus(queue_settings) as bus:
        await bus.dispatch(QueuedInvoice(order_id=1))
        with pytest.raises(NotSupported, match="allow_msg_schedules"):
            await bus.dispatch(QueuedLater(seconds=5))


async def test_server_older_than_schedules_is_reported(queue_settings, monkeypatch):
    """The answers of an older server: it ignores the setting, and its version is in its INFO."""
    async with EventBus(queue_settings) as bus:
        assert isinstance(bus.driver, NatsDriver)
        client = bus.driver._connection.client
        monkeypatch.setattr(client._current_server, "server_version", "2.11.4")
        monkeypatch.delitem(bus.driver.queues._stream.config, "allow_msg_schedules")
        with pytest.raises(NotSupported, match=r"since 2\.12: this one is 2\.11\.4"):
            await bus.dispatch(QueuedLater(seconds=5))


async def test_stream_removed_meanwhile_is_recreated(queue_settings):
    quick = msgspec.structs.replace(queue_settings, publish_timeout=3.0)
    async with EventBus(quick) as bus:
        await bus.dispatch(QueuedInvoice(order_id=1))
        client = await nats.connect(quick.nats_url)
        await client.jetstream().delete_stream(f"{quick.namespace.upper()}_QUEUE")
        await client.close()
        with pytest.raises(PublishFailed):
            await bus.dispatch(QueuedInvoice(order_id=2))
        await bus.dispatch(QueuedInvoice(order_id=3))
