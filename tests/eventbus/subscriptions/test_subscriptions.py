"""Subscriptions across services: two buses, over memory and over a real nats-server."""

import asyncio
import datetime
import enum
import json
import logging
import os
import signal
import sys
import textwrap
import uuid

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import Capability
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.errors import (
    BusStateError,
    ConfigError,
    EventDefinitionError,
    InvalidName,
    NotSupported,
)
from eventbus.events import Event, EventContext, ShouldBroadcast
from eventbus.subscriptions import consumer_name

TIMEOUT = 20
MEMORY = Settings(driver="memory")


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Shipped(Event, ShouldBroadcast, name="sub.shipped", channel="orders.{order_id}"):
    order_id: int
    carrier: str = "DHL"


class Cancelled(Event, ShouldBroadcast, name="sub.cancelled", channel="orders.{order_id}"):
    order_id: int


class Moved(Event, ShouldBroadcast, name="sub.moved", channel="cursors", volatile=True):
    x: int


class Routed(Event, ShouldBroadcast, name="sub.routed", channel="r.{key}.{size}.{owner_id}",
             rename="camel"):  # fmt: skip
    key: uuid.UUID
    size: Size
    text: str
    owner_id: str = "nobody"


class Reshaped(Event, ShouldBroadcast, name="sub.reshaped", channel="shapes.{kind}"):
    kind: str
    sides: int

    def broadcast_with(self):
        return {"s": self.sides}

    @classmethod
    def from_broadcast(cls, data):
        return cls(kind=data["kind"], sides=data["s"])


class Inbox:
    """A handler that keeps what it gets."""

    def __init__(self):
        self.got = []
        self._arrived = asyncio.Event()

    async def __call__(self, event, context):
        self.put(event, context)

    def put(self, event, context=None):
        self.got.append((event, context))
        self._arrived.set()

    @property
    def events(self):
        return [event for event, _ in self.got]

    async def until(self, count):
        async with asyncio.timeout(TIMEOUT):
            while len(self.got) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.events


@pytest.fixture(params=["memory", "nats"])
async def make_bus(request, settings):
    """Buses that share a broker: each is a service."""
    broker = MemoryBroker()

    def make():
        if request.param == "nats":
            return EventBus(settings)
        return EventBus(MEMORY, MemoryDriver(broker))

    return make


@pytest.fixture
async def services(make_bus):
    """One that publishes, and one that subscribes."""
    async with make_bus() as publisher, make_bus() as subscriber:
        yield publisher, subscriber


async def _quarantine(bus, channel=">"):
    """What is put into quarantine: subject's channel, payload, reason."""
    inbox = Inbox()
    root = f"{bus.subjects.namespace}.quarantine."
    await bus.driver.subscribe(
        root + channel,
        lambda d: inbox.put(
            (d.subject.removeprefix(root), d.payload, d.headers["Eb-Reason"]), d.headers
        ),
    )
    return inbox


async def _raw(bus, channel, payload, headers=None):
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    await bus.driver.publish(bus.subjects.event(channel), body, headers or {})


# Live


async def test_subscriber_gets_the_typed_events_of_another_service_and_no_others(services):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Shipped, inbox)
    event = Shipped(42, "UPS").with_meta(metadata={"trace": "é", "n": 1}, tags=("a", "b"))
    await publisher.dispatch(Cancelled(41), event.to_others("c-1"))
    await publisher.publish("orders.42", "something", {"order_id": 1})
    (receipt,) = await publisher.dispatch(Shipped(43))
    first, second = await inbox.until(2)
    assert (first, second) == (Shipped(42, "UPS"), Shipped(43, "DHL"))
    assert type(first) is Shipped
    assert first.event_meta.id == event.event_meta.id
    assert first.event_meta.timestamp == event.event_meta.timestamp
    context = inbox.got[0][1]
    assert context.channel == "orders.42"
    assert context.id == event.event_meta.id
    assert context.timestamp == event.event_meta.timestamp
    assert (context.metadata, context.tags) == ({"trace": "é", "n": 1}, ("a", "b"))
    assert first.event_meta.metadata == {"trace": "é", "n": 1}
    assert context.attempt == 1
    assert (inbox.got[1][1].offset, inbox.got[1][1].epoch) == (receipt.offset, receipt.epoch)


async def test_volatile_events_come_without_an_offset(services):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Moved, inbox)
    await publisher.dispatch(Moved(3))
    assert await inbox.until(1) == [Moved(3)]
    assert inbox.got[0][1].offset is None


async def test_without_a_group_everyone_gets_each_event_and_with_one_a_single_member(make_bus):
    inboxes = {name: Inbox() for name in ("a", "b", "m1", "m2", "other group")}
    shared = Inbox()

    def member(name):
        def put(event):
            shared.put(event)
            inboxes[name].put(event)

        return put

    async with make_bus() as one, make_bus() as two:
        await one.subscribe(Shipped, inboxes["a"])
        await two.subscribe(Shipped, inboxes["b"])
        await one.subscribe(Shipped, member("m1"), group="g")
        await two.subscribe(Shipped, member("m2"), group="g")
        await two.subscribe(Shipped, inboxes["other group"], group="h")
        # The same group on the same channels, for another event: it takes nothing away.
        await one.subscribe(Cancelled, Inbox(), group="g")
        await one.dispatch(*map(Shipped, range(60)))
        for name in ("a", "b", "other group"):
            events = await inboxes[name].until(60)
            assert sorted(event.order_id for event in events) == list(range(60))
        await shared.until(60)
    assert sorted(event.order_id for event in shared.events) == list(range(60))
    assert inboxes["m1"].got
    assert inboxes["m2"].got


async def test_member_handles_what_its_group_gets_on_channels_that_only_others_name(services):
    publisher, subscriber = services
    old, new = Inbox(), Inbox()
    await subscriber.subscribe(Shipped, old, group="g", durable=True)
    newer = await publisher.subscribe(Shipped, new, group="g", durable=True, channel="moved.*")
    await newer.aclose()  # the channels of the group stay its own
    for number in range(3):
        await _raw(publisher, "moved.1", {"event": "sub.shipped", "data": {"order_id": number}})
    assert await old.until(3) == [Shipped(0), Shipped(1), Shipped(2)]
    assert [context.attempt for _, context in old.got] == [1, 1, 1]


async def test_decorated_handlers_begin_with_the_bus_and_stay_themselves(make_bus):
    bus, inbox = make_bus(), Inbox()

    @bus.subscribe(Shipped)
    def plain(event: Shipped) -> str:
        inbox.put(event)
        return "answer"

    assert plain(Shipped(0)) == "answer"
    async with bus:
        await bus.dispatch(Shipped(1))
        assert await inbox.until(2) == [Shipped(0), Shipped(1)]


async def test_handler_decorated_in_an_open_bus_is_active_when_the_bus_is_ready(services):
    publisher, subscriber = services
    inbox = Inbox()

    @subscriber.subscribe(Shipped)
    async def handler(event: Shipped) -> None:
        inbox.put(event)

    await subscriber.ready()
    await publisher.dispatch(Shipped(1))
    assert await inbox.until(1) == [Shipped(1)]


async def test_closed_subscription_gets_nothing_more(services):
    publisher, subscriber = services
    closed, other = Inbox(), Inbox()
    subscription = await subscriber.subscribe(Shipped, closed, group="g")
    await subscriber.subscribe(Shipped, other)
    await subscription.aclose()
    await subscription.aclose()
    await publisher.dispatch(Shipped(1))
    await other.until(1)
    assert closed.got == []
    await subscriber.subscribe(Shipped, closed, group="g")  # the group's place is free again


async def test_bus_is_ready_although_a_subscription_was_closed_before_it_started(services):
    _, subscriber = services
    closed = subscriber.subscribe(Shipped, print)
    await closed.aclose()
    await subscriber.ready()
    assert closed.is_closed


async def test_no_more_handlers_run_at_once_than_are_allowed_and_all_run(services):
    publisher, subscriber = services
    running, most, gate, inbox = 0, 0, asyncio.Semaphore(0), Inbox()
    all_run = asyncio.Event()

    async def handler(event):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            all_run.set()
        await gate.acquire()
        running -= 1
        inbox.put(event)

    await subscriber.subscribe(Shipped, handler, concurrency=3)
    await publisher.dispatch(*map(Shipped, range(20)))
    await asyncio.wait_for(all_run.wait(), TIMEOUT)
    for _ in range(20):
        gate.release()
    await inbox.until(20)
    assert most == 3


async def test_one_handler_at_a_time_keeps_the_order(services):
    publisher, subscriber = services
    inbox = Inbox()

    async def handler(event):
        await asyncio.sleep(0.002 * (event.order_id % 3))
        inbox.put(event)

    await subscriber.subscribe(Shipped, handler, concurrency=1)
    for n in range(20):
        await publisher.dispatch(Shipped(n))
    assert [event.order_id for event in await inbox.until(20)] == list(range(20))


async def test_events_beyond_the_buffer_are_dropped_counted_and_reported(services, caplog):
    publisher, subscriber = services
    gate, seen, inbox = asyncio.Event(), Inbox(), Inbox()

    async def slow(event):
        await gate.wait()
        inbox.put(event)

    subscription = await subscriber.subscribe(Shipped, slow, concurrency=1, buffer=2)
    await subscriber.subscribe(Shipped, seen)
    for n in range(10):
        await publisher.dispatch(Shipped(n))
    await seen.until(10)
    assert subscription.dropped == 7
    assert "drops events" in caplog.text
    gate.set()
    assert [event.order_id for event in await inbox.until(3)] == [0, 1, 2]


async def test_live_handler_that_raises_is_reported_without_fields_and_continues(services, caplog):
    publisher, subscriber = services
    inbox = Inbox()

    async def broken(event):
        inbox.put(event)
        raise ZeroDivisionError

    subscription = await subscriber.subscribe(Shipped, broken)
    event = Shipped(1, "hunter2")
    await publisher.dispatch(event, Shipped(2))
    await inbox.until(2)
    await subscription.aclose()
    assert subscription.failures == 2
    assert event.event_meta.id in caplog.text
    assert "hunter2" not in caplog.text


async def test_log_says_what_a_handler_with_blocking_code_can_do(services, caplog):
    publisher, subscriber = services
    inbox = Inbox()

    def blocking(event):
        inbox.put(event)
        event.dispatch_sync()

    subscription = await subscriber.subscribe(Shipped, blocking)
    await publisher.dispatch(Shipped(1))
    await inbox.until(1)
    await subscription.aclose()
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage().endswith("`await asyncio.to_thread(function, event)`")


# What anyone may publish


@pytest.mark.parametrize(
    ("payload", "headers", "expected"),
    [
        ({"event": "sub.shipped", "data": {"order_id": 1}}, {}, Shipped(1)),
        ({"order_id": 1, "carrier": "x"}, {"Eb-Event": "sub.shipped"}, Shipped(1, "x")),
        ({"event": "sub.shipped", "data": {"carrier": "x"}}, {}, Shipped(7, "x")),
        ({"event": "sub.shipped", "data": {"order_id": 1, "more": 2}}, {}, Shipped(1)),
        ({"event": "sub.shipped", "data": {}, "timestamp": "soon"}, {}, Shipped(7)),
    ],
)
async def test_payloads_of_other_publishers_are_completed(services, payload, headers, expected):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Shipped, inbox)
    await _raw(publisher, "orders.7", payload, headers)
    assert await inbox.until(1) == [expected]
    context = inbox.got[0][1]
    assert context.offset is not None
    age = datetime.datetime.now(datetime.UTC) - context.timestamp
    assert abs(age.total_seconds()) < 60


async def test_fields_that_are_not_in_the_data_are_taken_from_the_channel(services):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Routed, inbox)
    key = uuid.uuid4()
    await _raw(publisher, f"r.{key}.2.ada", {"event": "sub.routed", "data": {"text": "x"}})
    whole = Routed(key, Size.SMALL, "y", "bob")
    await publisher.dispatch(whole)
    first, second = await inbox.until(2)
    assert first == Routed(key, Size.LARGE, "x", "ada")
    assert second == whole


async def test_type_with_data_of_its_own_is_made_by_from_broadcast(services):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Reshaped, inbox)
    await publisher.dispatch(Reshaped("square", 4))
    assert await inbox.until(1) == [Reshaped("square", 4)]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(
    ("channel", "payload", "headers", "reason"),
    [
        ("orders.7", b"\xff\xfe", {}, "not_utf8"),
        ("orders.7", b"{", {}, "not_json"),
        ("orders.7", b'{"event":"sub.shipped","data":' + b"[" * 5000 + b"]" * 5000 + b"}", {},
         "too_deep"),
        ("orders.7", {"event": "sub.shipped", "data": {"order_id": "x"}}, {}, "bad_data"),
        ("orders.7", {"event": "sub.shipped", "data": [1]}, {}, "bad_data"),
        ("orders.x", {"event": "sub.shipped", "data": {}}, {}, "bad_data"),
        ("orders.7", {"event": "eb:x", "data": {}}, {}, "reserved_event"),
        ("orders.7", {"event": "sub.shipped", "data": {}, "channel": "orders.8"}, {},
         "other_channel"),
        ("orders.7", {"event": "sub.shipped", "data": {}}, {"Eb-Meta": "[1]"}, "bad_metadata"),
    ],
)  # fmt: skip
async def test_payload_that_does_not_decode_goes_into_quarantine_once(
    services, channel, payload, headers, reason, durable
):
    publisher, subscriber = services
    inbox, quarantine = Inbox(), await _quarantine(publisher)
    options = {"durable": True, "group": "g", "ack_wait": 0.2} if durable else {}
    subscription = await subscriber.subscribe(Shipped, inbox, **options)
    await _raw(publisher, channel, payload, {"Foo": "bar", **headers})
    await publisher.dispatch(Shipped(1))
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    assert await quarantine.until(1) == [(channel, body, reason)]
    assert quarantine.got[0][1]["Foo"] == "bar"
    assert not any(name.startswith("Nats-") for name in quarantine.got[0][1])
    assert await inbox.until(1) == [Shipped(1)]
    await asyncio.sleep(0.4 if durable else 0)  # twice the time after which it would come again
    assert len(quarantine.got) == 1
    assert len(inbox.got) == 1
    assert subscription.quarantined == 1


async def test_from_broadcast_that_raises_is_a_payload_that_does_not_decode(services):
    publisher, subscriber = services
    quarantine = await _quarantine(publisher)
    await subscriber.subscribe(Reshaped, Inbox())
    await _raw(publisher, "shapes.a", {"event": "sub.reshaped", "data": {}})
    ((_, _, reason),) = await quarantine.until(1)
    assert reason == "bad_data"


# Durable


async def test_durable_subscription_continues_where_it_left_off(make_bus):
    async with make_bus() as publisher:
        await publisher.dispatch(Shipped(0))
        inbox = Inbox()
        async with make_bus() as service:
            await service.subscribe(Shipped, inbox, group="g", durable=True)
            await publisher.dispatch(Shipped(1), Cancelled(1))
            assert await inbox.until(1) == [Shipped(1)]
        await publisher.dispatch(Shipped(2), Shipped(3))
        async with make_bus() as service:
            await service.subscribe(Shipped, inbox, group="g", durable=True)
            assert await inbox.until(3) == [Shipped(1), Shipped(2), Shipped(3)]
            other = Inbox()
            await service.subscribe(Shipped, other, group="new", durable=True, from_start=True)
            assert len(await other.until(4)) == 4


async def test_durable_handler_that_fails_is_tried_again_and_then_it_is_done(services):
    publisher, subscriber = services
    inbox = Inbox()

    async def fails_twice(event, context):
        inbox.put(event, context)
        if context.attempt < 3:
            raise ValueError

    subscription = await subscriber.subscribe(
        Shipped, fails_twice, group="g", durable=True, backoff=(0.05,)
    )
    await publisher.dispatch(Shipped(1))
    await inbox.until(3)
    assert [context.attempt for _, context in inbox.got] == [1, 2, 3]
    assert {context.id for _, context in inbox.got} == {inbox.events[0].event_meta.id}
    await publisher.dispatch(Shipped(2))
    await inbox.until(6)
    assert subscription.failures == 4
    assert subscription.quarantined == 0


async def test_durable_event_whose_handler_keeps_failing_ends_in_quarantine(services, caplog):
    publisher, subscriber = services
    inbox, quarantine = Inbox(), await _quarantine(publisher, "orders.*")

    async def broken(event, context):
        inbox.put(event, context)
        if event.order_id == 1:
            raise ValueError

    await subscriber.subscribe(
        Shipped, broken, group="g", durable=True, max_deliver=3, backoff=[0.01, 0.02], ack_wait=2.0
    )
    await publisher.dispatch(Shipped(1))
    ((channel, payload, reason),) = await quarantine.until(1)
    assert (channel, reason) == ("orders.1", "handler_failed")
    assert json.loads(payload)["data"] == {"order_id": 1, "carrier": "DHL"}
    assert len(inbox.got) == 3
    await publisher.dispatch(Shipped(2))
    await inbox.until(4)
    await asyncio.sleep(2.5)  # longer than ack_wait
    assert len(inbox.got) == 4


async def test_durable_handler_that_takes_too_long_is_cancelled_and_counts_as_failed(services):
    publisher, subscriber = services
    inbox, cancelled = Inbox(), Inbox()

    async def hangs_once(event, context):
        inbox.put(event, context)
        if context.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.put(event)
                raise

    subscription = await subscriber.subscribe(
        # Cancelled at 95 % of ack_wait; the rest is for the answer, before the broker redelivers.
        Shipped,
        hangs_once,
        group="g",
        durable=True,
        ack_wait=4.0,
        backoff=[0.0],
    )
    await publisher.dispatch(Shipped(1))
    await inbox.until(2)
    await cancelled.until(1)
    assert [context.attempt for _, context in inbox.got] == [1, 2]
    assert subscription.failures == 1


async def test_members_of_a_durable_group_share_the_events(make_bus):
    shared = Inbox()
    async with make_bus() as one, make_bus() as two:
        for bus in (one, two):
            await bus.subscribe(Shipped, shared, group="g", durable=True, concurrency=4)
        await one.dispatch(*map(Shipped, range(80)))
        await shared.until(80)
    assert sorted(event.order_id for event in shared.events) == list(range(80))


async def test_closing_bus_lets_handlers_finish_and_publish(make_bus):
    async with make_bus() as publisher:
        started, done = asyncio.Event(), []
        bus = make_bus()

        @bus.subscribe(Shipped, group="g", durable=True)
        async def slow(event):
            started.set()
            await asyncio.sleep(0.1)
            done.append(await Cancelled(event.order_id).dispatch())

        async with bus:
            await publisher.dispatch(Shipped(1))
            async with asyncio.timeout(TIMEOUT):
                await started.wait()
        assert len(done) == 1
        inbox = Inbox()
        async with make_bus() as again:
            await again.subscribe(Shipped, inbox, group="g", durable=True)
            await publisher.dispatch(Shipped(2))
            assert await inbox.until(1) == [Shipped(2)]  # the first is done


@pytest.mark.parametrize("options", [{}, {"group": "g", "durable": True}])
async def test_handler_may_close_its_subscription_and_its_bus(make_bus, options):
    bus, other, inbox = make_bus(), make_bus(), Inbox()
    await bus.open()

    async def handler(event):
        await subscription.aclose()
        await bus.aclose()
        inbox.put(event)

    async def waits(event):
        await asyncio.sleep(0.1)
        inbox.put(event)

    subscription = await bus.subscribe(Shipped, handler, **options)
    await bus.subscribe(Cancelled, waits)
    async with other:
        await other.dispatch(Cancelled(1), Shipped(1))
        assert await inbox.until(2) == [Cancelled(1), Shipped(1)]
    assert bus.state == "closed"


async def test_unfinished_events_of_a_closing_subscription_go_to_another(make_bus):
    async with make_bus() as publisher, make_bus() as other:
        started, inbox = asyncio.Event(), Inbox()

        async def never(event):
            started.set()
            await asyncio.Event().wait()

        async with make_bus() as closing:
            subscription = await closing.subscribe(
                Shipped, never, group="g", durable=True, concurrency=2
            )
            await publisher.dispatch(*map(Shipped, range(5)))
            async with asyncio.timeout(TIMEOUT):
                await started.wait()
            await other.subscribe(Shipped, inbox, group="g", durable=True)
            await subscription.aclose(0.05)
        events = await inbox.until(5)  # long before ack_wait
        assert sorted(event.order_id for event in events) == list(range(5))


# Refused


class Hidden(Event, name="sub.hidden"):
    pass


class Base(Event, ShouldBroadcast, abstract=True, channel="base"):
    pass


class Anywhere(Event, ShouldBroadcast, name="sub.anywhere"):
    where: str

    def broadcast_on(self):
        return f"any.{self.where}"


class Renamed(Event, ShouldBroadcast, name="sub.renamed", channel="renamed"):
    def broadcast_as(self):
        return "other.name"


class Opaque(Event, ShouldBroadcast, name="sub.opaque", channel="opaque"):
    def broadcast_with(self):
        return 1


@pytest.mark.parametrize(
    ("what", "options", "error", "expected"),
    [
        (Hidden, {}, EventDefinitionError, "never leaves its process"),
        (Base, {}, EventDefinitionError, "abstract"),
        (Anywhere, {}, EventDefinitionError, 'channel="..."'),
        (Renamed, {}, EventDefinitionError, 'name="..."'),
        (Opaque, {}, EventDefinitionError, "from_broadcast"),
        (int, {}, EventDefinitionError, "not an event type"),
        ("sub.shipped", {}, EventDefinitionError, "not an event type"),
        (Moved, {"durable": True, "group": "g"}, EventDefinitionError, "volatile"),
        (Shipped, {"durable": True}, ConfigError, "group="),
        (Shipped, {"group": "a.b"}, InvalidName, "not a group"),
        (Shipped, {"concurrency": 0}, ConfigError, "concurrency"),
        (Shipped, {"buffer": 0}, ConfigError, "buffer"),
        (Shipped, {"ack_wait": 0}, ConfigError, "ack_wait"),
        (Shipped, {"max_deliver": 0}, ConfigError, "max_deliver"),
        (Shipped, {"backoff": []}, ConfigError, "backoff"),
        (Shipped, {"backoff": [-1.0]}, ConfigError, "backoff"),
        (Shipped, {"colour": "red"}, ConfigError, "colour"),
    ],
)
def test_invalid_subscription_is_refused_where_it_is_declared(what, options, error, expected):
    bus = EventBus(MEMORY)
    with pytest.raises(error, match=expected):
        bus.subscribe(what, **options)
    with pytest.raises(error, match=expected):
        bus.subscribe(what, lambda event: None, **options)


def test_second_handler_of_a_group_in_one_bus_is_refused():
    bus = EventBus(MEMORY)
    bus.subscribe(Shipped, print, group="g")
    bus.subscribe(Cancelled, print, group="g")
    bus.subscribe(Shipped, print)
    bus.subscribe(Shipped, print)
    with pytest.raises(EventDefinitionError, match="would share"):
        bus.subscribe(Shipped, print, group="g")


async def test_types_that_override_their_channel_or_name_are_subscribed_to_by_options(services):
    publisher, subscriber = services
    inbox = Inbox()
    await subscriber.subscribe(Anywhere, inbox, channel="any.*")
    await subscriber.subscribe(Renamed, inbox, name="other.name")
    await publisher.dispatch(Anywhere("here"), Renamed())
    assert set(map(type, await inbox.until(2))) == {Anywhere, Renamed}


class Plain(MemoryDriver):
    name = "plain"
    capabilities = frozenset({Capability.HISTORY})


@pytest.mark.parametrize("options", [{"group": "g"}, {"group": "g", "durable": True}])
async def test_driver_without_the_capability_is_named(options):
    bus = EventBus(MEMORY, Plain())
    bus.subscribe(Shipped, print, **options)
    with pytest.raises(NotSupported, match="the driver plain cannot") as caught:
        await bus.open()
    assert caught.value.driver == "plain"
    assert bus.state == "closed"


async def test_subscription_that_fails_in_the_background_is_logged_and_raised_when_awaited(caplog):
    async with EventBus(MEMORY, Plain()) as bus:
        with caplog.at_level(logging.ERROR):
            bus.subscribe(Shipped, group="g")(print)
            with pytest.raises(NotSupported):
                await bus.ready()
        assert "failed to start" in caplog.text


async def test_subscription_can_be_awaited_only_in_an_open_bus():
    bus = EventBus(MEMORY)
    subscription = bus.subscribe(Shipped, print)
    with pytest.raises(BusStateError, match="when its bus opens"):
        await subscription
    async with bus:
        await subscription
    with pytest.raises(BusStateError, match="closed"):
        bus.subscribe(Shipped, print)


def test_handler_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        EventBus(MEMORY).subscribe(Shipped, "handler")


def test_consumers_name_is_made_of_namespace_group_and_event():
    name = consumer_name("eb", "billing", "order.shipped")
    assert name.startswith("eb-billing-order_shipped-")
    names = [
        consumer_name("eb", "a-b", "c"), consumer_name("eb", "a", "b-c"),
        consumer_name("eb", "a", "b_c"), consumer_name("eb", "a", "b.c"),
    ]  # fmt: skip
    assert len(set(names)) == 4
    assert consumer_name("eb", "g", "é" * 200).isascii()


# Over NATS alone


async def test_durable_subscription_outlives_a_stream_that_is_recreated(settings):
    async with EventBus(settings) as publisher, EventBus(settings) as service:
        inbox = Inbox()
        await service.subscribe(Shipped, inbox, group="g", durable=True)
        await publisher.dispatch(Shipped(1))
        await inbox.until(1)
        connection = publisher.driver._connection
        await connection.request(f"$JS.API.STREAM.DELETE.{settings.namespace.upper()}_EVENTS")
        await publisher.dispatch(Shipped(2))
        assert await inbox.until(2) == [Shipped(1), Shipped(2)]
        assert inbox.got[0][1].epoch != inbox.got[1][1].epoch


WORKER = """
import asyncio, os, sys, time
from eventbus import Event, EventBus, Settings, ShouldBroadcast

class Shipped(Event, ShouldBroadcast, name="sub.shipped", channel="orders.{order_id}"):
    order_id: int
    carrier: str = "DHL"

def report(line):
    os.write(1, f"{line}\\n".encode())  # at once, so that a kill leaves whole lines

async def main():
    bus = EventBus(Settings(nats_url=sys.argv[1], namespace=sys.argv[2], history_bytes=4194304))

    @bus.subscribe(Shipped, group="g", durable=True, ack_wait=2.0, concurrency=4)
    async def handle(event, context):
        report(f"begin {event.order_id}")
        await asyncio.sleep(float(sys.argv[3]))
        report(f"end {event.order_id}")

    async with bus:
        report("ready")
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Worker:
    """A service in a process of its own."""

    def __init__(self, settings, pause):
        self.arguments = (settings.nats_url, settings.namespace, str(pause))
        self.begun, self.ended = set(), set()

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(WORKER), *self.arguments,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await self.until(lambda line: line == "ready")
        return self

    async def __aexit__(self, *exc):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT):
            while True:
                line = (await self.process.stdout.readline()).decode().strip()
                assert line, "the worker ended"
                self.note(line)
                if condition(line):
                    return

    def note(self, line):
        word, _, number = line.partition(" ")
        if number:
            (self.begun if word == "begin" else self.ended).add(int(number))


async def test_killed_durable_worker_loses_nothing_and_another_takes_over(settings):
    numbers = set(range(30))
    async with EventBus(settings) as publisher, Worker(settings, 0.05) as first:
        await publisher.dispatch(*(Shipped(n) for n in numbers))
        await first.until(lambda _: len(first.ended) >= 5)
        os.kill(first.process.pid, signal.SIGKILL)
        await first.process.wait()
        for line in (await first.process.stdout.read()).decode().splitlines():
            first.note(line)
        assert first.ended < numbers
        async with Worker(settings, 0.0) as second:
            await second.until(lambda _: first.ended | second.ended == numbers)
        # What the first ended is not done again, but for acknowledgements that the kill cut off.
        assert len(first.ended & second.ended) <= 4


def test_context_can_be_made_for_a_test_of_a_handler():
    context = EventContext(
        channel="a", id=None, offset=None, epoch=None, timestamp=datetime.datetime.now(datetime.UTC)
    )
    assert msgspec.structs.asdict(context)["attempt"] == 1
