"""Workers: in this process over both drivers, and as processes that are stopped and killed."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
import pytest_asyncio

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import Delivery
from eventbus.drivers.nats.pull import SILENT
from eventbus.drivers.queues import LeasedJob, QueueReader, QueueStore
from eventbus.errors import InvalidPayload, JobRejected, JobRetry, NotSupported
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.queue import FailedJob, Worker, failed_jobs, job_of
from eventbus.queue.jobs import failed_job, failure_of
from eventbus.queue.runner import JobRunner
from tests.loading import load_application

HERE = Path(__file__).parent
WAIT_S = 45.0
LEASE_S = 30.0
"""So long that no test waits for its end, and that no pause of the machine ends it."""
BRIEF_S = 1.5
brief_lease = pytest.mark.parametrize("lease", [BRIEF_S])
"""For tests that wait for the end of a lease, and do not have to extend one in time."""
longer_lease = pytest.mark.parametrize("lease", [7.5])
"""For those that do have to, although the machine may stand still for some seconds."""
starts_processes = pytest.mark.timeout(180)


class WorkedOn(Event, ShouldQueue, ShouldBroadcast, channel="worked", tries=3, backoff=0):
    n: int


class WorkedFirst(WorkedOn, queue="high"):
    pass


class WorkedLast(WorkedOn, queue="low"):
    pass


class WorkedOnce(Event, ShouldQueue, tries=1):
    secret: str


class WorkedBriefly(Event, ShouldQueue, tries=2, timeout=0.05, backoff=0):
    n: int


@pytest.fixture
def lease() -> float:
    return LEASE_S


@pytest.fixture
def queue_settings(settings: Settings, lease: float) -> Settings:
    return msgspec.structs.replace(settings, failed_bytes=1024**2, queue_lease=lease)


@pytest_asyncio.fixture(params=["memory", "nats"])
async def bus(request, queue_settings) -> AsyncIterator[EventBus]:
    async with EventBus(msgspec.structs.replace(queue_settings, driver=request.param)) as bus:
        yield bus


@pytest_asyncio.fixture
async def nats_bus(queue_settings) -> AsyncIterator[EventBus]:
    async with EventBus(queue_settings) as bus:
        yield bus


@contextlib.asynccontextmanager
async def working(bus: EventBus, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs within the block."""
    worker = Worker(bus, **options)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop(at_once=True)
        await asyncio.wait_for(task, WAIT_S)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """For what a broker reports only on request."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def failures(bus: EventBus, count: int = 1) -> list[FailedJob]:
    store = await bus.queues()

    async def enough() -> bool:
        return await store.failure_count() >= count

    await until(enough)
    return await failed_jobs(store)


async def all_done(bus: EventBus) -> None:
    store = await bus.queues()

    async def empty() -> bool:
        return not any(sum(each[1:]) for each in await store.stats())

    await until(empty)


async def none_failed(bus: EventBus) -> None:
    store = await bus.queues()

    async def none() -> bool:
        return await store.failure_count() == 0

    await until(none)


# What becomes of a job


async def test_worker_runs_listeners_and_broadcast_of_the_very_event(bus):
    received: asyncio.Queue[WorkedOn] = asyncio.Queue()
    live: asyncio.Queue[Delivery] = asyncio.Queue()
    bus.listen(WorkedOn)(received.put_nowait)
    await bus.driver.subscribe(bus.subjects.live("worked"), live.put_nowait)
    event = WorkedOn(n=7)
    await bus.dispatch(event)
    assert received.empty()
    async with working(bus):
        got = await asyncio.wait_for(received.get(), WAIT_S)
        delivery = await asyncio.wait_for(live.get(), WAIT_S)
        await all_done(bus)
    assert got == event
    assert got.event_meta == event.event_meta
    assert msgspec.json.decode(delivery.payload)["id"] == event.event_meta.id
    assert received.empty()
    assert live.empty()


async def test_job_that_raises_is_tried_again_and_its_broadcast_is_stored_once(bus):
    tries = []

    @bus.listen(WorkedOn)
    async def listener(event):
        tries.append(event.event_meta.id)
        if len(tries) < 3:
            raise ValueError("not yet")

    await bus.dispatch(WorkedOn(n=1))
    worker = Worker(bus, max_jobs=3)
    counters = await asyncio.wait_for(worker.run(), WAIT_S)
    assert (counters.done, counters.retried, counters.failed) == (1, 2, 0)
    assert len(tries) == 3
    assert len(set(tries)) == 1
    page = await bus.driver.read(bus.subjects.live("worked"), after=None, limit=10)
    assert len(page.messages) == 1


async def test_backoff_is_waited_between_tries(bus):
    class WorkedWithPauses(Event, ShouldQueue, tries=3, backoff=(0.2, 0.5)):
        pass

    loop = asyncio.get_running_loop()
    times = []

    @bus.listen(WorkedWithPauses)
    def listener(_event):
        times.append(loop.time())
        raise ValueError

    await bus.dispatch(WorkedWithPauses())
    async with working(bus):
        await failures(bus)
    first, second, third = times
    assert 0.19 < second - first < LEASE_S / 2
    assert 0.49 < third - second < LEASE_S / 2


async def test_job_that_fails_at_every_try_is_kept_with_its_exception(bus):
    @bus.listen(WorkedOn)
    def listener(event):
        raise ValueError(f"no {event.n}")

    event = WorkedOn(n=5)
    await bus.dispatch(event)
    async with working(bus) as worker:
        (failed,) = await failures(bus)
        await all_done(bus)
    assert failed.id == event.event_meta.id
    assert (failed.event, failed.queue, failed.attempts) == ("WorkedOn", "default", 3)
    assert (failed.error, failed.message) == ("ValueError", "no 5")
    assert 'raise ValueError(f"no {event.n}")' in failed.traceback
    assert (worker.counters.retried, worker.counters.failed, worker.counters.done) == (2, 1, 0)


async def test_all_that_several_listeners_raised_is_kept(bus):
    def one(_event):
        raise ValueError("first")

    def other(_event):
        raise KeyError("second")

    bus.listen(WorkedOnce)(one)
    bus.listen(WorkedOnce)(other)
    await bus.dispatch(WorkedOnce(secret="x"))
    async with working(bus):
        (failed,) = await failures(bus)
    assert failed.error == "ExceptionGroup"
    assert failed.message == "ValueError: first; KeyError: 'second'"


async def test_invalid_payload_that_a_listener_raises_is_tried_again(bus):
    tries = []

    @bus.listen(WorkedOn, stop_on_error=True)
    def listener(event):
        tries.append(event.n)
        raise InvalidPayload("bad", "of the listener's own")

    await bus.dispatch(WorkedOn(n=1))
    async with working(bus):
        await failures(bus)
    assert tries == [1, 1, 1]


@pytest.mark.parametrize("in_several", [False, True])
async def test_a_listener_may_say_that_no_further_try_can_help(bus, in_several):
    tries = []

    @bus.listen(WorkedOn, stop_on_error=not in_several)
    def listener(event):
        tries.append(event.n)
        raise JobRejected("the account is closed")

    await bus.dispatch(WorkedOn(n=1))
    async with working(bus) as worker:
        (failed,) = await failures(bus)
    assert (tries, failed.attempts, worker.counters.retried) == ([1], 1, 0)
    assert failed.error == "eventbus.errors.JobRejected"
    assert failed.message == "the account is closed"


async def test_a_listener_may_say_when_to_try_again(bus):
    times = []

    @bus.listen(WorkedOn)
    def listener(event):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise JobRetry("too many requests", after_s=0.8)

    await bus.dispatch(WorkedOn(n=1))
    async with working(bus) as worker:
        await all_done(bus)
    assert 0.75 < times[1] - times[0] < LEASE_S / 2
    assert (worker.counters.retried, worker.counters.done) == (1, 1)


async def test_failed_job_that_is_retried_has_all_its_tries_and_its_id(bus):
    broken = True
    received = []

    @bus.listen(WorkedOnce)
    def listener(event):
        if broken:
            raise ValueError
        received.append(event.event_meta.id)

    event = WorkedOnce(secret="x")
    await bus.dispatch(event)
    async with working(bus):
        await failures(bus)
        broken = False
        assert await (await bus.queues()).retry(event.event_meta.id)
        await all_done(bus)
    assert received == [event.event_meta.id]
    assert await (await bus.queues()).failure_count() == 0


async def test_listener_past_its_timeout_is_cancelled_and_counts_as_a_try(bus):
    ends = []

    @bus.listen(WorkedBriefly)
    async def listener(_event):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    await bus.dispatch(WorkedBriefly(n=1))
    async with working(bus):
        (failed,) = await failures(bus)
    assert ends == ["cancelled", "cancelled"]
    assert (failed.error, failed.attempts) == ("eventbus.errors.JobTimeout", 2)
    assert failed.message == "not done within 0.05 s"


async def test_listener_that_swallows_its_cancellation_has_timed_out_anyway(bus):
    @bus.listen(WorkedBriefly)
    async def listener(_event):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    await bus.dispatch(WorkedBriefly(n=1))
    async with working(bus):
        (failed,) = await failures(bus)
    assert failed.error == "eventbus.errors.JobTimeout"


@pytest.mark.parametrize("error", [TimeoutError("its own"), asyncio.CancelledError("its own")])
async def test_timeout_error_of_a_listener_is_neither_a_job_timeout_nor_a_stop(bus, error):
    @bus.listen(WorkedOnce)
    async def listener(_event):
        raise error

    await bus.dispatch(WorkedOnce(secret="x"))
    async with working(bus):
        (failed,) = await failures(bus)
        await all_done(bus)
    assert type(error).__name__ in failed.error + failed.message
    assert "JobTimeout" not in failed.error


@pytest.mark.parametrize("is_swallowed", [True, False])
async def test_listener_that_cancels_its_own_task_has_failed_and_is_not_handed_back(
    bus, is_swallowed
):
    @bus.listen(WorkedOnce)
    async def listener(_event):
        asyncio.current_task().cancel()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if is_swallowed:
                raise TimeoutError("its own") from None
            raise

    await bus.dispatch(WorkedOnce(secret="x"))
    async with working(bus) as worker:
        (failed,) = await failures(bus)
        await all_done(bus)
    assert failed.error.endswith("TimeoutError" if is_swallowed else "CancelledError")
    assert (worker.counters.taken, worker.counters.handed_back) == (1, 0)


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"event": "NobodyKnowsIt"}, "eventbus.errors.UnknownEvent", "--app"),
        ({"data": {"n": "x"}}, "eventbus.errors.InvalidPayload", "does not fit"),
        ({"tries": "x"}, "eventbus.errors.InvalidPayload", "not a job"),
    ],
)
async def test_job_that_no_try_can_help_fails_at_once(bus, change, error, expected):
    job = msgspec.json.decode(msgspec.json.encode(job_of(WorkedOn(n=1))))
    store = await bus.queues()
    await store.push("default", "odd", msgspec.json.encode(job | change), 0)
    async with working(bus) as worker:
        (failed,) = await failures(bus)
        await all_done(bus)
    assert (failed.error, failed.attempts) == (error, 1)
    assert expected in failed.message
    assert worker.counters.retried == 0


async def test_payload_of_any_bytes_fails_under_a_name_of_its_own(bus):
    store = await bus.queues()
    await store.push("default", "odd", b"\xff\x00", 0)
    async with working(bus):
        (failed,) = await failures(bus)
    assert failed.id.startswith("seq-")
    assert failed.event == ""
    assert await store.forget(failed.id)


async def test_job_that_was_taken_too_often_fails_without_being_run(bus):
    received = []
    bus.listen(WorkedOn)(received.append)
    await bus.dispatch(WorkedOn(n=1))
    reader = (await bus.queues()).reader("default")
    for _ in range(3):
        taken = await asyncio.wait_for(reader.wait(), WAIT_S)
        await taken.retry(0)
    async with working(bus):
        (failed,) = await failures(bus)
    await reader.aclose()
    assert received == []
    assert (failed.error, failed.attempts) == ("eventbus.errors.WorkerLost", 3)


async def test_log_mentions_jobs_and_never_their_data(bus, caplog):
    caplog.set_level("DEBUG", "eventbus")
    event = WorkedOnce(secret="hunter2")

    @bus.listen(WorkedOnce)
    def listener(event):
        raise ValueError(event.secret)

    await bus.dispatch(event, WorkedOn(n=1))
    await asyncio.wait_for(Worker(bus, max_jobs=2).run(), WAIT_S)
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("eventbus.queue.")
    ]
    assert any(
        f"'WorkedOnce', id {event.event_meta.id}, queue default, attempt 1 of 1," in line
        and "ValueError" in line
        for line in lines
    )
    assert any("'WorkedOn'" in line and "done in" in line for line in lines)
    assert not any("hunter2" in line for line in lines)


# Which job, and how many


async def test_most_urgent_queue_is_emptied_first(bus):
    order = []
    bus.listen(WorkedOn)(lambda event: order.append(event.n))
    await bus.dispatch(*(WorkedLast(n=n) for n in range(3)))
    await bus.dispatch(*(WorkedOn(n=10 + n) for n in range(3)))
    await bus.dispatch(*(WorkedFirst(n=20 + n) for n in range(3)))
    worker = Worker(bus, queues=("high", "default", "low"), concurrency=1, max_jobs=9)
    await asyncio.wait_for(worker.run(), WAIT_S)
    assert order == [20, 21, 22, 10, 11, 12, 0, 1, 2]


async def test_urgent_job_that_comes_while_others_wait_is_the_next(bus):
    order = []

    @bus.listen(WorkedOn)
    async def listener(event):
        if not order:
            await bus.dispatch(WorkedFirst(n=100))
        order.append(event.n)

    await bus.dispatch(*(WorkedLast(n=n) for n in range(5)))
    worker = Worker(bus, queues=("high", "low"), concurrency=1, max_jobs=6)
    await asyncio.wait_for(worker.run(), WAIT_S)
    assert order == [0, 100, 1, 2, 3, 4]


async def test_no_more_jobs_run_at_once_than_allowed(bus):
    running = most = 0
    all_run = asyncio.Event()

    @bus.listen(WorkedOn)
    async def listener(_event):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            all_run.set()
        await all_run.wait()
        await asyncio.sleep(0.01)  # in which a fifth one could begin
        running -= 1

    await bus.dispatch(*(WorkedOn(n=n) for n in range(20)))
    await asyncio.wait_for(Worker(bus, concurrency=4, max_jobs=20).run(), WAIT_S)
    assert most == 4


async def test_worker_leaves_other_queues_alone(bus):
    await bus.dispatch(WorkedFirst(n=1), WorkedLast(n=2))
    await asyncio.wait_for(Worker(bus, queues=["high"], max_jobs=1).run(), WAIT_S)
    stats = {each.queue: each.ready for each in await (await bus.queues()).stats()}
    assert stats == {"high": 0, "low": 1}


async def test_job_for_which_there_is_no_room_goes_to_another_worker(nats_bus):
    """One place, two queues: while a job runs, the open question for the other is answered."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    pids: list[str] = []

    def listening(name: str) -> EventBus:
        bus = EventBus(nats_bus.settings)

        @bus.listen(WorkedFirst)
        async def long(_event):
            begun.set()
            await go_on.wait()

        @bus.listen(WorkedLast)
        def short(_event):
            pids.append(name)

        return bus

    async with listening("busy") as busy, listening("free") as free:
        async with working(busy, queues=("high", "low"), concurrency=1) as worker:
            await asyncio.sleep(0.1)  # until its questions are open; there is nothing to see
            await nats_bus.dispatch(WorkedFirst(n=1))
            await asyncio.wait_for(begun.wait(), WAIT_S)
            await nats_bus.dispatch(WorkedLast(n=2))
            async with working(free, queues=("low",)):
                store = await nats_bus.queues()

                async def is_done() -> bool:
                    return bool(pids)

                await until(is_done)
            go_on.set()
            await all_done(nats_bus)
            assert worker.counters.failed == 0
        assert await store.failure_count() == 0
    assert pids == ["free"]


# Its end


async def test_stopping_worker_finishes_what_it_holds_and_takes_no_more(bus):
    begun, go_on = asyncio.Event(), asyncio.Event()
    done = []

    @bus.listen(WorkedOn)
    async def listener(event):
        begun.set()
        await go_on.wait()
        done.append(event.n)

    await bus.dispatch(WorkedOn(n=1), WorkedOn(n=2))
    worker = Worker(bus, concurrency=1)
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(begun.wait(), WAIT_S)
    worker.stop()
    go_on.set()
    counters = await asyncio.wait_for(task, WAIT_S)
    assert done == [1]
    assert (counters.done, counters.handed_back) == (1, 0)
    assert [each.ready for each in await (await bus.queues()).stats()] == [1]


@pytest.mark.parametrize("how", ["grace", "at_once", "cancel"])
async def test_unfinished_job_is_handed_back_at_the_end_and_counts_as_no_try(bus, how):
    begun = asyncio.Event()

    async def listener(_event):
        begun.set()
        await asyncio.sleep(60)

    bus.listen(WorkedOnce)(listener)
    await bus.dispatch(WorkedOnce(secret="x"))
    worker = Worker(bus, grace=0.05 if how == "grace" else 60)
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(begun.wait(), WAIT_S)
    if how == "cancel":
        task.cancel()
    else:
        worker.stop()
        worker.stop(at_once=how == "at_once")
    await asyncio.wait([task], timeout=WAIT_S)
    assert task.done()
    assert task.cancelled() == (how == "cancel")
    assert worker.counters.handed_back == 1

    bus.forget(WorkedOnce, listener)
    counters = await asyncio.wait_for(Worker(bus, max_jobs=1).run(), WAIT_S)
    assert counters.done == 1, "it has one try, and that was not it"


async def test_idle_worker_stops_at_once(bus):
    worker = Worker(bus, queues=("high", "low"))
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    worker.stop()
    await asyncio.wait_for(task, WAIT_S)
    assert loop.time() - begun < LEASE_S / 3  # a request for jobs waits for half of it


async def test_worker_stops_after_its_time(bus):
    counters = await asyncio.wait_for(Worker(bus, max_time=0.05).run(), WAIT_S)
    assert counters.taken == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"queues": ()}, "needs a queue"),
        ({"queues": ("a b",)}, "not a queue's name"),
        ({"concurrency": 0}, "concurrency=0: at least 1"),
        ({"grace": -1}, "grace=-1: at least 0"),
        ({"max_jobs": 0}, "max_jobs=0: at least 1"),
        ({"max_time": float("nan")}, "max_time=nan"),
    ],
)
async def test_invalid_options_are_reported(bus, options, expected):
    with pytest.raises(ValueError, match=expected):
        Worker(bus, **options)


async def test_worker_on_a_driver_without_queues_is_reported():
    async with EventBus(Settings(driver="null")) as bus:
        with pytest.raises(NotSupported, match="null has no queue"):
            await Worker(bus).run()


# Faults of the broker


async def test_worker_continues_when_its_consumer_and_stream_is_recreated(nats_bus):
    received: asyncio.Queue[int] = asyncio.Queue()
    bus = nats_bus
    bus.listen(WorkedOn)(lambda event: received.put_nowait(event.n))
    name = f"{bus.settings.namespace.upper()}_QUEUE"
    client = await nats.connect(bus.settings.nats_url)
    js = client.jetstream()
    async with working(bus):
        await bus.dispatch(WorkedOn(n=1))
        assert await asyncio.wait_for(received.get(), WAIT_S) == 1
        await all_done(bus)

        await js.delete_consumer(name, "default")
        await bus.dispatch(WorkedOn(n=2))
        assert await asyncio.wait_for(received.get(), WAIT_S) == 2
        await all_done(bus)

        await js.delete_stream(name)
        await until(lambda: _exists(js, name))
        await bus.dispatch(WorkedOn(n=3))
        assert await asyncio.wait_for(received.get(), WAIT_S) == 3
    await client.close()


async def _exists(js: Any, name: str) -> bool:
    try:
        return (await js.stream_info(name)).state.consumer_count == 1
    except nats.js.errors.NotFoundError:
        return False


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_worker_survives_restarts_of_the_broker_while_idle_and_while_working(
    own_nats_server, namespace, how
):
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: list[int] = []
    settings = Settings(nats_url=own_nats_server.url, namespace=namespace, queue_lease=10)

    async def restart() -> None:
        if how == "killed":
            os.kill(own_nats_server.pid, signal.SIGKILL)
        await own_nats_server.stop()
        await own_nats_server.start()

    async with EventBus(settings) as bus:

        @bus.listen(WorkedOn)
        async def listener(event):
            begun.set()
            if event.n == 1:
                await go_on.wait()
            done.append(event.n)

        async with working(bus) as worker:
            await bus.dispatch(WorkedOn(n=0))
            await all_done(bus)
            await restart()
            begun.clear()
            await bus.dispatch(WorkedOn(n=1))
            await asyncio.wait_for(begun.wait(), WAIT_S)
            await restart()
            go_on.set()
            await bus.dispatch(WorkedOn(n=2))
            await all_done(bus)
            assert worker.counters.failed == 0
        assert set(done) == {0, 1, 2}
        if how == "stopped":  # a killed one may forget its deliveries and acknowledgements
            assert sorted(done) == [0, 1, 2]


async def test_worker_can_be_stopped_while_the_broker_is_away(own_nats_server, namespace):
    settings = Settings(nats_url=own_nats_server.url, namespace=namespace)
    async with EventBus(settings) as bus:
        worker = Worker(bus)
        task = asyncio.create_task(worker.run())
        await asyncio.sleep(0.2)
        await own_nats_server.stop()
        await asyncio.sleep(0.2)
        worker.stop()
        await asyncio.wait_for(task, WAIT_S)


async def test_job_that_arrives_again_while_it_is_under_way_is_not_begun_twice(bus):
    begun, go_on = asyncio.Event(), asyncio.Event()
    runs = []

    @bus.listen(WorkedOnce)
    async def listener(_event):
        runs.append(1)
        begun.set()
        await go_on.wait()

    await bus.dispatch(WorkedOnce(secret="x"))
    (taken,) = await (await bus.queues()).reader("default").fetch(1)
    runner = JobRunner(bus)
    first = asyncio.create_task(runner.run(taken))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    await asyncio.wait_for(runner.run(taken), WAIT_S)
    go_on.set()
    await asyncio.wait_for(first, WAIT_S)
    assert runs == [1]
    assert runner.counters.done == 1
    await all_done(bus)


@pytest.mark.parametrize("lease", [3.0])  # a request for jobs lasts half of it
@pytest.mark.parametrize("event", [WorkedOnce(secret="x"), WorkedOn(n=1)])
async def test_job_redelivered_to_its_own_resumed_worker_has_one_attempt(nats_bus, event):
    """Its first delivery arrived during the suspension, and its request had ended in silence."""
    bus, runs = nats_bus, []
    bus.listen(type(event))(runs.append)
    store = await bus.queues()
    reader, runner = store.reader("default"), JobRunner(bus)
    leases = asyncio.create_task(runner.keep_leases(store))
    waiting = asyncio.create_task(reader.wait())

    async def is_open() -> bool:
        return reader._polls.pull.is_open

    async def has_arrived() -> bool:
        return bool(reader._late)

    await until(is_open)
    reader._polls.pull.end(SILENT)
    assert await waiting is None
    await bus.dispatch(event)
    await until(has_arrived)
    time.sleep(bus.settings.queue_lease + 0.5)  # noqa: ASYNC251 - a suspended process
    assert await reader.wait() is None, "what has arrived comes first"
    fetched = await reader.fetch(10)
    assert [taken.attempt for taken in fetched] == [1, 2]
    await asyncio.gather(*map(runner.run, fetched))
    assert runs == [event]
    assert (runner.counters.done, runner.counters.failed) == (1, 0)
    await all_done(bus)
    assert await store.failure_count() == 0
    leases.cancel()
    await reader.aclose()


async def _taken_twice(bus: EventBus) -> tuple[LeasedJob, LeasedJob]:
    """The two deliveries of a job whose first lease has ended."""
    reader = (await bus.queues()).reader("default")
    taken: list[LeasedJob] = []

    async def both() -> bool:
        taken.extend(await reader.fetch(1))
        return len(taken) == 2

    await until(both)
    await reader.aclose()
    return taken[0], taken[1]


class WorkedTwice(Event, ShouldQueue, tries=2, backoff=0):
    pass


async def _next_taken(reader: QueueReader) -> LeasedJob:
    """The next delivery: of a job whose lease has to end first, if need be."""
    taken: list[LeasedJob] = []

    async def one() -> bool:
        taken.extend(await reader.fetch(1))
        return bool(taken)

    await until(one)
    return taken[0]


@brief_lease
async def test_job_of_a_worker_suspended_twice_in_one_attempt_still_has_its_second(nats_bus):
    """The broker counts three deliveries, of which the second was no attempt."""
    bus, lease = nats_bus, nats_bus.settings.queue_lease
    begun, go_on = asyncio.Event(), asyncio.Event()
    runs = []

    @bus.listen(WorkedTwice)
    async def listener(_event):
        runs.append(1)
        if len(runs) == 1:
            begun.set()
            await go_on.wait()
            time.sleep(lease + 0.5)  # noqa: ASYNC251 - a suspended process
        raise RuntimeError("its own")

    store = await bus.queues()
    reader, runner = store.reader("default"), JobRunner(bus)
    leases = asyncio.create_task(runner.keep_leases(store))
    await bus.dispatch(WorkedTwice())
    first = asyncio.create_task(runner.run(await _next_taken(reader)))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    time.sleep(lease + 0.5)  # noqa: ASYNC251 - a suspended process
    await runner.run(await _next_taken(reader))
    assert not first.done()
    go_on.set()
    await asyncio.wait_for(first, WAIT_S)
    third = await _next_taken(reader)
    assert third.attempt == 3
    await runner.run(third)
    (failed,) = await failed_jobs(store)
    assert (failed.error, failed.attempts, len(runs)) == ("RuntimeError", 2, 2)
    await all_done(bus)
    leases.cancel()
    await reader.aclose()


class _SlowlyEnding:
    """A job whose end takes until `go_on`; the broker hears of it before that, or only then."""

    def __init__(self, leased: LeasedJob, *, is_heard_first: bool) -> None:
        self.leased = leased
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.is_heard_first = is_heard_first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.leased, name)

    async def retry(self, seconds: float) -> None:
        await self._end(functools.partial(self.leased.retry, seconds))

    async def done(self) -> None:
        await self._end(self.leased.done)

    async def _end(self, tell: Callable[[], Awaitable[None]]) -> None:
        if self.is_heard_first:
            await tell()
        self.begun.set()
        await self.go_on.wait()
        if not self.is_heard_first:
            await tell()


async def test_next_delivery_that_overtakes_the_end_of_the_attempt_is_the_next_attempt(bus):
    runs = []

    @bus.listen(WorkedTwice)
    def listener(_event):
        runs.append(1)
        raise RuntimeError("its own")

    store = await bus.queues()
    reader, runner = store.reader("default"), JobRunner(bus)
    await bus.dispatch(WorkedTwice())
    ending = _SlowlyEnding(await _next_taken(reader), is_heard_first=True)
    first = asyncio.create_task(runner.run(ending))
    await asyncio.wait_for(ending.begun.wait(), WAIT_S)
    second = asyncio.create_task(runner.run(await _next_taken(reader)))
    await asyncio.sleep(0)
    assert len(runs) == 1, "only one attempt at a time"
    ending.go_on.set()
    await asyncio.wait_for(asyncio.gather(first, second), WAIT_S)
    (failed,) = await failed_jobs(store)
    assert (failed.error, failed.attempts, len(runs)) == ("RuntimeError", 2, 2)
    await all_done(bus)
    await reader.aclose()


@brief_lease
async def test_retry_that_the_broker_hears_of_after_the_lease_is_not_one_attempt_more(nats_bus):
    bus = nats_bus
    go_on, has_begun_again = asyncio.Event(), asyncio.Event()
    runs = []

    @bus.listen(WorkedTwice)
    async def listener(_event):
        runs.append(1)
        if len(runs) == 2:
            has_begun_again.set()
            await go_on.wait()
        raise RuntimeError("its own")

    store = await bus.queues()
    reader, runner = store.reader("default"), JobRunner(bus)
    await bus.dispatch(WorkedTwice())
    ending = _SlowlyEnding(await _next_taken(reader), is_heard_first=False)
    first = asyncio.create_task(runner.run(ending))
    await asyncio.wait_for(ending.begun.wait(), WAIT_S)
    second = asyncio.create_task(runner.run(await _next_taken(reader)))
    ending.go_on.set()
    await asyncio.wait_for(first, WAIT_S)
    await asyncio.wait_for(has_begun_again.wait(), WAIT_S)
    third = await _next_taken(reader)
    assert third.attempt == 3
    await runner.run(third)
    go_on.set()
    await asyncio.wait_for(second, WAIT_S)
    (failed,) = await failed_jobs(store)
    assert (failed.error, failed.attempts, len(runs)) == ("RuntimeError", 2, 2)
    await all_done(bus)
    await reader.aclose()


@brief_lease
async def test_delivery_that_waits_for_the_end_of_a_job_that_is_done_is_not_run(nats_bus):
    bus, runs = nats_bus, []
    bus.listen(WorkedOn)(runs.append)
    await bus.dispatch(WorkedOn(n=1))
    first, second = await _taken_twice(bus)
    runner = JobRunner(bus)
    ending = _SlowlyEnding(first, is_heard_first=False)
    ended = asyncio.create_task(runner.run(ending))
    await asyncio.wait_for(ending.begun.wait(), WAIT_S)
    again = asyncio.create_task(runner.run(second))
    await asyncio.sleep(0)
    ending.go_on.set()
    await asyncio.wait_for(asyncio.gather(ended, again), WAIT_S)
    assert len(runs) == 1
    assert (runner.counters.done, runner.counters.failed) == (1, 0)
    await all_done(bus)


@brief_lease
async def test_job_that_its_earlier_worker_finishes_is_not_declared_lost(nats_bus):
    bus = nats_bus
    await bus.dispatch(WorkedOnce(secret="x"))
    first, second = await _taken_twice(bus)
    await first.done()
    runner = JobRunner(bus)
    await runner.run(second)
    assert runner.counters.failed == 0
    assert await (await bus.queues()).failure_count() == 0


@brief_lease
async def test_job_handed_back_after_another_worker_finished_it_is_not_queued_again(nats_bus):
    bus = nats_bus
    await bus.dispatch(WorkedOn(n=1))
    first, second = await _taken_twice(bus)
    await second.done()
    await first.hand_back()
    (stats,) = await (await bus.queues()).stats()
    assert (stats.ready, stats.taken) == (0, 0)


class _BriefStore:
    """A store whose runner extends leases sooner than it has to, and so may stand still."""

    lease = BRIEF_S

    def __init__(self, store: QueueStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("lease", [6.0])
async def test_job_longer_than_the_lease_is_not_given_to_another(nats_bus):
    bus, runs = nats_bus, []

    @bus.listen(WorkedOn)
    async def listener(event):
        runs.append(event.n)
        await asyncio.sleep(bus.settings.queue_lease + 1)

    await bus.dispatch(WorkedOn(n=1))
    store = await bus.queues()
    reader, runner = store.reader("default"), JobRunner(bus)
    leases = asyncio.create_task(runner.keep_leases(_BriefStore(store)))
    running = asyncio.create_task(runner.run(await _next_taken(reader)))
    while not running.done():
        assert await reader.fetch(1) == []
        await asyncio.wait([running], timeout=0.1)
    assert (runs, runner.counters.done) == ([1], 1)
    await all_done(bus)
    leases.cancel()
    await reader.aclose()


# Exceptions of listeners that cannot be shown, or are BaseExceptions


class Panic(BaseException):
    """As a Rust extension raises it."""


class Unshowable(Exception):
    def __str__(self) -> str:
        raise SystemExit("its text")

    __repr__ = __str__


class UnshowableRejection(JobRejected):
    def __str__(self) -> str:
        raise ValueError("its text")


def _deep() -> Exception:
    exc: Exception = ValueError("seven")
    for _ in range(3000):
        exc = ExceptionGroup("deep", [exc, Unshowable()])
    return exc


def _noted() -> Exception:
    exc = ValueError("noted")
    exc.add_note("\udcff" * 10_000)
    return exc


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (Unshowable, "Unshowable", "cannot be shown"),
        (UnshowableRejection, "UnshowableRejection", "cannot be shown"),
        (lambda: ValueError("\ud800"), "ValueError", "\\ud800"),
        (lambda: ValueError("\U0001f600" * 1_000_000), "ValueError", "\U0001f600"),
        (lambda: type("\u4e00" * 30_000, (Exception,), {})("x" * 5000), "\u4e00", "xxx"),
        (_deep, "ExceptionGroup", "deep"),
        (_noted, "ValueError", "noted"),
        (lambda: SystemExit(3), "SystemExit", "3"),
        (lambda: Panic("seven"), "Panic", "seven"),
        (GeneratorExit, "GeneratorExit", ""),
        (lambda: BaseExceptionGroup("two", [Panic(), ValueError("eight")]), "Group", "eight"),
    ],
    ids=[
        "text", "rejection", "surrogate", "long", "name", "deep", "notes", "exit", "panic",
        "generator", "group",
    ],
)  # fmt: skip
async def test_any_exception_of_a_listener_is_stored_as_the_reason_of_the_failure(
    bus, make, error, expected, monkeypatch
):
    # pytest-xdist cannot send a captured log that holds lone surrogates.
    monkeypatch.setattr(logging.getLogger("eventbus"), "propagate", False)
    ended = []
    bus.listen(WorkedFirst)(lambda event: ended.append(event.n))

    @bus.listen(WorkedOnce)
    async def listener(_event):
        await asyncio.sleep(0)
        raise make()

    await bus.dispatch(WorkedOnce(secret="x"), *(WorkedFirst(n=n) for n in range(3)))
    async with working(bus, queues=("default", "high")) as worker:
        (failed,) = await failures(bus)
        await all_done(bus)
    assert error in failed.error
    assert expected in failed.message
    assert failed.attempts == 1
    assert sorted(ended) == [0, 1, 2]
    assert (worker.counters.done, worker.counters.failed) == (3, 1)
    assert worker.counters.handed_back == 0


def test_failure_of_a_foreign_job_with_a_huge_event_name_is_bounded():
    job = msgspec.structs.replace(job_of(WorkedOnce(secret="x")), event="\U0001f600" * 100_000)
    failed = failed_job(
        ValueError("\U0001f600" * 5000), job=job, key="k", queue="default", attempts=1
    )
    assert len(failure_of(failed, b"").info) <= 15_000


async def test_worker_cancelled_again_and_again_hands_each_job_back_once(bus):
    begun = []

    @bus.listen(WorkedOnce)
    async def listener(_event):
        begun.append(1)
        await asyncio.Event().wait()

    await bus.dispatch(*(WorkedOnce(secret=str(n)) for n in range(3)))
    worker = Worker(bus)
    task = asyncio.create_task(worker.run())

    async def all_begun() -> bool:
        return len(begun) == 3

    await until(all_begun)
    for _ in range(50):
        task.cancel()
        await asyncio.sleep(0.001)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, WAIT_S)
    store = await bus.queues()
    (stats,) = await store.stats()
    assert (stats.ready, stats.taken) == (3, 0)
    taken = await store.reader("default").fetch(10)
    assert [each.attempt for each in taken] == [1, 1, 1]
    assert await store.failure_count() == 0


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 13, 30])
async def test_retry_that_is_cancelled_leaves_the_job_in_one_place(bus, turns):
    bus.listen(WorkedOnce)(lambda _event: 1 / 0)
    await bus.dispatch(WorkedOnce(secret="x"))
    async with working(bus):
        (failed,) = await failures(bus)
    store = await bus.queues()
    task = asyncio.create_task(store.retry(failed.id))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (stats,) = await store.stats()
    assert stats.ready + await store.failure_count() == 1


# Jobs that nothing in the worker listens to


async def test_job_without_a_listener_is_done_with_a_warning(bus, caplog):
    await bus.dispatch(WorkedOnce(secret="hunter2"))
    async with working(bus) as worker:
        await all_done(bus)
    assert worker.counters.done == 1
    assert "'WorkedOnce'" in caplog.text
    assert "has no listener in this worker" in caplog.text
    assert "hunter2" not in caplog.text


async def test_job_without_a_listener_fails_at_once_where_the_settings_say_so(bus, caplog):
    bus.settings = msgspec.structs.replace(bus.settings, queue_no_listener="fail")
    received = []
    bus.listen(WorkedOn)(received.append)
    await bus.dispatch(WorkedBriefly(n=1), WorkedOn(n=2), WorkedLast(n=3))
    async with working(bus, queues=("default", "low")):
        (failed,) = await failures(bus)
        await all_done(bus)
    assert (failed.error, failed.attempts) == ("eventbus.errors.NoListener", 1)
    assert [event.n for event in received] == [2, 3]


# Processes


def _app() -> Any:
    return load_application(HERE / "queue_app.py")


class Processes:
    """Workers, and the reports of the application in them."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.reports: list[tuple[str, int, int]] = []
        self._changed = asyncio.Event()
        self._all: list[asyncio.subprocess.Process] = []

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        command = ("queue", "work", "--app", "queue_app", *options)
        return await self.run("from eventbus.cli.app import main; main()", arguments=command)

    async def run(self, *lines: str, arguments: tuple[str, ...] = ()) -> asyncio.subprocess.Process:
        settings = self.bus.settings
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "\n".join(lines), *arguments,
            cwd=HERE,
            env={
                **os.environ,
                "PYTHONPATH": str(HERE.parent.parent),
                "NATS_URL": settings.nats_url,
                "BROADCAST_CHANNELS_PREFIX": settings.namespace,
                "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
                "BROADCAST_QUEUE_LEASE": str(settings.queue_lease),
                "BROADCAST_FAILED_BYTES": str(settings.failed_bytes),
            },
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self._all.append(process)
        return process

    def hear(self, delivery: Delivery) -> None:
        message = msgspec.json.decode(delivery.payload)
        self.reports.append((message["event"], message["data"]["n"], message["data"]["pid"]))
        self._changed.set()

    async def until_reported(self, what: str, count: int = 1) -> list[tuple[int, int]]:
        """The reported numbers and process ids, when there are as many."""
        async with asyncio.timeout(WAIT_S):
            while len(found := [(n, pid) for word, n, pid in self.reports if word == what]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found

    async def end(self) -> None:
        for process in self._all:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest_asyncio.fixture
async def processes(nats_bus) -> AsyncIterator[Processes]:
    _app()
    processes = Processes(nats_bus)
    await nats_bus.driver.subscribe(nats_bus.subjects.live("told"), processes.hear)
    yield processes
    await processes.end()


@pytest.fixture
def go_on(tmp_path) -> Path:
    """The file that lets the listeners of WorkerWaits end, once a test creates it."""
    return tmp_path / "go-on"


@starts_processes
@brief_lease
async def test_job_of_a_worker_killed_in_the_middle_is_done_by_another(processes, go_on):
    bus = processes.bus
    first = await processes.start()
    await bus.dispatch(_app().WorkerWaits(n=1, until=str(go_on)))
    assert await processes.until_reported("begun") == [(1, first.pid)]
    first.kill()
    await first.wait()
    second = await processes.start()
    go_on.touch()
    assert await processes.until_reported("ended") == [(1, second.pid)]
    await all_done(bus)
    assert await (await bus.queues()).failure_count() == 0


@starts_processes
async def test_sigterm_lets_a_worker_finish_what_it_holds(processes, go_on):
    bus = processes.bus
    worker = await processes.start("--concurrency", "1")
    await bus.dispatch(*(_app().WorkerWaits(n=n, until=str(go_on)) for n in range(2)))
    await processes.until_reported("begun")
    worker.send_signal(signal.SIGTERM)
    go_on.touch()
    assert await asyncio.wait_for(worker.wait(), WAIT_S) == 0
    assert [n for n, _ in await processes.until_reported("ended")] == [0]
    assert [each.ready for each in await (await bus.queues()).stats()] == [1]


@starts_processes
@pytest.mark.parametrize("options", [("--grace", "0"), ("--grace", "60")])
async def test_worker_that_may_not_finish_hands_its_job_back_without_a_try(
    processes, go_on, options
):
    bus = processes.bus
    worker = await processes.start(*options)
    await bus.dispatch(_app().WorkerWaitsOnce(n=1, until=str(go_on)))
    await processes.until_reported("begun")
    worker.send_signal(signal.SIGINT)
    if options[1] == "60":
        worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), WAIT_S) == 0
    (stats,) = await (await bus.queues()).stats()
    assert (stats.ready, stats.taken) == (1, 0), "at once, not when a lease ends"
    (taken,) = await (await bus.queues()).reader("default").fetch(1)
    assert taken.attempt == 1


@starts_processes
@longer_lease
async def test_job_that_kills_each_of_its_workers_ends_as_failed(processes):
    bus = processes.bus
    await bus.dispatch(_app().WorkerDies(n=1))
    for count in (1, 2):
        worker = await processes.start()
        await processes.until_reported("dying", count)
        assert await asyncio.wait_for(worker.wait(), WAIT_S) == -signal.SIGKILL
    await processes.start()
    (failed,) = await failures(bus)
    assert (failed.error, failed.attempts) == ("eventbus.errors.WorkerLost", 2)
    assert len(await processes.until_reported("dying", 2)) == 2


@starts_processes
async def test_listener_that_calls_sys_exit_ends_only_its_own_job(processes, go_on):
    bus = processes.bus
    app = _app()
    jobs = [app.WorkerWaits(n=n, until=str(go_on)) for n in range(3)]
    worker = await processes.start()
    await bus.dispatch(*jobs, app.WorkerExits(n=7))
    (failed,) = await failures(bus)
    assert (failed.error, failed.message, failed.attempts) == ("SystemExit", "job 7", 1)
    go_on.touch()
    await all_done(bus)
    assert sorted(n for n, _ in await processes.until_reported("ended", 3)) == [0, 1, 2]
    assert len(await processes.until_reported("begun", 3)) == 3
    assert worker.returncode is None
    worker.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(worker.wait(), WAIT_S) == 0


@starts_processes
async def test_program_that_ends_while_its_worker_works_leaves_each_job_once(processes, go_on):
    """asyncio.run() then cancels every task at once, those of the NATS client too."""
    bus = processes.bus
    await bus.dispatch(*(_app().WorkerWaits(n=n, until=str(go_on)) for n in range(3)))
    program = await processes.run(
        "import asyncio, queue_app",
        "from eventbus import EventBus, Worker",
        "async def main():",
        "    bus = EventBus.from_env()",
        "    await bus.open()",
        "    worker = asyncio.create_task(Worker(bus).run())",
        "    await asyncio.to_thread(input)",
        "asyncio.run(main())",
    )
    await processes.until_reported("begun", 3)
    program.stdin.close()
    assert await asyncio.wait_for(program.wait(), WAIT_S) == 1, "input() raises EOFError"
    (stats,) = await (await bus.queues()).stats()
    assert stats.ready + stats.taken == 3


@starts_processes
@brief_lease
async def test_job_of_a_suspended_worker_gets_its_second_try_and_is_not_declared_lost(
    processes, go_on
):
    bus = processes.bus
    first = await processes.start()
    await bus.dispatch(_app().WorkerWaitsTwice(n=1, until=str(go_on)))
    assert await processes.until_reported("begun") == [(1, first.pid)]
    first.send_signal(signal.SIGSTOP)
    go_on.touch()
    second = await processes.start()
    assert await processes.until_reported("ended") == [(1, second.pid)]
    first.send_signal(signal.SIGCONT)
    assert await processes.until_reported("ended", 2) == [(1, second.pid), (1, first.pid)]
    await all_done(bus)
    assert await (await bus.queues()).failure_count() == 0


@starts_processes
@brief_lease
async def test_job_declared_lost_that_its_suspended_worker_ends_is_no_longer_failed(
    processes, go_on
):
    bus = processes.bus
    first = await processes.start()
    await bus.dispatch(_app().WorkerWaitsOnce(n=1, until=str(go_on)))
    await processes.until_reported("begun")
    first.send_signal(signal.SIGSTOP)
    await processes.start()
    (failed,) = await failures(bus)
    assert (failed.error, failed.attempts) == ("eventbus.errors.WorkerLost", 1)
    go_on.touch()
    first.send_signal(signal.SIGCONT)
    assert await processes.until_reported("ended") == [(1, first.pid)]
    await none_failed(bus)
    await all_done(bus)
    assert len(await processes.until_reported("begun")) == 1


@starts_processes
@longer_lease
async def test_redelivery_that_a_resumed_worker_takes_itself_is_not_a_try_of_its_own(
    processes, go_on
):
    bus = processes.bus
    worker = await processes.start()
    await bus.dispatch(_app().WorkerFails(n=1, until=str(go_on)))
    await processes.until_reported("begun")
    worker.send_signal(signal.SIGSTOP)
    go_on.touch()
    await asyncio.sleep(bus.settings.queue_lease + 1)
    worker.send_signal(signal.SIGCONT)
    (failed,) = await failures(bus)
    assert (failed.error, failed.attempts) == ("RuntimeError", 2)
    assert len(await processes.until_reported("begun", 2)) == 2
    await all_done(bus)


@starts_processes
@brief_lease
async def test_job_that_an_idle_suspended_worker_took_is_done_in_the_end(processes):
    bus = processes.bus
    app = _app()
    first = await processes.start()
    await bus.dispatch(app.WorkerWaitsOnce(n=1))
    await processes.until_reported("ended")
    await all_done(bus)
    first.send_signal(signal.SIGSTOP)
    await bus.dispatch(app.WorkerWaitsOnce(n=2), app.WorkerWaitsOnce(n=3))
    await processes.start()
    store = await bus.queues()

    async def each_is_done_or_lost() -> bool:
        return len(await processes.until_reported("ended")) + await store.failure_count() >= 3

    await until(each_is_done_or_lost)
    first.send_signal(signal.SIGCONT)
    assert sorted(n for n, _ in await processes.until_reported("ended", 3)) == [1, 2, 3]
    await none_failed(bus)
    await all_done(bus)
    assert len(await processes.until_reported("begun", 3)) == 3


@starts_processes
@brief_lease
async def test_no_job_is_lost_when_workers_are_killed_again_and_again(processes):
    bus = processes.bus
    jobs = 60
    events = [_app().WorkerPauses(n=n) for n in range(jobs)]
    await bus.dispatch(*events)
    for round_ in range(3):
        victim = await processes.start("--concurrency", "4")
        await processes.until_reported("begun", 8 * (round_ + 1))
        victim.kill()
        await victim.wait()
    await processes.start()

    async def done() -> bool:
        return len({n for word, n, _ in processes.reports if word == "ended"}) == jobs

    await until(done)
    await all_done(bus)
    assert await (await bus.queues()).failure_count() == 0


async def test_worker_that_is_cancelled_again_and_again_still_hands_back_its_jobs(bus):
    begun = asyncio.Event()

    @bus.listen(WorkedOn)
    async def hang(event):
        begun.set()
        await asyncio.Event().wait()

    await WorkedOn(1).dispatch()
    worker = Worker(bus, concurrency=2)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(WAIT_S):
        await begun.wait()
        while not running.done():
            running.cancel()
            await asyncio.sleep(0)
    assert running.cancelled()
    assert worker.counters.handed_back == 1
