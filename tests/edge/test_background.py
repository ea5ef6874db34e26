"""Tasks beside the caller: bounded, their faults logged, none left behind."""

import asyncio
import logging

import pytest

from eventbus_edge.background import Background


class Dropped:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1


@pytest.fixture
def dropped():
    return Dropped()


async def test_work_runs_beside_the_caller(dropped):
    background, done = Background(1, dropped), asyncio.Event()

    async def work():
        done.set()

    assert background.start(work(), "work") is not None
    assert not done.is_set()
    await done.wait()
    assert dropped.count == 0


async def test_work_beyond_the_bound_is_not_started_and_is_counted(dropped):
    background, go, ran = Background(2, dropped), asyncio.Event(), []

    async def work(name):
        ran.append(name)
        await go.wait()

    started = [background.start(work(name), name) is not None for name in "abc"]
    assert started == [True, True, False]
    assert dropped.count == 1
    await asyncio.sleep(0)
    assert ran == ["a", "b"]
    await background.aclose()


async def test_work_that_has_ended_makes_room(dropped):
    background = Background(1, dropped)
    for _ in range(3):
        done = asyncio.Event()

        async def work(done=done):
            done.set()

        assert background.start(work(), "work")
        await done.wait()
        await asyncio.sleep(0)  # its done callback
    assert dropped.count == 0


async def test_a_fault_is_logged_with_what_it_was_and_harms_no_other(dropped, caplog):
    background, done = Background(2, dropped), asyncio.Event()

    async def fail():
        raise ValueError("broken")

    async def work():
        await asyncio.sleep(0)
        done.set()

    with caplog.at_level(logging.ERROR, "eventbus.tasks"):
        background.start(fail(), "the failing one")
        background.start(work(), "the other")
        await done.wait()
    (record,) = caplog.records
    assert record.getMessage() == "the failing one failed"
    assert isinstance(record.exc_info[1], ValueError)
    assert background.start(work(), "another")  # the failed one holds no place
    await background.aclose()


async def test_closing_cancels_what_runs_and_waits_for_its_end(dropped, caplog):
    background, ended = Background(2, dropped), []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    background.start(work(), "work")
    await asyncio.sleep(0)
    await background.aclose()
    assert ended == [True]
    assert caplog.records == []  # being cancelled is not a fault
