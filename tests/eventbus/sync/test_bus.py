"""The blocking bus: from scripts, threads and forked processes, on real servers."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import msgspec
import pytest

from eventbus import EventBus, sync
from eventbus.broadcasting import broadcast
from eventbus.bus import BusState
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import (
    BusStateError,
    ConfigError,
    ConnectionFailed,
    EventFieldError,
    InvalidChannel,
)
from eventbus.events import Event, ShouldBroadcast, ShouldQueue, default_listeners
from eventbus.sync import bus as sync_bus, thread as sync_thread
from eventbus.sync.process import Buses
from eventbus.testing import fake

MEMORY = Settings(driver="memory")
WAIT_S = 30


class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="sync.shipped"):
    order_id: int


class Billed(Event, ShouldBroadcast, ShouldQueue, channel="orders.{order_id}",
             name="sync.billed", queue="bills", after_commit=True):  # fmt: skip
    order_id: int


@pytest.fixture(autouse=True)
def _closed():
    yield
    sync.close()
    sync.configure(MEMORY)


async def _stored(settings, channel):
    """The data of the messages that a channel has."""
    async with EventBus(msgspec.structs.replace(settings, history_messages=1000)) as bus:
        page = await bus.driver.read(bus.subjects.live(channel), after=None, limit=1000)
        return [json.loads(message.payload)["data"] for message in page.messages]


def _script(settings, code, **environ):
    """Run a program with the settings of a test's server; returns its output."""
    program = subprocess.Popen(
        # Since 3.12, Python warns of each fork in a process with threads.
        [
            sys.executable,
            "-W",
            "always",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            textwrap.dedent(code),
        ],
        env={
            **os.environ,
            "NATS_URL": settings.nats_url,
            "BROADCAST_CHANNELS_PREFIX": settings.namespace,
            "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = program.communicate(timeout=150)
    except BaseException:
        os.killpg(program.pid, signal.SIGKILL)  # with the children that it forked
        program.communicate()
        raise
    assert (program.returncode, err) == (0, "")
    return out


PROGRAM = """
    import os, sys, threading
    from eventbus import Event, ShouldBroadcast, sync

    class Shipped(Event, ShouldBroadcast, channel="orders.1", name="sync.shipped"):
        order_id: int

    def in_child(work):
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            return
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
"""


def test_bus_stores_what_it_dispatches_and_publishes(settings):
    with sync.EventBus(settings) as bus:
        (first,) = bus.dispatch(Shipped(order_id=7))
        second = bus.publish("orders.7", "note", {"text": "hello"}, id="n-1")
        again = bus.publish("orders.7", "note", {"text": "hello"}, id="n-1")
    assert (first.channel, second.id) == ("orders.7", "n-1")
    assert first.offset < second.offset == again.offset
    assert again.duplicate
    assert asyncio.run(_stored(settings, "orders.7")) == [{"order_id": 7}, {"text": "hello"}]


def test_errors_are_those_of_the_async_bus():
    with sync.EventBus(MEMORY) as bus:
        with pytest.raises(InvalidChannel):
            bus.publish("a b", "x", None)
        with pytest.raises(ConfigError):
            bus.using("carrier-pigeon")
        with pytest.raises(EventFieldError):
            bus.dispatch(Shipped(order_id="no number"))


def test_bus_goes_through_its_states_once():
    bus = sync.EventBus(MEMORY)
    assert bus.state is BusState.UNOPENED
    with pytest.raises(BusStateError, match="not open yet"):
        bus.publish("general", "x", None)
    with bus:
        assert bus.state is BusState.OPEN
        with pytest.raises(BusStateError, match="cannot be opened twice"):
            bus.open()
    assert bus.state is BusState.CLOSED
    bus.close()
    with pytest.raises(BusStateError, match="closed"):
        bus.publish("general", "x", None)
    with pytest.raises(BusStateError, match="cannot be opened twice"):
        bus.open()


def test_bus_that_cannot_open_is_closed():
    bus = sync.EventBus(Settings(nats_url="nats://127.0.0.1:1", connect_timeout=0.3))
    with pytest.raises(ConnectionFailed):
        bus.open()
    assert bus.state is BusState.CLOSED


def test_bus_publishes_through_another_driver(capsys):
    with sync.EventBus(MEMORY) as bus:
        bus.using("log").publish("general", "note", {"text": "hello"})
        bus.using("null").dispatch(Shipped(order_id=1))
    assert '"general"' in capsys.readouterr().out


def test_threads_share_a_bus_and_lose_nothing(settings):
    with sync.EventBus(settings) as bus, ThreadPoolExecutor(8) as pool:
        receipts = list(
            pool.map(lambda number: bus.dispatch(Shipped(order_id=1))[0].offset, range(80))
        )
    assert len(set(receipts)) == 80


def test_event_goes_through_the_open_bus_that_was_opened_last(settings):
    other = Settings(driver="null")
    with sync.EventBus(other), sync.EventBus(settings):
        (receipt,) = Shipped(order_id=3).dispatch_sync()
    assert receipt.offset is not None
    assert asyncio.run(_stored(settings, "orders.3")) == [{"order_id": 3}]


def test_default_bus_opens_at_first_use_with_the_configured_settings(settings):
    sync.configure(settings)
    (receipt,) = Shipped(order_id=5).dispatch_sync()
    broadcast("orders.5", "note", {"text": "hello"}).send_sync()
    assert Shipped(order_id=5).dispatch_if_sync(False) == ()
    assert Shipped(order_id=5).dispatch_unless_sync(True) == ()
    with pytest.raises(BusStateError, match="already open"):
        sync.configure(MEMORY)
    assert receipt.offset is not None
    assert asyncio.run(_stored(settings, "orders.5")) == [{"order_id": 5}, {"text": "hello"}]


def test_default_bus_takes_settings_that_were_configured_beside_another_open_bus(settings):
    with sync.EventBus(MEMORY):
        sync.configure(settings)
    (receipt,) = Shipped(order_id=6).dispatch_sync()
    assert asyncio.run(_stored(settings, "orders.6")) == [{"order_id": 6}]
    assert receipt.offset is not None


def test_default_bus_opens_again_after_close(settings):
    sync.configure(settings)
    (first,) = Shipped(order_id=5).dispatch_sync()
    sync.close()
    (second,) = Shipped(order_id=5).dispatch_sync()
    assert first.offset < second.offset


def test_blocking_call_in_a_running_event_loop_is_refused_with_the_remedy():
    bus = sync.EventBus(MEMORY)

    async def view():
        with pytest.raises(BusStateError, match=r"`await event\.dispatch\(\)`"):
            Shipped(order_id=1).dispatch_sync()
        for call in (broadcast("general", "note").send_sync, bus.open, bus.close):
            with pytest.raises(BusStateError, match="await"):
                call()

    asyncio.run(view())
    with bus:

        async def other():
            with pytest.raises(BusStateError, match=r"await its dispatch\(\)"):
                bus.dispatch(Shipped(order_id=1))

        asyncio.run(other())


def test_calls_that_wait_for_a_broker_share_one_attempt_and_the_next_tries_again():
    sync.configure(Settings(nats_url="nats://127.0.0.1:1", connect_timeout=1.0))

    def fail(_number):
        with pytest.raises(ConnectionFailed):
            Shipped(order_id=1).dispatch_sync()

    begun = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(fail, range(20)))
    assert time.monotonic() - begun < 10  # one after the other, they would take 20 s
    fail(0)


def test_threads_of_an_application_use_its_bus_and_not_the_default_one():
    sync.configure(Settings(driver="null"))
    assert Shipped(order_id=1).dispatch_sync()[0].offset is None  # the default bus is open

    async def application():
        async with EventBus(MEMORY) as bus:
            with sync.shared(bus):
                (receipt,) = await asyncio.to_thread(Shipped(order_id=1).dispatch_sync)
                assert receipt.offset == 1
        with pytest.raises(BusStateError, match="only an open bus"), sync.shared(bus):
            pass

    asyncio.run(application())
    assert Shipped(order_id=1).dispatch_sync()[0].offset is None


def test_fake_records_what_sync_code_sends_and_opens_no_bus():
    sync.configure(Settings(nats_url="nats://127.0.0.1:1", connect_timeout=0.1))
    with fake() as events:
        Shipped(order_id=1).dispatch_sync()
        broadcast("general", "note", {}).send_sync()
        thread = threading.Thread(target=lambda: Shipped(order_id=2).dispatch_sync())
        thread.start()
        thread.join(WAIT_S)
    events.assert_dispatched(Shipped, times=2)
    with pytest.raises(EventFieldError), fake():
        Shipped(order_id="no number").dispatch_sync()


def test_transaction_dispatches_what_it_holds_at_its_end_and_drops_it_when_it_fails():
    driver = MemoryDriver()

    async def jobs():
        return sum(each.ready for each in await driver.queues.stats())

    with sync.EventBus(MEMORY, driver) as bus:
        with bus.transaction():
            bus.dispatch(Billed(order_id=1))
            with bus.transaction():
                Billed(order_id=2).dispatch_sync()
            assert sync.run(jobs) == 0
        assert sync.run(jobs) == 2
        with pytest.raises(EventFieldError), bus.transaction():
            bus.dispatch(Billed(order_id=3), Billed(order_id="no number"))
        assert sync.run(jobs) == 2


def test_listeners_of_the_process_and_of_the_bus_run_by_their_priorities():
    heard = []

    def of_process(event):
        heard.append(("process", event.order_id))

    try:
        with sync.EventBus(MEMORY) as bus:
            Shipped(order_id=1).dispatch_sync()
            default_listeners.listen(Shipped)(of_process)  # also one that comes later
            bus.listeners.listen(Shipped, priority=5)(
                lambda event: heard.append(("bus", event.order_id))
            )
            bus.dispatch(Shipped(order_id=2))
    finally:
        default_listeners.forget(Shipped, of_process)
    assert heard == [("bus", 2), ("process", 2)]


def test_call_that_waits_while_the_module_closes_raises():
    waiting = threading.Event()

    async def forever():
        waiting.set()
        await asyncio.Event().wait()

    def call():
        with pytest.raises(BusStateError, match="closed"):
            sync.run(forever)

    with fake(), ThreadPoolExecutor(1) as pool:
        done = pool.submit(call)
        assert waiting.wait(WAIT_S)
        sync.close()
        done.result(WAIT_S)


def test_closing_while_threads_publish_blocks_nobody(settings):
    sync.configure(settings)
    stop = threading.Event()

    def publish():
        while not stop.is_set():
            with contextlib.suppress(BusStateError):
                Shipped(order_id=1).dispatch_sync()

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(publish)
        for _ in range(30):
            time.sleep(0.01)
            sync.close()
        stop.set()


def test_closing_from_a_listener_is_refused_and_changes_nothing():
    threads = []

    with sync.EventBus(MEMORY) as bus:

        @bus.listeners.listen(Shipped)
        def close(_event):
            with pytest.raises(BusStateError, match="by a listener"):
                sync.close()
            threads.append(threading.current_thread())

        bus.dispatch(Shipped(order_id=1), Shipped(order_id=2))
        bus.dispatch(Shipped(order_id=3))
    sync.close()
    assert threads == [threads[0]] * 3
    assert not threads[0].is_alive()


class SlowToClose(MemoryDriver):
    """Closes once it is `released`."""

    def __init__(self):
        super().__init__()
        self.is_closing, self.released = threading.Event(), threading.Event()
        self.closed = 0
        """How many closes have come to their end."""

    async def aclose(self):
        self.is_closing.set()
        assert await asyncio.to_thread(self.released.wait, WAIT_S)
        await super().aclose()
        self.closed += 1


@pytest.fixture
def slow():
    """A driver that is released when the test ends."""
    driver = SlowToClose()
    yield driver
    driver.released.set()


def _interrupt_after(event):
    """Press Ctrl-C in the main thread, once `event` is set."""

    def press():
        assert event.wait(WAIT_S)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press).start()


CLOSES = {"the bus": lambda bus: bus.close(), "all buses": lambda _bus: sync.close()}


@pytest.mark.parametrize("second", CLOSES)
@pytest.mark.parametrize("first", CLOSES)
def test_all_who_close_wait_for_the_same_close(slow, first, second):
    bus = sync.EventBus(MEMORY, slow)
    bus.open()

    def close(how):
        CLOSES[how](bus)
        return slow.closed

    with ThreadPoolExecutor(2) as pool:
        closes = [pool.submit(close, first)]
        assert slow.is_closing.wait(WAIT_S)
        closes.append(pool.submit(close, second))
        assert not wait(closes, 0.3, FIRST_COMPLETED).done
        slow.released.set()
        assert [each.result(WAIT_S) for each in closes] == [1, 1]


@pytest.mark.parametrize("second", CLOSES)
@pytest.mark.parametrize("first", CLOSES)
def test_close_after_one_that_was_interrupted_goes_on_with_it(slow, first, second):
    bus = sync.EventBus(MEMORY, slow)
    bus.open()
    _interrupt_after(slow.is_closing)
    with pytest.raises(KeyboardInterrupt):
        CLOSES[first](bus)
    threading.Timer(0.3, slow.released.set).start()
    CLOSES[second](bus)
    assert slow.closed == 1


def test_close_that_was_interrupted_goes_on_by_itself_and_ends_its_thread(slow):
    sync.EventBus(MEMORY, slow).open()

    async def where():
        return threading.current_thread()

    thread = sync.run(where)
    _interrupt_after(slow.is_closing)
    with pytest.raises(KeyboardInterrupt):
        sync.close()
    slow.released.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert slow.closed == 1


def test_exit_of_a_program_waits_for_the_close_that_was_interrupted():
    out = _script(
        MEMORY,
        PROGRAM
        + """
    import asyncio, signal
    from eventbus.drivers.memory import MemoryDriver

    class SlowToClose(MemoryDriver):
        async def aclose(self):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.5)
            await super().aclose()
            print("closed", flush=True)

    bus = sync.EventBus(sync.EventBus.from_env().settings, SlowToClose())
    bus.open()
    try:
        bus.close()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """,
        BROADCAST_DRIVER="memory",
    )
    assert out.split() == ["interrupted", "closed"]


def test_child_that_is_forked_during_a_close_does_not_wait_for_it():
    _script(
        MEMORY,
        PROGRAM
        + """
    import asyncio
    from eventbus.config import Settings
    from eventbus.drivers.memory import MemoryDriver

    class SlowToClose(MemoryDriver):
        is_closing, released = threading.Event(), threading.Event()

        async def aclose(self):
            self.is_closing.set()
            await asyncio.to_thread(self.released.wait)
            await super().aclose()

    bus = sync.EventBus(Settings(driver="memory"), SlowToClose())
    bus.open()

    def child():
        bus.close()
        sync.close()
        Shipped(order_id=1).dispatch_sync()
        sync.close()

    closers = [threading.Thread(target=bus.close), threading.Thread(target=sync.close)]
    for closer in closers:
        closer.start()
        SlowToClose.is_closing.wait()
        in_child(child)
    SlowToClose.released.set()
    for closer in closers:
        closer.join()
    """,
        BROADCAST_DRIVER="memory",
    )


def test_event_that_comes_while_all_buses_close_goes_through_a_new_bus(slow):
    sync.configure(MEMORY)
    with ThreadPoolExecutor(1) as pool, sync.EventBus(MEMORY, slow):
        closing = pool.submit(sync.close)
        assert slow.is_closing.wait(WAIT_S)
        assert Shipped(order_id=1).dispatch_sync()[0].offset == 1
        slow.released.set()
        closing.result(WAIT_S)
        assert Shipped(order_id=1).dispatch_sync()[0].offset == 2  # the new bus stays open


def test_close_waits_for_the_new_bus_and_for_those_that_are_still_closing(slow):
    late = SlowToClose()
    sync.EventBus(MEMORY, slow).open()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sync.close)
        assert slow.is_closing.wait(WAIT_S)
        sync.EventBus(MEMORY, late).open()
        second = pool.submit(sync.close)
        assert late.is_closing.wait(WAIT_S)
        late.released.set()
        assert not wait([first, second], 0.3, FIRST_COMPLETED).done
        slow.released.set()
        first.result(WAIT_S)
        second.result(WAIT_S)
    assert (slow.closed, late.closed) == (1, 1)


@pytest.mark.parametrize("call", ["open", "position"])
def test_call_that_begins_before_a_close_and_runs_after_it_opens_no_bus(monkeypatch, call):
    bus, here = sync.EventBus(MEMORY), sync_bus.here
    if call == "position":
        bus.open()

    def close_meanwhile():
        monkeypatch.setattr(sync_bus, "here", here)
        bus.close()
        return here()

    monkeypatch.setattr(sync_bus, "here", close_meanwhile)
    with pytest.raises(BusStateError, match="closed"):
        bus.open() if call == "open" else bus.position("general")
    assert bus.state is BusState.CLOSED
    assert not here().run(_has_opened)


def test_open_that_is_interrupted_leaves_no_bus():
    class NeverOpens(MemoryDriver):
        is_opening, is_closed = threading.Event(), threading.Event()

        async def open(self):
            self.is_opening.set()
            await asyncio.Event().wait()

        async def aclose(self):
            self.is_closed.set()

    bus = sync.EventBus(MEMORY, NeverOpens())
    _interrupt_after(NeverOpens.is_opening)
    with pytest.raises(KeyboardInterrupt):
        bus.open()
    assert NeverOpens.is_closed.wait(WAIT_S)
    assert not sync_bus.here().run(_has_opened)


def test_closing_from_the_loop_that_is_closing_is_refused():
    refused = []

    class Closing(MemoryDriver):
        async def aclose(self):
            with pytest.raises(BusStateError, match="by a listener"):
                sync.close()
            refused.append(True)
            await super().aclose()

    sync.EventBus(MEMORY, Closing()).open()
    sync.close()
    assert refused == [True]


async def _has_opened(buses):
    return buses.has_opened


async def test_buses_that_have_closed_with_their_loop_open_no_other():
    buses = Buses(lambda: MEMORY)
    await buses.ensure_current()
    await buses.close_all()
    with pytest.raises(BusStateError, match="closed while this call was waiting"):
        await buses.ensure_current()


def test_driver_that_fails_to_close_does_not_cut_the_close_of_another(slow):
    class Failing(MemoryDriver):
        async def aclose(self):
            raise OSError("the driver cannot close")

    for driver in (Failing(), slow):
        sync.EventBus(MEMORY, driver).open()
    threading.Timer(0.3, slow.released.set).start()
    with pytest.raises(OSError, match="cannot close"):
        sync.close()
    assert slow.closed == 1


def test_close_that_takes_too_long_is_given_up_by_all_who_wait_for_it(slow, monkeypatch, caplog):
    monkeypatch.setattr("eventbus.sync.process.EXIT_S", 0.5)
    bus = sync.EventBus(MEMORY, slow)
    bus.open()
    with ThreadPoolExecutor(3) as pool:
        closes = [pool.submit(bus.close), pool.submit(sync.close)]
        assert slow.is_closing.wait(WAIT_S)
        closes.append(pool.submit(sync.close))
        for each in closes:
            each.result(WAIT_S)
    assert slow.closed == 0
    assert "did not close within 0.5 s" in caplog.text


def test_configuring_the_same_settings_again_is_harmless():
    sync.configure(MEMORY)
    Shipped(order_id=1).dispatch_sync()
    sync.configure(MEMORY)
    with pytest.raises(BusStateError, match="already open"):
        sync.configure(Settings(driver="null"))


def test_call_in_a_process_without_a_free_file_raises_and_the_next_one_works():
    out = _script(
        MEMORY,
        PROGRAM
        + """
    import resource, contextlib
    files = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open("/dev/null", 0))
    import warnings
    warnings.simplefilter("ignore", ResourceWarning)  # asyncio's loop is half made
    sys.unraisablehook = lambda _: None
    try:
        Shipped(order_id=1).dispatch_sync()
    except OSError as exc:
        print(exc.strerror)
    for file in files:
        os.close(file)
    Shipped(order_id=1).dispatch_sync()
    """,
        BROADCAST_DRIVER="memory",
    )
    assert "Too many open files" in out


def test_interrupted_program_ends_at_once_while_the_broker_is_away():
    out = _script(
        Settings(nats_url="nats://127.0.0.1:1"),
        PROGRAM
        + """
    import logging, signal, time
    logging.disable()
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        Shipped(order_id=1).dispatch_sync()
    except KeyboardInterrupt:
        print(time.monotonic())
    """,
        BROADCAST_CONNECT_TIMEOUT="60",
    )
    interrupted_at = float(out)
    assert time.monotonic() - interrupted_at < sync_thread.EXIT_S


def test_process_whose_threads_are_greenlets_is_refused_with_the_remedy():
    out = _script(
        MEMORY,
        PROGRAM
        + """
    threading.Thread.start = threading.Thread.run  # gevent's run in the thread of their caller
    for _ in range(2):
        try:
            Shipped(order_id=1).dispatch_sync()
        except Exception as exc:
            print(type(exc).__name__, exc)
    """,
        BROADCAST_DRIVER="memory",
    )
    assert out.count("BusStateError threads of this process are greenlets") == 2
    assert "gthread" in out


def test_child_of_a_fork_that_calls_no_hooks_opens_its_own_bus(settings):
    _script(
        settings,
        PROGRAM
        + """
    import ctypes
    Shipped(order_id=1).dispatch_sync()
    libc = ctypes.PyDLL(None)  # as uWSGI forks, without `os.register_at_fork`
    pid = libc.fork()
    if pid == 0:
        Shipped(order_id=2).dispatch_sync()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    Shipped(order_id=3).dispatch_sync()
    """,
    )
    stored = asyncio.run(_stored(settings, "orders.1"))
    assert [data["order_id"] for data in stored] == [1, 2, 3]


def test_program_that_ends_without_closing_leaves_nothing_and_prints_nothing(settings):
    _script(
        settings,
        PROGRAM
        + """
    Shipped(order_id=1).dispatch_sync()
    threading.Thread(target=lambda: Shipped(order_id=2).dispatch_sync()).start()
    """,
    )
    stored = asyncio.run(_stored(settings, "orders.1"))
    assert sorted(data["order_id"] for data in stored) == [1, 2]


def test_forked_child_opens_its_own_bus_and_the_parents_keeps_working(settings):
    _script(
        settings,
        PROGRAM
        + """
    with sync.EventBus.from_env() as bus:
        bus.dispatch(Shipped(order_id=1))
        Shipped(order_id=2).dispatch_sync()
        def child():
            bus.dispatch(Shipped(order_id=3))
            Shipped(order_id=4).dispatch_sync()
            in_child(lambda: Shipped(order_id=5).dispatch_sync())
            bus.close()
        in_child(child)
        bus.dispatch(Shipped(order_id=6))
    """,
    )
    stored = asyncio.run(_stored(settings, "orders.1"))
    assert [data["order_id"] for data in stored] == [1, 2, 3, 4, 5, 6]


def test_fork_while_other_threads_publish_hangs_no_child_and_sends_nothing_twice(settings):
    _script(
        settings,
        PROGRAM
        + """
    stop = threading.Event()
    sent = []
    def publish(thread):
        for _ in range(200):
            if not stop.is_set():
                Shipped(order_id=thread).dispatch_sync()
                sent.append(thread)
    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for n in range(10):
        in_child(lambda: Shipped(order_id=100 + n).dispatch_sync())
    stop.set()
    for thread in threads:
        thread.join()
    with sync.EventBus.from_env() as bus:
        bus.publish("counts", "sent", len(sent))
    """,
        BROADCAST_HISTORY_MESSAGES="1000",
    )
    (sent,) = asyncio.run(_stored(settings, "counts"))
    stored = [data["order_id"] for data in asyncio.run(_stored(settings, "orders.1"))]
    assert len(stored) == sent + 10
    assert sorted(number for number in stored if number >= 100) == list(range(100, 110))


MULTIPROCESSING = """
import multiprocessing, os, sys
from eventbus import Event, ShouldBroadcast, sync

class Shipped(Event, ShouldBroadcast, channel="orders.1", name="sync.shipped"):
    order_id: int

def ship(number):
    Shipped(order_id=number).dispatch_sync()
    return os.getpid()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ship(0)  # before the fork
    with context.Pool(2, maxtasksperchild=2) as pool:
        processes = set(pool.map(ship, range(1, 7), chunksize=1))
        pool.close()
        pool.join()
    process = context.Process(target=ship, args=(7,))
    process.start()
    process.join()
    ship(8)
    assert process.exitcode == 0
    assert len(processes | {os.getpid()}) > 3, processes  # some were replaced
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_publish_everything_once(settings, method, tmp_path):
    (tmp_path / "program.py").write_text(MULTIPROCESSING)
    _script(
        settings,
        f"""
    import runpy, sys
    sys.path.insert(0, {str(tmp_path)!r})
    sys.argv = ["program.py", {method!r}]
    runpy.run_path({str(tmp_path / "program.py")!r}, run_name="__main__")
    """,
    )
    stored = asyncio.run(_stored(settings, "orders.1"))
    assert sorted(data["order_id"] for data in stored) == list(range(9))


def test_bus_with_a_driver_of_its_own_is_refused_in_a_child(settings):
    out = _script(
        settings,
        PROGRAM
        + """
    from eventbus.drivers.memory import MemoryDriver
    from eventbus import BusStateError, Settings
    def child():
        try:
            bus.dispatch(Shipped(order_id=1))
        except BusStateError as exc:
            print(exc, flush=True)
    with sync.EventBus(Settings(driver="memory"), MemoryDriver()) as bus:
        in_child(child)
    """,
    )
    assert "given a driver before this process was forked" in out
