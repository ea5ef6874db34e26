"""The bus over real drivers: its states, what it publishes, and how failures are reported."""

import asyncio
import inspect
import json
import logging
import subprocess
import sys
import threading

import pytest

from eventbus.bus import BusState, EventBus
from eventbus.config import Settings
from eventbus.drivers import base
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import (
    BusStateError,
    ConfigError,
    ConnectionFailed,
    DispatchFailed,
    EncodingError,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    InvalidName,
    PublishFailed,
)
from eventbus.events import Event, ShouldBroadcast

MEMORY = Settings(driver="memory")


class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="bus.shipped"):
    order_id: int


class Moved(Event, ShouldBroadcast, channel="cursors", name="bus.moved", volatile=True, version=3):
    x: int


class Everywhere(Event, ShouldBroadcast, name="bus.everywhere"):
    text: str
    channels: list[str]

    def broadcast_on(self):
        return self.channels


class Local(Event, name="bus.local"):
    pass


class FaultyDriver(MemoryDriver):
    """The memory driver, with channels that fail or wait, as those of a broker do at times."""

    def __init__(self, broker=None):
        super().__init__(broker)
        self.failing = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.to_wait_for = 1
        self.closed = 0

    async def publish(self, subject, payload, headers=base.NO_HEADERS):
        if not self.gate.is_set():
            self.to_wait_for -= 1
            if self.to_wait_for <= 0:
                self.waiting.set()
            await self.gate.wait()
        if error := self.failing.get(subject):
            raise error
        return await super().publish(subject, payload, headers)

    async def aclose(self):
        self.closed += 1
        await super().aclose()


@pytest.fixture
async def bus():
    async with EventBus(MEMORY) as bus:
        yield bus


@pytest.fixture
async def faulty():
    driver = FaultyDriver()
    async with EventBus(MEMORY, driver) as bus:
        yield bus


async def _listen(bus, subject="eb.>"):
    """A queue of everything that is delivered."""
    queue = asyncio.Queue()
    await bus.driver.subscribe(subject, queue.put_nowait)
    return queue


# Life


async def test_bus_goes_from_unopened_through_open_to_closed():
    bus = EventBus(MEMORY)
    assert bus.state is BusState.UNOPENED
    assert not bus.driver.is_connected
    await bus.open()
    assert bus.state is BusState.OPEN
    assert bus.driver.is_connected
    await bus.aclose()
    assert bus.state is BusState.CLOSED
    assert not bus.driver.is_connected


async def test_bus_before_opening_or_after_closing_says_so():
    bus = EventBus(MEMORY)
    for call in (bus.publish("a", "b", 1), bus.dispatch(Local())):
        with pytest.raises(BusStateError, match="the bus is not open yet"):
            await call
    await bus.open()
    await bus.aclose()
    for call in (bus.publish("a", "b", 1), bus.dispatch(Local()), bus.dispatch()):
        with pytest.raises(BusStateError, match="the bus is closed"):
            await call


async def test_bus_cannot_be_opened_twice():
    bus = EventBus(MEMORY)
    await bus.open()
    with pytest.raises(BusStateError, match="cannot be opened twice: it is open"):
        await bus.open()
    assert bus.state is BusState.OPEN
    await bus.aclose()
    with pytest.raises(BusStateError, match="cannot be opened twice: it is closed"):
        await bus.open()


async def test_two_tasks_cannot_open_the_same_bus():
    bus = EventBus(MEMORY)
    results = await asyncio.gather(bus.open(), bus.open(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), BusStateError]
    await bus.aclose()


async def test_closing_again_or_before_opening_is_harmless():
    unopened = EventBus(MEMORY, FaultyDriver())
    await unopened.aclose()
    await unopened.aclose()
    assert unopened.driver.closed == 0
    with pytest.raises(BusStateError):
        await unopened.open()

    bus = EventBus(MEMORY, FaultyDriver())
    await bus.open()
    await asyncio.gather(bus.aclose(), bus.aclose(), bus.aclose())
    await bus.aclose()
    assert bus.driver.closed == 1


async def test_closing_waits_for_what_is_on_its_way_and_refuses_what_is_new(faulty):
    driver = faulty.driver
    driver.gate.clear()
    published = asyncio.create_task(faulty.publish("general", "hello", 1))
    await driver.waiting.wait()
    closing = asyncio.create_task(faulty.aclose())
    second = asyncio.create_task(faulty.aclose())
    while faulty.state is not BusState.CLOSED:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0)
    with pytest.raises(BusStateError, match="the bus is closed"):
        await faulty.publish("general", "late", 2)
    assert not closing.done()
    assert not second.done()
    assert driver.is_connected
    driver.gate.set()
    await asyncio.gather(closing, second)
    assert (await published).offset == 1
    assert not driver.is_connected


async def test_closing_does_not_wait_forever(caplog):
    bus = EventBus(Settings(driver="memory", publish_timeout=0.05), FaultyDriver())
    await bus.open()
    bus.driver.gate.clear()
    published = asyncio.create_task(bus.publish("general", "hello", 1))
    await bus.driver.waiting.wait()
    with caplog.at_level(logging.WARNING, "eventbus.bus"):
        await bus.aclose()
    assert bus.driver.closed == 1
    assert "1 messages not yet acknowledged" in caplog.text
    bus.driver.gate.set()
    with pytest.raises(ConnectionFailed):
        await published


async def test_cancelled_closing_still_releases_the_driver():
    bus = EventBus(Settings(driver="memory", publish_timeout=0.2), FaultyDriver())
    await bus.open()
    bus.driver.gate.clear()
    published = asyncio.create_task(bus.publish("general", "hello", 1))
    await bus.driver.waiting.wait()
    closing = asyncio.create_task(bus.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert bus.driver.closed == 1
    bus.driver.gate.set()
    await asyncio.gather(published, return_exceptions=True)


async def test_close_that_runs_out_of_time_is_completed_and_shared_by_its_callers():
    bus = EventBus(Settings(driver="memory", publish_timeout=0.2), FaultyDriver())
    await bus.open()
    bus.driver.gate.clear()
    published = asyncio.create_task(bus.publish("general", "hello", 1))
    await bus.driver.waiting.wait()
    patient = asyncio.create_task(bus.aclose())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.aclose(), 0.01)
    assert bus.driver.closed == 1
    await patient
    await bus.aclose()
    assert bus.driver.closed == 1
    bus.driver.gate.set()
    await asyncio.gather(published, return_exceptions=True)


async def test_every_caller_learns_that_the_driver_could_not_be_closed():
    class Stuck(FaultyDriver):
        async def aclose(self):
            await super().aclose()
            raise OSError("stuck")

    bus = EventBus(MEMORY, Stuck())
    await bus.open()
    results = await asyncio.gather(bus.aclose(), bus.aclose(), return_exceptions=True)
    assert [str(result) for result in results] == ["stuck", "stuck"]
    assert bus.driver.closed == 1
    assert bus.state is BusState.CLOSED


async def test_handlers_of_subscriptions_may_close_their_own_bus():
    bus = EventBus(MEMORY, FaultyDriver())
    closed = []

    async def close(event):
        await bus.aclose()
        closed.append(event.order_id)

    bus.subscribe(Shipped, close)
    async with asyncio.timeout(30):
        await bus.open()
        await asyncio.gather(*(Shipped(n).dispatch() for n in range(3)))
        while len(closed) < 3:  # noqa: ASYNC110 - the handlers' own tasks bring it about
            await asyncio.sleep(0.001)
        await bus.aclose()
    assert bus.driver.closed == 1


async def test_bus_that_cannot_open_is_closed_and_not_current():
    class Unreachable(FaultyDriver):
        async def open(self):
            raise ConnectionFailed("nobody there", driver="memory")

    bus = EventBus(MEMORY, Unreachable())
    with pytest.raises(ConnectionFailed, match="nobody there"):
        await bus.open()
    assert bus.state is BusState.CLOSED
    assert bus.driver.closed == 1
    with pytest.raises(BusStateError, match="no bus is open"):
        await Local().dispatch()


async def test_bus_closed_while_it_opens_stays_closed():
    class Slow(FaultyDriver):
        async def open(self):
            self.gate.clear()
            self.waiting.set()
            await self.gate.wait()
            await super().open()

    bus = EventBus(MEMORY, Slow())
    opening = asyncio.create_task(bus.open())
    await bus.driver.waiting.wait()
    await bus.aclose()
    bus.driver.gate.set()
    with pytest.raises(BusStateError, match="closed while it was opening"):
        await opening
    assert bus.state is BusState.CLOSED
    assert not bus.driver.is_connected


# The current bus


async def test_current_bus_is_the_last_opened_that_is_still_open():
    first, second = EventBus(MEMORY), EventBus(MEMORY)
    await first.open()
    await second.open()
    (receipt,) = await Shipped(1).dispatch()
    assert receipt.epoch == second.driver.broker.epoch
    await second.aclose()
    (receipt,) = await Shipped(2).dispatch()
    assert receipt.epoch == first.driver.broker.epoch
    await first.aclose()
    with pytest.raises(BusStateError, match="no bus is open"):
        await Shipped(3).dispatch()


async def test_buses_may_be_closed_in_the_order_in_which_they_were_opened():
    first, second = EventBus(MEMORY), EventBus(MEMORY)
    await first.open()
    await second.open()
    await first.aclose()
    assert (await Shipped(1).dispatch())[0].epoch == second.driver.broker.epoch
    await second.aclose()


async def test_task_that_was_started_before_the_bus_finds_it():
    opened = asyncio.Event()

    async def handler():
        await opened.wait()
        return await Shipped(1).dispatch()

    task = asyncio.create_task(handler())
    async with EventBus(MEMORY):
        opened.set()
        assert len(await task) == 1


def test_loops_in_two_threads_do_not_mix():
    both_open = threading.Barrier(2, timeout=10)
    epochs = {}

    def run(name):
        async def main():
            async with EventBus(MEMORY) as bus:
                both_open.wait()
                (receipt,) = await Shipped(1).dispatch()
                epochs[name] = (receipt.epoch, bus.driver.broker.epoch)
                both_open.wait()

        asyncio.run(main())

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert {got == own for got, own in epochs.values()} == {True}
    assert epochs["a"] != epochs["b"]


def test_bus_of_another_loop_refuses_to_publish():
    async def opened():
        bus = EventBus(MEMORY)
        await bus.open()
        return bus

    loop = asyncio.new_event_loop()
    bus = loop.run_until_complete(opened())
    with pytest.raises(BusStateError, match="another event loop"):
        asyncio.run(bus.publish("a", "b", 1))
    loop.run_until_complete(bus.aclose())
    loop.close()


# Publishing


async def test_durable_message_is_stored_and_delivered_live(bus):
    got = await _listen(bus)
    receipt = await bus.publish("general", "hello", {"a": 1})
    delivery = await got.get()
    assert delivery.subject == "eb.live.general"
    assert (receipt.offset, receipt.epoch) == delivery.position == (1, bus.driver.broker.epoch)
    body = json.loads(delivery.payload)
    assert (body["channel"], body["event"], body["data"]) == ("general", "hello", {"a": 1})
    assert body["id"] == receipt.id
    assert delivery.headers == {"Nats-Msg-Id": f"{receipt.id}:general"}


async def test_volatile_message_goes_straight_to_live_and_has_no_offset(bus):
    got = await _listen(bus)
    receipt = await bus.publish("general", "hello", 1, volatile=True)
    delivery = await got.get()
    assert delivery.subject == "eb.live.general"
    assert delivery.position is None
    assert delivery.headers == {}
    assert (receipt.offset, receipt.epoch) == (None, None)
    assert bus.driver.broker.last_offset == 0


async def test_the_namespace_is_that_of_the_settings():
    async with EventBus(Settings(driver="memory", namespace="mine")) as bus:
        got = await _listen(bus, ">")
        receipt = await bus.publish("general", "hello", 1)
        assert (await got.get()).subject == "mine.live.general"
        assert receipt.offset == 1


async def test_history_settings_reach_the_memory_driver():
    broker = EventBus(
        Settings(driver="memory", history_messages=7, history_seconds=3)
    ).driver.broker
    assert broker.stream._retention.default[1:3] == (7, 3)


async def test_sender_and_own_headers_travel_beside_the_envelope(bus):
    got = await _listen(bus)
    await bus.publish(
        "a", "b", 1, volatile=True, except_connection="the-sender", headers={"traceparent": "x"}
    )
    delivery = await got.get()
    assert delivery.headers == {"Eb-Except": "the-sender", "traceparent": "x"}
    assert b"the-sender" not in delivery.payload


async def test_id_published_twice_on_a_channel_is_stored_once_and_on_two_twice(bus):
    got = await _listen(bus)
    first = await bus.publish("a", "b", 1, id="same")
    again = await bus.publish("a", "b", 1, id="same")
    other = await bus.publish("c", "b", 1, id="same")
    assert (first.offset, again.offset, other.offset) == (1, 1, 2)
    assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, False)
    assert [(await got.get()).subject for _ in range(2)] == ["eb.live.a", "eb.live.c"]
    assert got.empty()


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        (("a.*", "b", 1), {}, InvalidChannel),
        (("a b", "b", 1), {}, InvalidChannel),
        (("", "b", 1), {"volatile": True}, InvalidChannel),
        ((None, "b", 1), {}, InvalidChannel),
        (("a", "eb:x", 1), {}, InvalidEventName),
        (("a", "", 1), {}, InvalidEventName),
        (("a", "b", object()), {}, EncodingError),
        (("a", "b", 1), {"id": ""}, InvalidName),
        (("a", "b", 1), {"id": "x\r\nNats-Rollup: all"}, InvalidName),
        (("a", "b", 1), {"id": "x" * 201}, InvalidName),
        (("a", "b", 1), {"id": 5}, InvalidName),
        (("a", "b", 1), {"except_connection": "a b"}, InvalidName),
        (("a", "b", 1), {"except_connection": ""}, InvalidName),
        (("a", "b", 1), {"headers": {"Nats-Rollup": "all"}}, InvalidName),
        (("a", "b", 1), {"headers": {"nats-msg-id": "x"}}, InvalidName),
        (("a", "b", 1), {"headers": {"Eb-Except": "x"}}, InvalidName),
        (("a", "b", 1), {"headers": {"a:b": "x"}}, InvalidName),
        (("a", "b", 1), {"headers": {"": "x"}}, InvalidName),
        (("a", "b", 1), {"headers": {"a": "x\r\ny: z"}}, InvalidName),
        (("a", "b", 1), {"headers": {"a": "é"}}, InvalidName),
    ],
)
async def test_bad_argument_is_refused_and_nothing_is_published(bus, arguments, keywords, error):
    got = await _listen(bus)
    with pytest.raises(error):
        await bus.publish(*arguments, **keywords)
    await bus.publish("good", "b", 1)
    assert (await got.get()).subject == "eb.live.good"


async def test_error_of_the_driver_reaches_the_publisher(faulty):
    faulty.driver.failing["eb.event.a"] = PublishFailed("no answer", driver="memory")
    with pytest.raises(PublishFailed, match="no answer"):
        await faulty.publish("a", "b", 1)
    with pytest.raises(PublishFailed, match="no answer"):
        await faulty.dispatch(Everywhere("x", ["a"]))


# Dispatching


async def test_event_is_dispatched_through_the_current_bus(bus):
    got = await _listen(bus)
    event = Shipped(42)
    (receipt,) = await event.dispatch()
    delivery = await got.get()
    assert (receipt.channel, receipt.id) == ("orders.42", event.event_meta.id)
    assert json.loads(delivery.payload)["data"] == {"order_id": 42}
    assert "Eb-Version" not in delivery.headers


async def test_volatile_event_is_not_stored_and_carries_its_version(bus):
    got = await _listen(bus)
    (receipt,) = await Moved(1).dispatch()
    assert receipt.offset is None
    assert (await got.get()).headers == {"Eb-Version": "3"}


async def test_event_that_is_not_broadcast_publishes_nothing(bus):
    got = await _listen(bus)
    assert await Local().dispatch() == ()
    assert await bus.dispatch() == ()
    assert await bus.dispatch(Local(), Shipped(1), Local()) != ()
    assert (await got.get()).subject == "eb.live.orders.1"
    assert got.empty()


async def test_event_on_several_channels_has_one_id_and_is_stored_on_each(bus):
    got = await _listen(bus)
    event = Everywhere("x", ["a", "b", "c"])
    receipts = await event.dispatch()
    assert [receipt.channel for receipt in receipts] == ["a", "b", "c"]
    assert {receipt.id for receipt in receipts} == {event.event_meta.id}
    assert [receipt.offset for receipt in receipts] == [1, 2, 3]
    assert [(await got.get()).subject for _ in range(3)] == [f"eb.live.{c}" for c in "abc"]


async def test_same_object_dispatched_again_is_stored_once(bus):
    event = Everywhere("x", ["a", "b"])
    first = await event.dispatch()
    again = await event.dispatch()
    assert [receipt.offset for receipt in again] == [receipt.offset for receipt in first]
    assert all(receipt.duplicate for receipt in again)
    assert not (await Everywhere("x", ["a"]).dispatch())[0].duplicate


async def test_many_events_are_on_their_way_at_once(faulty):
    faulty.driver.gate.clear()
    faulty.driver.to_wait_for = 50
    dispatched = asyncio.create_task(faulty.dispatch(*map(Shipped, range(50))))
    async with asyncio.timeout(30):
        await faulty.driver.waiting.wait()
    faulty.driver.gate.set()
    receipts = await dispatched
    assert [receipt.channel for receipt in receipts] == [f"orders.{n}" for n in range(50)]


async def test_one_bad_event_stops_a_dispatch_before_anything_is_sent(bus):
    got = await _listen(bus)
    with pytest.raises(EventFieldError):
        await bus.dispatch(Shipped(1), Shipped("x.y"), Shipped(3))
    await bus.publish("good", "b", 1)
    assert (await got.get()).subject == "eb.live.good"


async def test_each_failed_channel_is_reported_and_the_others_are_published(faulty):
    got = await _listen(faulty)
    lost = PublishFailed("no answer", driver="memory")
    big = EncodingError("too large")
    faulty.driver.failing = {"eb.event.b": lost, "eb.event.d": big}
    event = Everywhere("x", ["a", "b", "c", "d"])
    with pytest.raises(DispatchFailed, match=r"2 of 4 .* b: no answer; d: too large") as caught:
        await event.dispatch()
    assert caught.value.failures == {"b": lost, "d": big}
    assert [receipt.channel for receipt in caught.value.receipts] == ["a", "c"]
    assert caught.value.__cause__.exceptions == (lost, big)
    assert [(await got.get()).subject for _ in range(2)] == ["eb.live.a", "eb.live.c"]
    faulty.driver.failing = {}
    again = await event.dispatch()
    assert [receipt.duplicate for receipt in again] == [True, False, True, False]


async def test_cancelled_dispatch_leaves_nothing_on_its_way(faulty):
    faulty.driver.gate.clear()
    dispatched = asyncio.create_task(faulty.dispatch(Shipped(1), Shipped(2)))
    await faulty.driver.waiting.wait()
    dispatched.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dispatched
    assert faulty._sender._in_flight == 0


# Choosing a driver


@pytest.mark.parametrize("name", ["kafka", "Memory", "nats2", ""])
def test_unknown_driver_is_refused_naming_the_variable_and_what_there_is(name):
    with pytest.raises(ConfigError, match="allowed: memory, nats") as caught:
        EventBus(Settings(driver=name))
    assert caught.value.variable == "BROADCAST_DRIVER"
    assert f"BROADCAST_DRIVER={name!r}" in str(caught.value)


async def test_bus_from_the_environment_uses_the_driver_that_it_names():
    async with EventBus.from_env({"BROADCAST_DRIVER": "memory"}) as bus:
        assert bus.driver.name == "memory"
        assert isinstance(bus.driver, MemoryDriver)


def test_bad_setting_stops_the_bus_before_it_is_made():
    with pytest.raises(ConfigError, match="BROADCAST_CHANNELS_PREFIX"):
        EventBus.from_env({"BROADCAST_DRIVER": "memory", "BROADCAST_CHANNELS_PREFIX": "a.b"})


INSTALLED = """
from eventbus.drivers.memory.driver import MemoryDriver

class Mine(MemoryDriver):
    name = "mine"
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with two drivers, as an installer leaves it."""
    (tmp_path / "mine_driver.py").write_text(INSTALLED)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[eventbus.drivers]\nmine = mine_driver:Mine\nbroken = mine_driver:Absent\n"
        "memory = mine_driver:Absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_driver", None)


async def test_driver_of_another_package_is_found_by_its_entry_point(installed):
    settings = Settings(driver="mine")
    async with EventBus(settings) as bus:
        assert bus.driver.name == "mine"
        assert bus.driver.settings is settings
        assert (await bus.publish("a", "b", 1)).offset == 1


def test_driver_of_another_package_cannot_take_the_place_of_ours(installed):
    assert type(EventBus(MEMORY).driver) is MemoryDriver


def test_installed_driver_that_cannot_be_loaded_is_reported(installed):
    with pytest.raises(ConfigError, match=r"mine_driver:Absent cannot be loaded"):
        EventBus(Settings(driver="broken"))
    with pytest.raises(ConfigError, match=r"allowed: memory, nats, .*broken, mine"):
        EventBus(Settings(driver="absent"))


def test_only_the_chosen_drivers_dependency_is_loaded():
    code = (
        "import sys, eventbus\n"
        "eventbus.EventBus(eventbus.Settings(driver='memory'))\n"
        "others = {'nats', 'redis', 'aiohttp', 'jwt', 'typer', 'edge', 'schemas'}\n"
        "loaded = others & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    "name", ["listen", "forget", "has_listeners", "until", "subscribe", "ready", "publish"]
)
def test_what_a_bus_offers_is_a_documented_method_of_its_class(name):
    assert inspect.isfunction(vars(EventBus)[name])
    assert inspect.getdoc(vars(EventBus)[name])


# Over NATS


async def test_over_nats_an_event_is_stored_once_and_delivered_with_its_offset(settings):
    async with EventBus(settings) as bus:
        got = await _listen(bus, bus.subjects.live("a"))
        event = Everywhere("x", ["a", "b"])
        receipts = await event.dispatch()
        assert [receipt.channel for receipt in receipts] == ["a", "b"]
        assert {receipt.offset for receipt in receipts} == {1, 2}
        again = await event.dispatch()
        assert all(receipt.duplicate for receipt in again)
        volatile = await bus.publish("a", "tick", 1, volatile=True)
        assert volatile.offset is None
        async with asyncio.timeout(30):
            stored, tick = await got.get(), await got.get()
        assert stored.position == (receipts[0].offset, receipts[0].epoch)
        assert json.loads(stored.payload)["id"] == event.event_meta.id
        assert tick.position is None
        assert json.loads(tick.payload)["event"] == "tick"


async def test_over_nats_two_buses_receive_each_others_messages(settings):
    async with EventBus(settings) as one, EventBus(settings) as other:
        got = await _listen(one, one.subjects.live("general"))
        for n in range(100):
            await other.publish("general", "count", n)
        async with asyncio.timeout(30):
            numbers = [json.loads((await got.get()).payload)["data"] for _ in range(100)]
        assert numbers == list(range(100))
