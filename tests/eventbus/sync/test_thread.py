"""Calls from threads into an event loop."""

import asyncio
import contextvars
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from eventbus.errors import BusStateError
from eventbus.sync import thread as sync_thread
from eventbus.sync.thread import LoopThread, leave_behind

WAIT_S = 30
variable = contextvars.ContextVar("variable", default="nothing")


async def _nothing():
    pass


@pytest.fixture
def thread():
    thread = LoopThread()
    yield thread
    _end(thread)


def _end(thread):
    thread.start_ending(_nothing)
    thread.wait_until_ended()


class Gate:
    """Blocks the loop from the time it is `reached` until it is `opened`."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()

    async def block(self):
        self.reached.set()
        assert self.opened.wait(WAIT_S)


def test_each_of_many_threads_gets_its_own_results_in_its_own_context(thread):
    def call(number):
        variable.set(number)
        for turn in range(100):

            async def work(turn=turn):
                await asyncio.sleep(0)
                return variable.get(), turn

            assert thread.calls.run(work) == (number, turn)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(16)))


def test_variable_that_is_left_behind_is_none_in_calls_and_unchanged_for_the_caller(
    thread, monkeypatch
):
    monkeypatch.setattr(sync_thread, "_left_behind", [])
    leave_behind(variable)
    variable.set("mine")

    async def read():
        return variable.get()

    assert thread.calls.run(read) is None
    assert thread.calls.submit(read).result(WAIT_S) is None
    assert variable.get() == "mine"


def test_calls_that_come_while_the_loop_is_busy_wake_it_once_and_start_in_order(thread):
    gate, started, woken = Gate(), [], []

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, callback, *args, **kwargs):
            woken.append(callback)
            return super().call_soon_threadsafe(callback, *args, **kwargs)

    async def main():
        calls = type(thread.calls)(asyncio.get_running_loop())

        def from_other_threads():
            futures = [calls.submit(gate.block)]
            assert gate.reached.wait(WAIT_S)
            woken.clear()
            for number in range(5):

                async def start(number=number):
                    started.append(number)

                futures.append(calls.submit(start))
            assert len(woken) == 1
            gate.opened.set()
            for future in futures:
                future.result(WAIT_S)

        other = threading.Thread(target=from_other_threads)
        other.start()
        while other.is_alive():  # noqa: ASYNC110 - it is a thread
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert started == [0, 1, 2, 3, 4]


def test_wait_that_ends_early_cancels_the_work(thread):
    cancelled = threading.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        thread.calls.run(work, 0.2)
    assert cancelled.wait(WAIT_S)


def test_call_that_was_cancelled_before_it_started_never_runs(thread):
    gate, ran = Gate(), []

    async def work():
        ran.append(True)

    blocking = thread.calls.submit(gate.block)
    assert gate.reached.wait(WAIT_S)
    assert thread.calls.submit(work).cancel()
    gate.opened.set()
    blocking.result(WAIT_S)
    thread.calls.run(_nothing)
    assert not ran


def test_calls_are_refused_after_the_end_and_those_in_the_queue_with_it(thread):
    gate, ran = Gate(), []

    async def work():
        ran.append(True)

    blocking = thread.calls.submit(gate.block)
    assert gate.reached.wait(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        queued, created = thread.calls.submit(work), threading.Event()

        async def never():
            ran.append(True)

        def create():
            created.set()
            return never()

        waiting = pool.submit(thread.calls.run, create)
        assert created.wait(WAIT_S)
        thread.calls.refuse()
        for future in (queued, waiting):
            with pytest.raises((BusStateError, CancelledError)):
                future.result(WAIT_S)
        with pytest.raises(BusStateError, match="closed"):
            thread.calls.run(work)
    gate.opened.set()
    blocking.result(WAIT_S)
    assert not ran


def test_exit_that_a_call_raises_is_its_callers_and_the_loop_goes_on(thread):
    async def leave():
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        thread.calls.run(leave)
    thread.calls.run(_nothing)


def test_thread_that_takes_no_calls_can_be_finished(caplog):
    thread = LoopThread()
    thread.calls.refuse()
    for _ in range(50):
        with pytest.raises(BusStateError, match="closed"):
            thread.calls.run(_nothing)
    _end(thread)
    assert "has ended before its buses were closed" in caplog.text


def test_call_after_the_end_of_the_thread_is_refused():
    thread = LoopThread()
    _end(thread)
    for _ in range(3):
        with pytest.raises(BusStateError, match="closed"):
            thread.calls.run(_nothing)
