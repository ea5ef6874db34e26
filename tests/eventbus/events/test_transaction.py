"""Events with `after_commit=True` within `bus.transaction()`: held, and sent as they were."""

import asyncio
import contextlib
import copy
import json
import pickle

import pytest

from eventbus import EventBus
from eventbus.config import Settings
from eventbus.drivers.memory import MemoryDriver
from eventbus.errors import (
    BusStateError,
    EventDefinitionError,
    EventFieldError,
    PublishFailed,
)
from eventbus.events import ClientEvent, Event, ShouldBroadcast, ShouldQueue, event_definition
from eventbus.events.transaction import MAX_HELD


class Placed(Event, ShouldBroadcast, channel="orders", name="tx.placed", after_commit=True):
    items: list[str]


class Seen(Event, ShouldBroadcast, channel="orders", name="tx.seen"):
    n: int


class Local(Event, name="tx.local", after_commit=True):
    n: int


class Mailed(Event, ShouldQueue, name="tx.mailed", queue="mails", after_commit=True):
    items: list[str]


@pytest.fixture
async def bus():
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


async def _published(bus):
    page = await bus.driver.read(bus.subjects.live("orders"), after=None, limit=1000)
    return [json.loads(message.payload)["data"] for message in page.messages]


async def test_event_that_is_not_queued_is_held_and_returns_no_receipts(bus):
    async with bus.transaction():
        assert await Placed(items=["a"]).dispatch() == ()
        (receipt,) = await bus.dispatch(Placed(items=["b"]), Seen(n=1))
        assert receipt.channel == "orders"
        assert await _published(bus) == [{"n": 1}]
    assert await _published(bus) == [{"n": 1}, {"items": ["a"]}, {"items": ["b"]}]


async def test_block_that_raises_drops_what_it_holds(bus):
    with contextlib.suppress(ZeroDivisionError):
        async with bus.transaction():
            await Placed(items=["a"]).dispatch()
            raise ZeroDivisionError
    await Placed(items=["b"]).dispatch()
    assert await _published(bus) == [{"items": ["b"]}]


async def test_change_after_the_dispatch_does_not_change_what_is_sent(bus):
    items = ["a"]
    async with bus.transaction():
        await bus.dispatch(Placed(items=items), Mailed(items=items))
        items.append("later")
    assert await _published(bus) == [{"items": ["a"]}]
    (job,) = await (await bus.queues()).reader("mails").fetch(9)
    assert json.loads(job.payload)["data"] == {"items": ["a"]}


async def test_dispatch_that_fails_validation_holds_nothing(bus):
    async with bus.transaction():
        with pytest.raises(EventFieldError):
            await bus.dispatch(Placed(items=["a"]), Placed(items=[1]))
        with pytest.raises(EventFieldError):
            await bus.dispatch(Placed(items=["a"]), Seen(n="x"))
    assert await _published(bus) == []


async def test_listeners_run_after_the_commit_also_for_events_that_are_not_broadcast(bus):
    heard = []
    bus.listen(Placed, Local, Mailed)(heard.append)
    async with bus.transaction():
        await bus.dispatch(Local(n=1), Placed(items=[]), Mailed(items=[]))
        assert heard == []
    assert heard == [Local(n=1), Placed(items=[])]  # a worker runs those of queued events


async def test_listener_that_dispatches_after_the_commit_is_not_held(bus):
    @bus.listen(Local)
    async def follow(event):
        await Placed(items=[str(event.n)]).dispatch()

    async with bus.transaction():
        await Local(n=1).dispatch()
    assert await _published(bus) == [{"items": ["1"]}]


async def test_same_event_twice_in_one_dispatch_is_held_once_for_each(bus):
    event = Placed(items=["a"])
    async with bus.transaction():
        await bus.dispatch(event, event)
    assert await _published(bus) == [{"items": ["a"]}]  # it has one id: stored once


@pytest.mark.parametrize("nested", [False, True])
async def test_transaction_holds_a_limited_number_of_events(bus, nested):
    event = Local(n=1)
    heard = []
    bus.listen(Local)(heard.append)
    async with bus.transaction():
        for _ in range(20):  # those that were dropped do not count
            with pytest.raises(EventFieldError):
                await bus.dispatch(*[event] * (MAX_HELD // 10), Placed(items=[1]))
        await bus.dispatch(*[event] * (MAX_HELD - 1))
        with pytest.raises(BusStateError, match="at most 10000"):
            await bus.dispatch(event, event)
        await bus.dispatch(event)
        if nested:
            with pytest.raises(BusStateError, match="at most 10000"):
                async with bus.transaction():
                    await bus.dispatch(event)
    assert len(heard) == MAX_HELD


async def test_failed_sends_of_a_dispatch_leave_no_room_taken():
    class Refusing(MemoryDriver):
        async def publish(self, subject, payload, headers):
            raise PublishFailed("no", driver=self.name)

    async with EventBus(Settings(), Refusing()) as bus, bus.transaction():
        for _ in range(3):
            with pytest.raises(PublishFailed):
                await bus.dispatch(*[Local(n=1)] * (MAX_HELD // 2), Seen(n=1))
        await bus.dispatch(*[Local(n=1)] * MAX_HELD)


async def test_error_of_the_broker_at_the_end_is_raised_by_the_block():
    class Refusing(MemoryDriver):
        async def publish(self, subject, payload, headers):
            raise PublishFailed("no", driver=self.name)

    heard = []
    async with EventBus(Settings(), Refusing()) as bus:
        bus.listen(Placed)(heard.append)
        with pytest.raises(PublishFailed):
            async with bus.transaction():
                await Placed(items=[]).dispatch()
    assert heard == []


async def test_events_of_two_buses_are_held_by_the_blocks_of_their_own(bus):
    async with EventBus(Settings(driver="memory")) as other, bus.transaction():
        await other.dispatch(Placed(items=["other"]))
        async with other.transaction():
            await bus.dispatch(Placed(items=["mine"]))
            await other.dispatch(Placed(items=["other's"]))
        assert await _published(other) == [{"items": ["other"]}, {"items": ["other's"]}]
        assert await _published(bus) == []
    assert await _published(bus) == [{"items": ["mine"]}]


async def test_copies_and_pickles_are_held_too(bus):
    event = Placed(items=["a"])
    async with bus.transaction():
        for each in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
            assert await each.to_others("tab-1").dispatch() == ()
    assert await _published(bus) == [{"items": ["a"]}]


async def test_block_that_was_left_while_a_dispatch_went_on_sends_its_events(bus):
    sending, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Event, ShouldBroadcast, channel="orders", name="tx.slow"):
        def broadcast_with(self):
            return {}

    async def publish(subject, payload, headers, original=bus.driver.publish):
        if b"tx.slow" in payload:
            sending.set()
            await go_on.wait()
        return await original(subject, payload, headers)

    bus.driver.publish = publish
    async with bus.transaction():
        task = asyncio.create_task(bus.dispatch(Slow(), Placed(items=["a"])))
        await sending.wait()
    assert await _published(bus) == [{"items": ["a"]}]
    go_on.set()
    await task


def test_keywords_are_inherited_and_can_be_taken_back():
    class Base(Event, abstract=True, after_commit=True, rescue=True):
        pass

    class Child(Base, ShouldQueue, name="tx.child"):
        pass

    class Plain(Child, name="tx.plain", after_commit=False, rescue=False):
        pass

    child, plain = event_definition(Child), event_definition(Plain)
    assert (child.after_commit, child.rescue, child.queue.after_commit) == (True, True, True)
    assert (plain.after_commit, plain.rescue, plain.queue.after_commit) == (False, False, False)


@pytest.mark.parametrize("keyword", ["after_commit", "rescue"])
@pytest.mark.parametrize("value", [1, "yes", 0])
def test_keyword_that_is_no_boolean_is_an_error_of_the_class(keyword, value):
    with pytest.raises(EventDefinitionError, match=f"{keyword}: .* neither True nor False"):
        type(Event)("Odd", (Event,), {"__module__": __name__}, **{keyword: value})


@pytest.mark.parametrize("keyword", ["after_commit", "rescue"])
def test_client_event_takes_no_keyword_of_a_dispatch(keyword):
    with pytest.raises(EventDefinitionError, match=f"ClientEvent.*{keyword}=True has no meaning"):
        type(Event)(
            "Typed", (Event, ClientEvent), {"__module__": __name__}, channel="x", **{keyword: True}
        )
