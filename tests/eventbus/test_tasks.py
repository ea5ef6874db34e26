"""Background tasks: none fails unnoticed, kept tasks continue, and a shutdown is always
completed."""

import asyncio
import logging
import sys

import pytest

from eventbus import tasks as tasks_module
from eventbus.tasks import Shutdown, Tasks, complete, fault_count


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(tasks_module, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def tasks():
    made = Tasks()
    yield made
    await made.aclose()


class LikeARustPanic(BaseException):
    """Libraries in Rust raise such ones (pyo3's PanicException)."""


FAULTS = [ValueError("broken"), asyncio.CancelledError(), LikeARustPanic(), GeneratorExit()]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_keeper_that_fails_in_any_way_is_restarted_logged_and_counted(tasks, fault, caplog):
    runs, again = [], asyncio.Event()

    async def keep():
        runs.append(True)
        if len(runs) == 1:
            raise fault
        again.set()
        await asyncio.Event().wait()

    before = fault_count()
    with caplog.at_level(logging.ERROR, "eventbus.tasks"):
        tasks.keep(keep, "the keeper")
        async with asyncio.timeout(30):
            await again.wait()
    assert fault_count() == before + 1
    (record,) = caplog.records
    assert record.getMessage().startswith("the keeper failed, and is started again in ")
    assert record.exc_info[1] is fault


async def test_pauses_of_a_keeper_that_fails_all_the_time_grow(tasks, caplog):
    runs = []

    async def keep():
        runs.append(asyncio.get_running_loop().time())
        if len(runs) < 5:
            raise ValueError
        await asyncio.Event().wait()

    tasks.keep(keep, "the keeper")
    async with asyncio.timeout(30):
        while len(runs) < 5:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
    # Of 10, 20, 40 and 80 ms, each at least one half.
    assert runs[-1] - runs[0] >= 0.5 * 0.15
    assert runs[-1] - runs[-2] >= 0.5 * 0.08


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio begins no task at once")
async def test_work_at_once_runs_up_to_what_it_waits_for(tasks, caplog):
    seen, go = [], asyncio.Event()

    async def work(*, waits):
        seen.append(asyncio.current_task())
        if waits:
            await go.wait()
        return waits

    done = tasks.start(work(waits=False), "work", at_once=True)
    assert (seen, done.result(), len(tasks)) == ([done], False, 0)
    waiting = tasks.start(work(waits=True), "work", at_once=True)
    assert seen == [done, waiting]
    assert waiting in tasks
    go.set()
    assert await waiting is True
    assert len(tasks) == 0


@pytest.mark.parametrize("fault", FAULTS[:3], ids=lambda fault: type(fault).__name__)
async def test_fault_of_work_at_once_is_logged_and_counted(tasks, fault, caplog):
    async def work():
        raise fault

    before = fault_count()
    with caplog.at_level(logging.ERROR, "eventbus.tasks"):
        task = tasks.start(work(), "work", at_once=True)
        await asyncio.wait({task})
        await asyncio.sleep(0)
    assert fault_count() == before + 1
    assert len(tasks) == 0
    assert caplog.records[0].getMessage().startswith("work ")


async def test_nothing_starts_at_once_after_the_owner_has_closed(tasks):
    ran = []

    async def work():
        ran.append(True)

    await tasks.aclose()
    assert tasks.start(work(), "work", at_once=True) is None
    assert ran == []


async def test_keeper_that_returns_is_done(tasks, caplog):
    async def keep():
        pass

    await tasks.keep(keep, "the keeper")
    assert len(tasks) == 0
    assert caplog.records == []


@pytest.mark.parametrize("fault", FAULTS[:3], ids=lambda fault: type(fault).__name__)
async def test_task_that_fails_is_logged_and_counted(tasks, fault, caplog):
    async def work():
        raise fault

    before = fault_count()
    with caplog.at_level(logging.ERROR, "eventbus.tasks"):
        await asyncio.wait({tasks.start(work(), "the work")})
        await asyncio.sleep(0)  # its done callback
    assert fault_count() == before + 1
    assert [record.getMessage().startswith("the work ") for record in caplog.records] == [True]


async def test_being_closed_is_not_a_fault(caplog):
    tasks, before = Tasks(), fault_count()
    tasks.start(asyncio.Event().wait(), "one")
    tasks.keep(asyncio.Event().wait, "another")
    await tasks.aclose()
    assert len(tasks) == 0
    assert fault_count() == before
    assert caplog.records == []


async def test_nothing_is_started_once_the_owner_has_closed():
    tasks, dropped = Tasks(on_dropped=lambda: dropped.append(True)), []
    await tasks.aclose()
    assert tasks.start(asyncio.Event().wait(), "late") is None
    assert tasks.keep(asyncio.Event().wait, "late") is None
    assert dropped == [True]


async def test_close_is_completed_although_its_caller_is_cancelled():
    tasks, ended, go = Tasks(), [], asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await go.wait()
            ended.append(True)

    async def close():
        await tasks.aclose()
        ended.append("not reached")

    tasks.start(work(), "work")
    await asyncio.sleep(0)
    closing = asyncio.create_task(close())
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()  # it waits for the end of the shutdown, cancelled or not
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == [True]
    await tasks.aclose()


async def test_concurrent_callers_share_one_shutdown():
    shutdown, runs, go = Shutdown(), [], asyncio.Event()

    async def close():
        runs.append("begun")
        await go.wait()
        runs.append("ended")

    callers = [asyncio.create_task(shutdown.run(close)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    callers[0].cancel()
    go.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert runs == ["begun", "ended"]
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]
    await shutdown.run(close)
    assert runs == ["begun", "ended"]


async def test_every_caller_of_a_shutdown_that_fails_learns_of_it():
    shutdown = Shutdown()

    async def close():
        raise OSError("disk")

    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            await shutdown.run(close)


async def test_task_may_close_its_own_owner():
    tasks, order = Tasks(), []

    async def other():
        try:
            await asyncio.Event().wait()
        finally:
            order.append("the other has ended")

    async def work():
        await tasks.aclose()
        order.append("the owner is closed")

    tasks.start(other(), "the other")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.start(work(), "the work")
    assert order == ["the other has ended", "the owner is closed"]


async def test_task_that_ignores_its_cancellation_holds_a_close_up_for_a_bounded_time(
    monkeypatch, caplog
):
    monkeypatch.setattr(tasks_module, "CANCEL_GRACE_S", 0.05)
    tasks, go = Tasks(), asyncio.Event()

    async def work():
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    stubborn = tasks.start(work(), "the stubborn one")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.aclose()
    assert "the stubborn one ignored its cancellation and still runs" in caplog.text
    go.set()
    await stubborn


async def test_task_that_closes_its_owner_while_that_closes_does_not_wait_for_itself():
    tasks, order = Tasks(), []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await tasks.aclose()
            order.append("the task has ended")

    tasks.start(work(), "the work")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.aclose()
    assert order == ["the task has ended"]


async def test_shutdown_leaves_its_first_caller_alone_however_deep_its_tasks_are():
    inner, ended = Tasks(), asyncio.Event()
    outer = Shutdown(inner)

    async def close():
        await asyncio.gather(inner.aclose())

    async def work():
        await outer.run(close)
        await outer.run(close)
        ended.set()

    inner.start(work(), "the work")
    async with asyncio.timeout(30):
        await ended.wait()
        await outer.run(close)
        while len(inner):  # noqa: ASYNC110 - its done callback has no event
            await asyncio.sleep(0)


async def test_task_that_its_shutdown_waits_for_may_call_it_too():
    tasks, order = Tasks(), []
    shutdown = Shutdown(tasks)

    async def close():
        await tasks.join(30)
        order.append("closed")

    async def work():
        await asyncio.sleep(0)  # until the shutdown has begun
        await asyncio.sleep(0)
        assert shutdown.has_begun
        await shutdown.run(close)
        order.append("returned")

    tasks.start(work(), "the work")
    async with asyncio.timeout(30):
        await shutdown.run(close)
    assert order == ["returned", "closed"]


async def test_step_is_completed_although_its_caller_is_cancelled():
    steps, go = [], asyncio.Event()

    async def step():
        steps.append("begun")
        await go.wait()
        steps.append("ended")

    caller = asyncio.create_task(complete(step()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps == ["begun", "ended"]


async def test_step_that_does_not_end_in_time_is_cancelled_and_logged(caplog):
    cancelled = asyncio.Event()

    async def step():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    caller = asyncio.create_task(complete(step(), within=0.05))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(30):
        await cancelled.wait()
    assert "step did not end within 0.05 s and is cancelled" in caplog.text


async def test_result_and_error_of_a_step_reach_its_caller():
    async def step(fault=None):
        if fault is not None:
            raise fault
        return 7

    assert await complete(step()) == 7
    with pytest.raises(OSError, match="disk"):
        await complete(step(OSError("disk")))


async def test_error_of_a_step_whose_caller_was_cancelled_is_logged_and_counted(caplog):
    go = asyncio.Event()

    async def step():
        await go.wait()
        raise OSError("disk")

    before = fault_count()
    caller = asyncio.create_task(complete(step()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert fault_count() == before + 1
    assert "disk" in caplog.text
