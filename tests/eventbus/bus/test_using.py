"""Another driver for one call: opened on first use, by the bus that closes it."""

import asyncio
import inspect
import json
import typing

import pytest

from eventbus.broadcasting import broadcast
from eventbus.bus import EventBus, Using
from eventbus.config import Settings
from eventbus.drivers import others
from eventbus.drivers.memory import MemoryDriver
from eventbus.drivers.registry import register, unregister
from eventbus.errors import BusStateError, ConfigError, ConnectionFailed, NotSupported
from eventbus.events import Dispatcher, Event, PublishOptions, ShouldBroadcast, ShouldQueue
from eventbus.events.current import Publisher


class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}", name="using.shipped"):
    order_id: int


class Queued(Event, ShouldBroadcast, ShouldQueue, channel="later", name="using.queued"):
    pass


class Recorded(MemoryDriver):
    """A driver whose life is seen; it opens when it may."""

    def __init__(self):
        super().__init__()
        self.opened = self.closed = 0
        self.fault = None
        self.opening = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self):
        self.opened += 1
        self.opening.set()
        await self.gate.wait()
        if self.fault:
            raise self.fault
        await super().open()

    async def aclose(self):
        self.closed += 1
        await super().aclose()


@pytest.fixture
def other():
    """The name of a registered driver, and those that were made by it."""
    made, prepared = [], []

    def factory(_settings):
        made.append(prepared.pop(0) if prepared else Recorded())
        return made[-1]

    register("other", factory)
    made_and_prepared = (made, prepared)
    yield made_and_prepared
    unregister("other")


async def test_message_goes_through_the_named_driver_and_not_through_the_bus_own(tmp_path):
    path = tmp_path / "audit.log"
    async with EventBus(Settings(driver="memory", log_path=str(path))) as bus:
        assert not path.exists(), "it is opened on first use"
        log = bus.using("log")
        receipts = (
            await log.publish("general", "news", {"a": 1}, id="7", headers={"trace": "x"}),
            *await log.dispatch(Shipped(order_id=1), Shipped(order_id=2)),
            *await broadcast("general", "alert", 2).via("log"),
            await bus.publish("general", "news", 3, via="log"),
        )
        assert bus.driver.broker.last_offset == 0
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [receipt.channel for receipt in receipts] == [
        "general", "orders.1", "orders.2", "general", "general",
    ]  # fmt: skip
    assert [line["event"] for line in lines] == [
        "news", "using.shipped", "using.shipped", "alert", "news",
    ]  # fmt: skip
    assert (lines[0]["id"], lines[0]["headers"]) == ("7", {"trace": "x"})


async def test_keyword_that_publish_does_not_have_is_refused():
    async with EventBus(Settings(driver="memory")) as bus:
        for target in (bus, bus.using("null")):
            with pytest.raises(
                TypeError, match=r"publish\(\) got an unexpected keyword.*'volatil'"
            ):
                await target.publish("general", "note", 1, volatil=True)


async def test_listeners_of_the_process_run_as_they_do_without():
    async with EventBus(Settings(driver="memory")) as bus:
        received = []
        bus.listen(Shipped)(received.append)
        event = Shipped(order_id=1)
        await bus.using("null").dispatch(event)
        assert received == [event]


async def test_driver_is_opened_once_and_closed_with_the_bus(other):
    made, _ = other
    bus = EventBus(Settings(driver="memory"))
    await bus.open()
    bus.using("other")
    assert made == []
    await asyncio.gather(*(bus.using("other").publish("a", "b", i) for i in range(10)))
    [driver] = made
    assert (driver.opened, driver.closed, driver.broker.last_offset) == (1, 0, 10)
    await bus.aclose()
    assert driver.closed == 1
    with pytest.raises(BusStateError, match="closed"):
        await bus.using("other").publish("a", "b", 1)
    assert len(made) == 1


async def test_own_driver_and_those_of_its_stack_are_not_opened_again(tmp_path):
    async with EventBus(Settings(driver="memory")) as bus:
        assert (await bus.using("memory").publish("a", "b", 1)).epoch == bus.driver.broker.epoch
    path = tmp_path / "audit.log"
    settings = Settings(driver="stack", stack=("memory", "log"), log_path=str(path))
    async with EventBus(settings) as bus:
        assert (await bus.using("memory").publish("a", "b", 1)).offset == 1
        assert path.read_text() == ""
        await bus.using("log").publish("a", "b", 2)
        assert bus.driver.member("memory").broker.last_offset == 1
        assert len(path.read_text().splitlines()) == 1


async def test_unknown_name_is_refused_at_once_and_says_what_there_is():
    async with EventBus(Settings(driver="memory")) as bus:
        with pytest.raises(
            ConfigError, match=r"using\(\)='kafka' is not a driver; allowed: memory,"
        ):
            bus.using("kafka")
        with pytest.raises(ConfigError, match="kafka"):
            await bus.publish("a", "b", 1, via="kafka")


async def test_setting_that_the_driver_needs_is_named_on_first_use():
    async with EventBus(Settings(driver="memory", log_path="/nowhere/x.log")) as bus:
        with pytest.raises(ConfigError, match="BROADCAST_LOG_PATH"):
            await bus.using("log").publish("a", "b", 1)
        assert (await bus.publish("a", "b", 1)).offset == 1


async def test_driver_that_did_not_open_is_closed_and_tried_again(other):
    made, prepared = other
    prepared.append(failing := Recorded())
    failing.fault = ConnectionFailed("refused", driver="other")
    async with EventBus(Settings(driver="memory")) as bus:
        with pytest.raises(ConnectionFailed, match="refused"):
            await bus.using("other").publish("a", "b", 1)
        assert failing.closed == 1
        assert (await bus.using("other").publish("a", "b", 1)).offset == 1
    assert [driver.closed for driver in made] == [1, 1]


async def test_callers_that_wait_for_a_driver_that_does_not_open_fail_with_it(other):
    made, prepared = other
    prepared.append(failing := Recorded())
    failing.fault = ConnectionFailed("refused", driver="other")
    failing.gate.clear()
    async with EventBus(Settings(driver="memory")) as bus:
        using = bus.using("other")
        calls = [asyncio.create_task(using.publish("a", "b", i)) for i in range(10)]
        await failing.opening.wait()
        failing.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(result) for result in results] == ["refused"] * 10
    assert made == [failing]


async def test_bus_that_closes_waits_for_a_driver_that_opens_and_closes_it(other):
    _, prepared = other
    prepared.append(slow := Recorded())
    slow.gate.clear()
    bus = EventBus(Settings(driver="memory"))
    await bus.open()
    publishing = asyncio.create_task(bus.using("other").publish("a", "b", 1))
    await slow.opening.wait()
    closing = asyncio.create_task(bus.aclose())
    await asyncio.sleep(0)
    slow.gate.set()
    await closing
    assert (await publishing).offset == 1
    assert slow.closed == 1


async def test_driver_that_opens_too_late_is_closed_anyway(other):
    _, prepared = other
    prepared.append(slow := Recorded())
    slow.gate.clear()
    bus = EventBus(Settings(driver="memory", publish_timeout=0.05))
    await bus.open()
    publishing = asyncio.create_task(bus.using("other").publish("a", "b", 1))
    await slow.opening.wait()
    await bus.aclose()
    slow.gate.set()
    with pytest.raises(BusStateError, match="opens no driver"):
        await publishing
    assert slow.closed >= 1
    assert not slow.is_connected


async def test_number_of_drivers_is_bounded(other, monkeypatch):
    monkeypatch.setattr(others, "MAX_OTHERS", 1)
    async with EventBus(Settings(driver="memory")) as bus:
        await bus.using("null").publish("a", "b", 1)
        await bus.using("null").publish("a", "b", 1)
        with pytest.raises(ConfigError, match=r"'other' would be one driver too many.*has null"):
            await bus.using("other").publish("a", "b", 1)


async def test_driver_that_fails_to_close_does_not_keep_the_bus_open(other, caplog):
    class Stuck(Recorded):
        async def aclose(self):
            raise RuntimeError("stuck")

    _, prepared = other
    prepared.append(Stuck())
    async with EventBus(Settings(driver="memory")) as bus:
        await bus.using("other").publish("a", "b", 1)
    assert not bus.driver.is_connected
    assert "the driver other could not be closed" in caplog.text


async def test_queued_event_takes_no_driver_and_nothing_is_sent():
    async with EventBus(Settings(driver="memory")) as bus:
        with pytest.raises(NotSupported, match=r"'using\.queued' is queued"):
            await bus.using("null").dispatch(Shipped(order_id=1), Queued())


def test_publish_has_the_same_options_wherever_it_is_declared():
    parameters = inspect.signature(EventBus.publish).parameters.values()
    keywords = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert keywords.pop("via") == str | None
    assert keywords == typing.get_type_hints(PublishOptions)
    for other in (Using.publish, Dispatcher.publish, Publisher.publish):
        options = inspect.signature(other).parameters["options"]
        assert options.kind is options.VAR_KEYWORD
        assert options.annotation == typing.Unpack[PublishOptions]
