import asyncio
import contextlib
import datetime
import threading

import pytest

from eventbus import (
    BusStateError,
    ConfigError,
    EncodingError,
    Event,
    EventBus,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    InvalidName,
    Settings,
    ShouldBroadcast,
)
from eventbus.broadcasting import (
    Broadcast,
    broadcast,
    broadcast_to_channel,
    broadcast_to_organization,
    broadcast_to_team,
    broadcast_to_user,
)
from eventbus.drivers.log import LogDriver
from eventbus.drivers.memory import MemoryDriver
from eventbus.events import ShouldQueue, current
from eventbus.queue import DelayedBroadcast
from eventbus.testing import fake


class GuestArrived(Event, ShouldBroadcast, channel="guests.{guest_id}"):
    guest_id: str


class GuestLeft(Event, ShouldBroadcast, channel="guests.{guest_id}", volatile=True):
    guest_id: str


class RoomCleaned(Event):
    room: int


class BillDue(Event, ShouldBroadcast, ShouldQueue, channel="bills", queue="billing"):
    amount: int


class MailDue(Event, ShouldQueue, queue="mails", after_commit=True):
    address: str


class Spied(MemoryDriver):
    """Counts everything that passes it, queues included."""

    def __init__(self):
        super().__init__()
        self.passed = []

    async def publish(self, subject, payload, headers):
        self.passed.append(subject)
        return await super().publish(subject, payload, headers)

    @property
    def queues(self):
        self.passed.append("queue")
        return super().queues


@pytest.fixture
def driver():
    return Spied()


@pytest.fixture
async def bus(driver):
    async with EventBus(Settings(driver="memory"), driver) as opened:
        yield opened


@pytest.fixture(params=["no bus is open", "a bus is open"])
async def maybe_bus(request):
    """Two environments: faked events are the same."""
    if request.param == "no bus is open":
        yield None
        return
    driver = Spied()
    async with EventBus(Settings(driver="memory"), driver) as opened:
        yield opened
    assert driver.passed == []


WAYS = {
    "dispatch": lambda: GuestArrived(guest_id="1").dispatch(),
    "dispatch_if": lambda: GuestArrived(guest_id="1").dispatch_if(True),
    "dispatch_unless": lambda: GuestArrived(guest_id="1").dispatch_unless(False),
    "volatile": lambda: GuestLeft(guest_id="1").dispatch(),
    "to_others": lambda: GuestArrived(guest_id="1").to_others("c1").dispatch(),
    "broadcast(event)": lambda: broadcast(GuestArrived(guest_id="1")),
    "broadcast(…)": lambda: broadcast("guests.1", "hello", {"a": 1}),
    "builder": lambda: broadcast().channel("guests.1").event("hello").with_(1).send(),
    "via": lambda: broadcast("guests.1", "hello", 1).via("null").send(),
    "volatile builder": lambda: broadcast("guests.1", "hello", 1).volatile().send(),
    "facade": lambda: Broadcast.channel("guests.1").event("hello").send(),
    "helper": lambda: broadcast_to_channel("guests.1", "hello"),
    "current bus": lambda: current.current_bus().dispatch(GuestArrived(guest_id="1")),
    "current publish": lambda: current.current_bus().publish("guests.1", "hello", 1),
    "using": lambda: current.current_bus().using("null").publish("guests.1", "hello", 1),
    "using dispatch": lambda: (
        current.current_bus().using("null").dispatch(GuestArrived(guest_id="1"))
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_no_kind_of_dispatch_sends_anything_and_all_are_recorded(way, maybe_bus):
    with fake() as events:
        await WAYS[way]()
        events.assert_broadcast_on("guests.1", times=1)
    assert len(events.broadcasts()) == 1


@pytest.mark.parametrize(
    ("send", "channel", "event"),
    [
        (lambda: broadcast_to_user("7", "hello"), "user.7", "hello"),
        (lambda: broadcast_to_team("7", "hello"), "team.7", "hello"),
        (lambda: broadcast_to_organization("7", "hello"), "org.7", "hello"),
        (lambda: Broadcast.notify_user("7", "Shipped", "Today"), "user.7", "notification"),
        (lambda: Broadcast.system_alert("critical", "Down"), "system", "alert"),
    ],
)
async def test_helpers_are_faked(send, channel, event, maybe_bus):
    with fake() as events:
        await send()
    events.assert_broadcast_on(channel, event=event, times=1)


async def test_event_that_is_not_broadcast_is_dispatched_and_has_no_message(maybe_bus):
    with fake() as events:
        assert await RoomCleaned(room=7).dispatch() == ()
    events.assert_dispatched(RoomCleaned, lambda event: event.room == 7)
    assert events.broadcasts() == []


async def test_queued_event_is_kept_and_not_stored_nor_broadcast(maybe_bus):
    with fake() as events:
        (receipt,) = await BillDue(amount=5).dispatch()
    assert (receipt.queue, receipt.channel, receipt.offset) == ("billing", "", None)
    events.assert_queued(BillDue, lambda event: event.amount == 5, queue="billing")
    events.assert_dispatched(BillDue, times=1)
    assert events.broadcasts() == []


async def test_delayed_broadcast_is_kept_as_a_queued_event(maybe_bus):
    with fake() as events:
        await broadcast("general", "hello", {"a": 1}).after(30).send()
    [delayed] = events.queued(DelayedBroadcast)
    assert (delayed.channels, delayed.event, delayed.data) == (("general",), "hello", {"a": 1})
    with pytest.raises(AssertionError, match=r"DelayedBroadcast\(channels=\('general',\).* 30 s"):
        events.assert_broadcast_on("general")


async def test_bus_held_by_the_service_is_faked(bus, driver):
    with fake() as events:
        await bus.dispatch(GuestArrived(guest_id="1"), BillDue(amount=1), RoomCleaned(room=1))
        await bus.publish("general", "hello", {"a": 1}, volatile=True)
        await bus.using("log").publish("general", "hello", {"a": 2})
    assert driver.passed == []
    assert len(events.dispatched(Event)) == 3
    assert [message.via for message in events.broadcasts("general")] == [None, "log"]


async def test_driver_named_for_one_call_is_not_even_opened(bus, monkeypatch):
    async def never(self):
        raise AssertionError("it was opened")

    monkeypatch.setattr(LogDriver, "open", never)
    with fake():
        await bus.using("log").publish("general", "hello", 1)
        await bus.using("log").dispatch(GuestArrived(guest_id="1"))


async def test_bus_that_is_not_open_raises_as_in_production():
    with fake() as events, pytest.raises(BusStateError, match="not open yet"):
        await EventBus(Settings(driver="memory")).publish("general", "hello", 1)
    events.assert_nothing_dispatched()


async def test_receipts_have_the_ids_and_no_position(maybe_bus):
    event = GuestArrived(guest_id="1")
    with fake():
        (receipt,) = await event.dispatch()
        (other,) = await broadcast("general", "hello", 1)
    assert (receipt.channel, receipt.id) == ("guests.1", event.event_meta.id)
    assert (receipt.offset, receipt.epoch, receipt.duplicate) == (None, None, False)
    assert other.id
    assert other.id != receipt.id


async def test_receipts_of_faked_and_sent_events_are_in_the_order_of_the_events(bus):
    with fake(GuestLeft):
        receipts = await bus.dispatch(
            GuestArrived(guest_id="1"),
            GuestLeft(guest_id="2"),
            BillDue(amount=1),
            GuestArrived(guest_id="3"),
        )
    assert [receipt.channel for receipt in receipts] == ["guests.1", "guests.2", "", "guests.3"]
    assert [receipt.offset is None for receipt in receipts] == [False, True, False, False]


# What is invalid


@pytest.mark.parametrize(
    ("send", "error"),
    [
        (lambda: GuestArrived(guest_id="").dispatch(), EventFieldError),
        (lambda: GuestArrived(guest_id=7).dispatch(), EventFieldError),
        (lambda: BillDue(amount="much").dispatch(), EventFieldError),
        (lambda: broadcast("no channel!", "hello", 1), InvalidChannel),
        (lambda: broadcast("general", "pong", 1), InvalidEventName),
        (lambda: broadcast("general", "hello", object()).send(), EncodingError),
        (lambda: broadcast("general", "hello", 1).to_others("a b").send(), InvalidName),
        (lambda: broadcast("general", "hello", 1).via("none such").send(), ConfigError),
        (
            lambda: current.current_bus().publish("general", "hello", 1, headers={"Nats-X": "1"}),
            InvalidName,
        ),
        (lambda: Broadcast.system_alert("loud", "x"), EventFieldError),
    ],
)
async def test_invalid_event_raises_as_in_production_and_is_not_recorded(send, error, maybe_bus):
    with fake() as events:
        with pytest.raises(error):
            await send()
        events.assert_nothing_dispatched()


async def test_nothing_is_kept_when_one_of_several_events_is_invalid(bus):
    with fake() as events:
        with pytest.raises(EventFieldError):
            await bus.dispatch(GuestArrived(guest_id="1"), GuestArrived(guest_id=""))
        events.assert_nothing_dispatched()


# Listeners, transactions, workers


async def test_listeners_do_not_run_for_faked_events_and_do_for_others(bus):
    received = []
    bus.listen(Event)(received.append)
    with fake(GuestArrived):
        await bus.dispatch(GuestArrived(guest_id="1"), RoomCleaned(room=1))
    await GuestArrived(guest_id="2").dispatch()
    assert [type(event) for event in received] == [RoomCleaned, GuestArrived]


async def test_event_held_by_a_transaction_is_kept_when_it_commits(maybe_bus):
    with fake() as events:
        async with current.current_bus().transaction():
            await MailDue(address="a@b").dispatch()
            events.assert_not_dispatched(MailDue)
        events.assert_queued(MailDue, queue="mails", times=1)


async def test_event_of_a_transaction_that_is_rolled_back_is_not_dispatched(maybe_bus):
    with fake() as events:
        with contextlib.suppress(ZeroDivisionError):
            async with current.current_bus().transaction():
                await MailDue(address="a@b").dispatch()
                raise ZeroDivisionError
        events.assert_nothing_dispatched()


async def test_broadcasts_of_a_worker_are_recorded_and_its_listeners_run(bus, driver):
    received = []
    bus.listen(BillDue)(received.append)
    with fake() as events:
        await bus.process(BillDue(amount=3))
    assert driver.passed == []
    assert [event.amount for event in received] == [3]
    events.assert_broadcast_on("bills", event=BillDue, data={"amount": 3})
    events.assert_not_dispatched(BillDue)


# Some types alone


async def test_types_that_are_not_named_go_through(bus, driver):
    with fake(GuestLeft) as events:
        (sent,) = await GuestArrived(guest_id="1").dispatch()
        await GuestLeft(guest_id="1").dispatch()
        await bus.publish("general", "hello", 1)
        await BillDue(amount=1).dispatch()
    assert sent.offset is not None
    assert driver.passed == ["eb.event.guests.1", "eb.event.general", "queue"]
    events.assert_dispatched(GuestLeft, times=1)


async def test_base_class_fakes_its_subclasses():
    class Visit(Event, abstract=True):
        pass

    class LongVisit(Visit):
        pass

    with fake(Visit) as events:
        await LongVisit().dispatch()
    events.assert_dispatched(LongVisit)
    assert [type(event) for event in events.dispatched(Visit)] == [LongVisit]


@pytest.mark.parametrize(
    "send",
    [
        lambda: GuestArrived(guest_id="1").dispatch(),
        lambda: RoomCleaned(room=1).dispatch(),
        lambda: BillDue(amount=1).dispatch(),
        lambda: broadcast("general", "hello", 1).send(),
    ],
)
async def test_without_a_bus_what_is_not_faked_says_so(send):
    with fake(GuestLeft) as events:
        with pytest.raises(BusStateError, match=r"no bus is open, and .* is not faked"):
            await send()
        events.assert_nothing_dispatched()


@pytest.mark.parametrize("wrong", ["GuestLeft", GuestLeft(guest_id="1"), int, ShouldBroadcast])
def test_only_event_types_can_be_faked(wrong):
    with pytest.raises(TypeError, match="is not an event type"):
        fake(wrong)


# Life


async def test_after_the_block_things_are_as_before(bus, driver):
    with pytest.raises(ZeroDivisionError), fake():
        raise ZeroDivisionError
    with fake():
        pass
    await GuestArrived(guest_id="1").dispatch()
    assert driver.passed == ["eb.event.guests.1"]
    assert current._fakes == []
    assert current._fakes_of_task.get() == ()


async def test_after_the_block_no_bus_is_open():
    with fake():
        pass
    with pytest.raises(BusStateError, match="no bus is open"):
        await GuestArrived(guest_id="1").dispatch()


def test_fake_has_one_block():
    events = fake()
    with events, pytest.raises(BusStateError, match="twice"):
        events.__enter__()
    with pytest.raises(BusStateError, match="twice"):
        events.__enter__()


async def test_inner_fake_takes_all_and_gives_back():
    with fake() as outer:
        with fake() as inner:
            await GuestArrived(guest_id="1").dispatch()
        await GuestArrived(guest_id="2").dispatch()
    assert [event.guest_id for event in inner.dispatched(GuestArrived)] == ["1"]
    assert [event.guest_id for event in outer.dispatched(GuestArrived)] == ["2"]


async def test_outer_fake_records_what_the_inner_one_does_not_fake():
    with fake() as outer, fake(GuestLeft) as inner:
        await GuestArrived(guest_id="1").dispatch()
        await GuestLeft(guest_id="1").dispatch()
        await broadcast("general", "hello", 1)
    assert len(inner.dispatched(GuestLeft)) == 1
    assert outer.dispatched(GuestLeft) == []
    outer.assert_dispatched(GuestArrived, times=1)
    outer.assert_broadcast_on("general")


async def test_transaction_around_an_inner_fake_still_holds():
    with fake() as outer:
        async with current.current_bus().transaction():
            with fake() as inner:
                await MailDue(address="a@b").dispatch()
        inner.assert_nothing_dispatched()
        outer.assert_queued(MailDue, times=1)


async def test_fakes_that_end_in_another_order_than_they_began(bus, driver):
    first, second = fake(), fake()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    await GuestArrived(guest_id="1").dispatch()
    second.__exit__(None, None, None)
    await GuestArrived(guest_id="2").dispatch()
    second.assert_dispatched(GuestArrived, times=1)
    first.assert_nothing_dispatched()
    assert driver.passed == ["eb.event.guests.2"]


async def test_concurrent_tasks_have_their_own_fakes():
    both_in, done = asyncio.Barrier(2), asyncio.Barrier(2)

    async def visit(guest):
        with fake() as events:
            await both_in.wait()
            await GuestArrived(guest_id=guest).dispatch()
            await asyncio.create_task(GuestArrived(guest_id=guest).dispatch())
            await done.wait()
        return [event.guest_id for event in events.dispatched(GuestArrived)]

    assert await asyncio.gather(visit("1"), visit("2")) == [["1", "1"], ["2", "2"]]


async def test_fake_of_some_types_leaves_the_rest_to_the_bus_although_another_task_fakes_all(
    bus, driver
):
    begun, done = asyncio.Event(), asyncio.Event()

    async def other():
        with fake() as events:
            begun.set()
            await done.wait()
        return events

    task = asyncio.create_task(other())
    await begun.wait()
    with fake(GuestLeft):
        await GuestArrived(guest_id="1").dispatch()
    done.set()
    (await task).assert_nothing_dispatched()
    assert driver.passed == ["eb.event.guests.1"]


async def test_task_that_is_older_than_the_fake_is_faked(bus, driver):
    go, done = asyncio.Event(), asyncio.Event()

    async def server():
        await go.wait()
        await GuestArrived(guest_id="1").dispatch()
        done.set()

    task = asyncio.create_task(server())
    await asyncio.sleep(0)
    with fake() as events:
        go.set()
        await done.wait()
    await task
    events.assert_dispatched(GuestArrived, times=1)
    assert driver.passed == []


def test_fake_works_around_event_loops():
    with fake() as events:
        asyncio.run(GuestArrived(guest_id="1").dispatch())
        asyncio.run(GuestArrived(guest_id="2").dispatch())
    events.assert_dispatched(GuestArrived, times=2)


def test_fake_outside_of_loops_takes_what_every_thread_sends():
    with fake() as events:
        thread = threading.Thread(target=lambda: asyncio.run(GuestArrived(guest_id="1").dispatch()))
        thread.start()
        thread.join()
    events.assert_dispatched(GuestArrived, times=1)


async def test_fake_of_one_loop_takes_what_a_thread_without_a_fake_sends():
    with fake() as events:
        thread = threading.Thread(target=lambda: asyncio.run(GuestArrived(guest_id="1").dispatch()))
        thread.start()
        await asyncio.to_thread(thread.join)
    events.assert_dispatched(GuestArrived, times=1)


def test_loops_of_two_threads_have_their_own_fakes():
    both_in, kept = threading.Barrier(2, timeout=10), {}

    async def visit(guest):
        older = asyncio.create_task(wait_and_dispatch(guest, go := asyncio.Event()))
        await asyncio.sleep(0)
        with fake() as events:
            both_in.wait()
            for _ in range(100):
                await GuestArrived(guest_id=guest).dispatch()
            go.set()
            await older
            both_in.wait()
        kept[guest] = {event.guest_id: 0 for event in events.dispatched(GuestArrived)}
        events.assert_dispatched(GuestArrived, times=101)

    async def wait_and_dispatch(guest, go):
        await go.wait()
        await GuestArrived(guest_id=guest).dispatch()

    threads = [threading.Thread(target=asyncio.run, args=(visit(guest),)) for guest in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {guest: list(guests) for guest, guests in kept.items()} == {"1": ["1"], "2": ["2"]}
    assert current._fakes == []


async def test_fake_that_an_async_generator_holds_can_be_left_in_another_context():
    @contextlib.asynccontextmanager
    async def held():
        with fake() as events:
            yield events

    manager = held()
    events = await asyncio.create_task(manager.__aenter__())
    await GuestArrived(guest_id="1").dispatch()
    await asyncio.create_task(manager.__aexit__(None, None, None))
    events.assert_dispatched(GuestArrived, times=1)
    with pytest.raises(BusStateError):
        await GuestArrived(guest_id="2").dispatch()


async def test_fake_keeps_a_bounded_number(monkeypatch):
    monkeypatch.setattr("eventbus.testing.faking.MAX_KEPT", 2)
    with fake() as events:
        for _ in range(2):
            await RoomCleaned(room=1).dispatch()
        with pytest.raises(BusStateError, match=r"2 events, its limit: call clear\(\)"):
            await RoomCleaned(room=1).dispatch()
        events.clear()
        await RoomCleaned(room=1).dispatch()


async def test_message_is_kept_as_its_receivers_would_see_it(bus):
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    with fake() as events:
        await bus.publish(
            "general",
            "hello",
            {"when": when},
            volatile=True,
            except_connection="c1",
            id="m1",
            headers={"Trace": "t1"},
        )
        await GuestArrived(guest_id="1").with_meta(tags=["vip"]).dispatch()
    plain, of_event = events.broadcasts()
    assert (plain.channel, plain.event, plain.id) == ("general", "hello", "m1")
    assert (plain.data, plain.volatile) == ({"when": "2026-01-02T00:00:00Z"}, True)
    assert (plain.except_connection, plain.headers) == ("c1", {"Trace": "t1"})
    assert plain.source is None
    assert (of_event.data, of_event.headers) == ({"guest_id": "1"}, {"Eb-Tags": "vip"})
    assert isinstance(of_event.source, GuestArrived)


NEEDS_A_BROKER = {
    "embedded": Settings(),
    "NATS": Settings(nats_url="nats://127.0.0.1:1"),
    "redis": Settings(driver="redis", redis_url="redis://127.0.0.1:1"),
    "stack": Settings(driver="stack", stack=("nats", "log"), nats_url="nats://127.0.0.1:1"),
}


@pytest.mark.parametrize("settings", NEEDS_A_BROKER.values(), ids=NEEDS_A_BROKER)
async def test_bus_that_opens_within_a_fake_needs_no_broker(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_earlier = EventBus(settings)
    received = []
    made_earlier.subscribe(GuestArrived, group="guests", durable=True)(received.append)
    with fake() as events:
        async with made_earlier, EventBus(settings) as bus:
            await bus.subscribe(GuestArrived, received.append)
            await asyncio.gather(made_earlier.ready(), bus.ready())
            await bus.dispatch(GuestArrived(guest_id="1"), BillDue(amount=7))
            await bus.using("null").publish("guests.1", "hello", 1)
            async with bus.transaction():
                await MailDue(address="a").dispatch()
            assert await (await bus.queues()).stats() == []
    events.assert_dispatched(GuestArrived, times=1)
    events.assert_queued(MailDue)
    assert received == []
    assert list(tmp_path.iterdir()) == []


async def test_fake_of_some_types_and_a_given_driver_leave_the_bus_its_driver(driver):
    with fake(RoomCleaned):
        async with EventBus(Settings(driver="log")) as bus:
            assert bus.driver.name == "log"
    with fake():
        async with EventBus(Settings(), driver) as bus:
            assert bus.driver is driver
