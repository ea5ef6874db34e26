"""Listeners within the process: which run for an event, in which order, and errors."""

import asyncio
import functools
import logging

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import BusStateError, DispatchFailed, InvalidEventName, PublishFailed
from eventbus.events import Event, Listeners, ShouldBroadcast, default_listeners, listen
from eventbus.events.listeners import isolated

MEMORY = Settings(driver="memory")


class OrderEvent(Event, abstract=True):
    order_id: int


class Shipped(OrderEvent, ShouldBroadcast, name="lst.order.shipped", channel="orders.{order_id}"):
    pass


class Paid(OrderEvent, name="lst.order.paid"):
    pass


class Quiet(Event, ShouldBroadcast, name="lst.quiet", channel="quiet"):
    def broadcast_when(self):
        return False


class Unrelated(Event, name="lst.other"):
    secret: str = "hunter2"


@pytest.fixture(autouse=True)
def _no_listeners_of_others():
    with isolated():
        yield


@pytest.fixture
async def bus():
    async with EventBus(MEMORY) as bus:
        yield bus


@pytest.fixture
def received():
    return []


# Which listeners run


async def test_listener_of_a_type_receives_its_events_and_no_others(bus, received):
    bus.listen(Shipped)(received.append)
    shipped = Shipped(1)
    await bus.dispatch(shipped, Paid(2), Unrelated())
    assert received == [shipped]
    assert received[0] is shipped


async def test_listener_may_be_async_or_plain_or_any_callable(bus, received):
    @bus.listen(Paid)
    async def later(event):
        await asyncio.sleep(0)
        received.append(("async", event))

    class Callable:
        async def __call__(self, event):
            received.append(("object", event))

    bus.listen(Paid)(lambda event: received.append(("plain", event)))
    bus.listen(Paid)(Callable())
    bus.listen(Paid)(functools.partial(received.insert, 0))
    event = Paid(1)
    await event.dispatch()
    assert received == [event, ("async", event), ("plain", event), ("object", event)]


async def test_decorated_function_is_given_back_unchanged(bus):
    def handler(event):
        pass

    assert bus.listen(Paid)(handler) is handler


async def test_base_class_receives_its_subclasses_and_a_mixin_those_that_have_it(bus, received):
    bus.listen(OrderEvent)(lambda event: received.append(("base", event)))
    bus.listen(ShouldBroadcast)(lambda event: received.append(("mixin", event)))
    bus.listen(Event)(lambda event: received.append(("all", event)))
    await bus.dispatch(Shipped(1), Paid(2))
    assert received == [
        ("base", Shipped(1)), ("mixin", Shipped(1)), ("all", Shipped(1)),
        ("base", Paid(2)), ("all", Paid(2)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lst.order.shipped", ["shipped"]),
        ("lst.order.*", ["shipped", "paid"]),
        ("lst.*", ["shipped", "paid", "other"]),
        ("*", ["shipped", "paid", "other"]),
        ("*.paid", ["paid"]),
        ("lst*paid", ["paid"]),
        ("lst.order.paid*", ["paid"]),
        ("lst.order", []),
        ("lst.order.pai?", []),
        ("lst.order.[ps]*", []),
        ("LST.ORDER.PAID", []),
        (".*", []),
    ],
)
async def test_name_or_pattern_of_names_is_matched_literally_but_for_stars(
    bus, received, pattern, expected
):
    bus.listen(pattern)(received.append)
    await bus.dispatch(Shipped(1), Paid(1), Unrelated())
    names = {Shipped: "shipped", Paid: "paid", Unrelated: "other"}
    assert [names[type(event)] for event in received] == expected
    assert bus.has_listeners("lst.order.paid") == ("paid" in expected)


async def test_listener_of_several_that_all_fit_is_run_once(bus, received):
    bus.listen(Paid, OrderEvent, "lst.order.*", "*")(received.append)
    await bus.dispatch(Paid(1))
    assert len(received) == 1


async def test_listeners_run_by_priority_and_then_in_the_order_of_registration(bus, received):
    bus.listen(Paid)(lambda _: received.append("own first"))
    listen(Paid)(lambda _: received.append("process"))
    bus.listen(Paid, priority=-1)(lambda _: received.append("last"))
    bus.listen("*", priority=10)(lambda _: received.append("before all"))
    bus.listen(OrderEvent)(lambda _: received.append("own second"))
    await bus.dispatch(Paid(1))
    assert received == ["before all", "own first", "process", "own second", "last"]


async def test_one_listener_ends_before_the_next_begins(bus, received):
    @bus.listen(Paid)
    async def slow(event):
        received.append("slow begins")
        await asyncio.sleep(0.01)
        received.append("slow ends")

    bus.listen(Paid)(lambda _: received.append("next"))
    await bus.dispatch(Paid(1))
    assert received == ["slow begins", "slow ends", "next"]


async def test_listener_may_dispatch_and_register_others(bus, received):
    @bus.listen(Shipped)
    async def on_shipped(event):
        bus.listen(Paid)(received.append)
        await Paid(event.order_id).dispatch()

    await Shipped(5).dispatch()
    assert received == [Paid(5)]


@pytest.mark.parametrize("what", [(), (5,), (None,), (lambda event: None,), (Shipped(1),)])
def test_listening_to_anything_but_events_is_refused(what):
    with pytest.raises(TypeError, match="listen"):
        Listeners().listen(*what)


@pytest.mark.parametrize("name", ["", "eb:subscribed", "a\nb", "x" * 201])
def test_name_that_no_event_can_have_is_refused(name):
    with pytest.raises(InvalidEventName):
        Listeners().listen(name)


def test_listener_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        Listeners().listen(Paid)("handler")


# Broadcast and listeners


async def test_listeners_run_after_the_broadcast_is_safe(bus, received):
    bus.listen(Shipped)(lambda _: received.append(bus.driver.broker.last_offset))
    receipts = await bus.dispatch(Shipped(1), Shipped(2))
    assert received == [2, 2]
    assert len(receipts) == 2


class Refusing(MemoryDriver):
    async def publish(self, subject, payload, headers=None):
        if subject.endswith(".13"):
            raise PublishFailed("no answer", driver=self.name)
        return await super().publish(subject, payload, headers or {})


async def test_no_listener_runs_when_something_could_not_be_published(received):
    async with EventBus(MEMORY, Refusing()) as bus:
        bus.listen("*")(received.append)
        with pytest.raises(PublishFailed):
            await bus.dispatch(Shipped(13), Paid(1))
        with pytest.raises(DispatchFailed):
            await bus.dispatch(Shipped(1), Shipped(13))
        assert received == []


async def test_event_that_is_not_broadcast_reaches_listeners_and_is_not_published(bus, received):
    bus.listen("lst.*")(received.append)
    assert await bus.dispatch(Quiet(), Paid(1)) == ()
    assert received == [Quiet(), Paid(1)]
    assert bus.driver.broker.last_offset == 0


async def test_conditional_dispatch_runs_listeners_only_when_it_dispatches(bus, received):
    bus.listen(Shipped)(received.append)
    assert len(await Shipped(1).dispatch_if(True)) == 1
    assert await Shipped(2).dispatch_if(False) == ()
    assert await Shipped(3).dispatch_unless(True) == ()
    assert len(await Shipped(4).dispatch_unless(False)) == 1
    assert received == [Shipped(1), Shipped(4)]
    assert bus.driver.broker.last_offset == 2


# Errors


async def test_listener_that_raises_is_reported_and_the_others_run(bus, received, caplog):
    @bus.listen(Unrelated)
    async def broken(event):
        raise ZeroDivisionError("seven")

    bus.listen(Unrelated)(received.append)
    event = Unrelated()
    with caplog.at_level(logging.ERROR):
        assert await bus.dispatch(event) == ()
    assert received == [event]
    assert bus.listeners.errors == 1
    (record,) = caplog.records
    records = record.getMessage()
    assert "test_listeners" in records
    assert "broken" in records
    assert "'lst.other'" in records
    assert event.event_meta.id in records
    assert record.exc_info[0] is ZeroDivisionError
    assert "hunter2" not in caplog.text


async def test_errors_are_raised_together_when_dispatch_is_asked_to(bus, received):
    bus.listen(Shipped)(lambda _: 1 / 0)
    bus.listen(Shipped)(received.append)
    bus.listen(Paid)(lambda _: {}["x"])
    with pytest.raises(ExceptionGroup, match="2 listeners failed") as caught:
        await bus.dispatch(Shipped(1), Paid(1), raise_errors=True)
    assert list(map(type, caught.value.exceptions)) == [ZeroDivisionError, KeyError]
    assert received == [Shipped(1)]
    assert bus.driver.broker.last_offset == 1


class SynchronousOnlyOperation(Exception):
    """As Django's ORM raises it."""

    __module__ = "django.core.exceptions"


@pytest.mark.parametrize("how", ["dispatch_sync", "orm", "state"])
async def test_log_says_what_a_listener_with_blocking_code_can_do(bus, how, caplog):
    @bus.listen(Paid)
    def blocking(event):
        if how == "dispatch_sync":
            Unrelated().dispatch_sync()
        if how == "orm":
            raise SynchronousOnlyOperation("You cannot call this from an async context")
        raise BusStateError("the bus is closed")

    await bus.dispatch(Paid(order_id=1))
    (record,) = caplog.records
    expected = ": it called blocking code in the event loop, where it runs; make it async"
    assert (expected in record.getMessage()) == (how != "state")


async def test_listener_registered_to_stop_ends_the_run_with_its_own_error(bus, received, caplog):
    bus.listen(Shipped)(lambda _: received.append("before"))
    bus.listen(Shipped, stop_on_error=True)(lambda _: 1 / 0)
    bus.listen(Shipped)(lambda _: received.append("after"))
    with pytest.raises(ZeroDivisionError):
        await bus.dispatch(Shipped(1))
    assert received == ["before"]
    assert bus.listeners.errors == 1
    assert len(caplog.records) == 1


async def test_cancelling_a_dispatch_cancels_the_listener_and_is_not_an_error(bus, received):
    started = asyncio.Event()

    @bus.listen(Paid)
    async def endless(event):
        started.set()
        await asyncio.Event().wait()

    bus.listen(Paid)(received.append)
    task = asyncio.create_task(bus.dispatch(Paid(1)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert received == []
    assert bus.listeners.errors == 0


# until


async def test_until_gives_the_first_answer_that_is_not_none_and_asks_no_further(bus, received):
    @bus.listen(Shipped)
    async def no_opinion(event):
        received.append("none")

    bus.listen(Shipped)(lambda event: received.append("second") or False)
    bus.listen(Shipped)(lambda event: received.append("third") or True)
    assert await bus.until(Shipped(1)) is False
    assert received == ["none", "second"]
    assert bus.driver.broker.last_offset == 0
    assert await bus.until(Paid(1)) is None


async def test_until_asks_the_next_when_one_raises(bus, caplog):
    bus.listen(Paid)(lambda _: 1 / 0)
    bus.listen(Paid)(lambda _: "answer")
    assert await bus.until(Paid(1)) == "answer"
    assert bus.listeners.errors == 1
    bus.listen(Paid, priority=1, stop_on_error=True)(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await bus.until(Paid(1))


# forget, has_listeners


async def test_forgotten_listeners_are_not_run_and_others_are(bus, received):
    def one(event):
        received.append("one")

    def other(event):
        received.append("other")

    bus.listen(Paid, Shipped)(one)
    bus.listen(Paid)(other)
    assert bus.forget(Paid, one) == 1
    await bus.dispatch(Paid(1))
    await bus.dispatch(Shipped(1))
    assert received == ["other", "one"]
    assert bus.forget(Paid) == 1
    assert bus.forget(Paid) == 0
    await bus.dispatch(Paid(1))
    assert received == ["other", "one"]


async def test_bound_method_can_be_forgotten(bus, received):
    class Service:
        def on_paid(self, event):
            received.append(event)

    service = Service()
    bus.listen(Paid)(service.on_paid)
    assert bus.forget(Paid, service.on_paid) == 1
    await bus.dispatch(Paid(1))
    assert received == []


async def test_forgetting_a_type_leaves_patterns_and_bases_that_match_it(bus, received):
    bus.listen(Paid, "lst.order.*")(received.append)
    assert bus.forget(Paid) == 1
    await bus.dispatch(Paid(1))
    assert received == [Paid(1)]


def test_has_listeners_counts_bases_patterns_and_the_process():
    listeners = Listeners(default_listeners)
    assert not listeners.has_listeners(Paid)
    with isolated():
        listen(OrderEvent)(print)
        assert listeners.has_listeners(Paid)
        assert listeners.has_listeners("lst.order.paid")
        assert not listeners.has_listeners(Unrelated)
    assert not listeners.has_listeners(Paid)
    listeners.listen("not.*")(print)
    assert listeners.has_listeners("not.defined.anywhere")
    assert not listeners.has_listeners("nothing")


# The process's own


async def test_process_wide_listener_is_run_by_every_bus_and_a_bus_own_by_that_bus(received):
    listen(Paid)(lambda _: received.append("process"))
    async with EventBus(MEMORY) as one, EventBus(MEMORY) as other:
        one.listen(Paid)(lambda _: received.append("one"))
        await one.dispatch(Paid(1))
        await other.dispatch(Paid(2))
        listen(Paid)(lambda _: received.append("late"))
        await other.dispatch(Paid(3))
    assert received == ["process", "one", "process", "process", "late"]


async def test_bus_given_other_listeners_does_not_run_those_of_the_process(received):
    listen(Paid)(lambda _: received.append("process"))
    mine = Listeners()
    mine.listen(Paid)(lambda _: received.append("mine"))
    async with EventBus(MEMORY, listeners=mine) as bus:
        await bus.dispatch(Paid(1))
    assert received == ["mine"]


async def test_isolation_ends_its_own_listeners_and_restores_earlier_ones(received):
    listen(Paid)(lambda _: received.append("before"))
    async with EventBus(MEMORY) as bus:
        with isolated():
            listen(Paid)(lambda _: received.append("inside"))
            await bus.dispatch(Paid(1))
        await bus.dispatch(Paid(1))
    assert received == ["inside", "before"]
