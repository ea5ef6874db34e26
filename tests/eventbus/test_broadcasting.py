import asyncio
import datetime
import json

import pytest

from eventbus import (
    BusStateError,
    DispatchFailed,
    Event,
    EventBus,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    PublishFailed,
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
from eventbus.drivers.memory import MemoryDriver
from eventbus.events import current_bus
from eventbus.messages import HEADER_EXCEPT
from eventbus.queue import Worker


class ParcelSent(Event, ShouldBroadcast, channel="parcels.{parcel_id}"):
    parcel_id: int


class HalfBroken(MemoryDriver):
    """Refuses the channels that are called broken."""

    async def publish(self, subject, payload, headers):
        if subject.endswith(".broken"):
            raise PublishFailed("the disk is full", driver="memory")
        return await super().publish(subject, payload, headers)


@pytest.fixture
async def received():
    """Deliveries of every channel, in order."""
    deliveries = []
    driver = HalfBroken()
    async with EventBus(Settings(driver="memory"), driver):
        await driver.subscribe("eb.live.>", deliveries.append)
        yield deliveries


async def envelopes(received):
    await asyncio.sleep(0)  # the memory driver delivers in the next loop turn
    return [json.loads(delivery.payload) for delivery in received]


async def test_builder_publishes_to_a_user(received):
    await broadcast().to_user("user123").event("notification").with_({"title": "Hi"}).send()
    [sent] = await envelopes(received)
    assert (sent["channel"], sent["event"]) == ("user.user123", "notification")
    assert sent["data"] == {"title": "Hi"}


async def test_builder_publishes_one_message_of_one_id_to_each_of_several_channels(received):
    pending = broadcast().channels(["admin", "moderators", "admin"]).event("alert")
    receipts = await pending.with_({"level": 1}).send()
    sent = await envelopes(received)
    assert [receipt.channel for receipt in receipts] == ["admin", "moderators"]
    assert {message["channel"] for message in sent} == {"admin", "moderators"}
    assert len({message["id"] for message in sent}) == 1


async def test_each_method_leaves_the_builder_it_was_called_on_as_it_was(received):
    base = broadcast().channel("general").event("news")
    await base.with_(1).to_user(7).volatile().send()
    await base.send()
    sent = await envelopes(received)
    assert [message["channel"] for message in sent] == ["general", "user.7", "general"]
    assert sent[2]["data"] is None
    assert received[0].position is None
    assert received[2].position is not None


async def test_builder_can_be_awaited_in_place_of_send(received):
    await broadcast("general", "announcement", {"n": 1})
    await broadcast(ParcelSent(5))
    sent = await envelopes(received)
    assert [message["channel"] for message in sent] == ["general", "parcels.5"]


async def test_sender_is_left_out(received):
    await broadcast("general", "moved", {}).to_others("connection-1")
    await envelopes(received)
    assert received[0].headers[HEADER_EXCEPT] == "connection-1"


async def test_helpers_name_the_channels_by_convention(received):
    await broadcast_to_channel("general", "e", 1)
    await broadcast_to_user("u", "e", 1)
    await broadcast_to_team(3, "e", 1)
    await broadcast_to_organization("acme", "e", 1)
    await Broadcast.to_team(4).event("e").send()
    await Broadcast.to_organization(5).event("e").send()
    await Broadcast.channel("general").event("e").send()
    await Broadcast.channels(["general"]).event("e").send()
    await Broadcast.to_user("u").event("e").send()
    assert [message["channel"] for message in await envelopes(received)] == [
        *("general", "user.u", "team.3", "org.acme", "team.4", "org.5"),
        *("general", "general", "user.u"),
    ]


async def test_notification_has_its_four_fields(received):
    await Broadcast.notify_user("user123", "Order update", "Shipped", "https://example.com/42")
    [sent] = await envelopes(received)
    assert (sent["channel"], sent["event"]) == ("user.user123", "notification")
    assert sent["data"].pop("timestamp").endswith("Z")
    assert sent["data"] == {
        "title": "Order update",
        "message": "Shipped",
        "action_url": "https://example.com/42",
    }


async def test_alert_has_its_four_fields(received):
    await Broadcast.system_alert("critical", "Database connection lost", action_required=True)
    [sent] = await envelopes(received)
    assert (sent["channel"], sent["event"]) == ("system", "alert")
    assert sent["data"].pop("timestamp").endswith("Z")
    assert sent["data"] == {
        "level": "critical",
        "message": "Database connection lost",
        "action_required": True,
    }


async def test_alert_of_another_level_is_refused_and_nothing_is_sent(received):
    with pytest.raises(EventFieldError, match="'fatal' is not a level; allowed are info, warning"):
        await Broadcast.system_alert("fatal", "Help")
    assert await envelopes(received) == []


async def test_one_channel_in_place_of_several_is_that_channel(received):
    receipts = await broadcast().channels("general").event("e").send()
    assert [receipt.channel for receipt in receipts] == ["general"]


@pytest.mark.parametrize("user_id", ["", None, True, 1.5, b"a", "ü" * 40, "\ud800"])
async def test_id_that_cannot_be_a_token_is_refused_and_nothing_is_sent(received, user_id):
    with pytest.raises(InvalidChannel):
        await broadcast_to_user(user_id, "e", 1)
    assert await envelopes(received) == []


async def test_delayed_broadcast_is_stored_and_sent_by_a_worker_with_its_options(received):
    pending = broadcast().channels(["general", "admin"]).event("later").with_({"n": 1})
    await pending.to_others("connection-1").after(datetime.timedelta(milliseconds=20))
    await pending.volatile().after(0.02)
    assert await envelopes(received) == []
    worker = Worker(current_bus(), max_jobs=2)
    await worker.run()
    sent = await envelopes(received)
    assert [message["channel"] for message in sent] == ["general", "admin"] * 2
    assert {message["event"] for message in sent} == {"later"}
    assert all(message["data"] == {"n": 1} for message in sent)
    assert [delivery.headers.get(HEADER_EXCEPT) for delivery in received] == [
        "connection-1"
    ] * 2 + [None] * 2
    assert [delivery.position is None for delivery in received] == [False, False, True, True]


async def test_delayed_broadcast_cannot_choose_a_driver(received):
    with pytest.raises(ValueError, match="via\\(\\) and after\\(\\) exclude each other"):
        await broadcast("general", "e").via("null").after(1)
    assert await envelopes(received) == []


async def test_via_sends_through_another_driver_and_not_the_bus_own(received):
    [receipt] = await broadcast("general", "e").via("null")
    assert receipt.offset is None
    assert await envelopes(received) == []


async def test_reserved_event_is_refused_where_it_is_named():
    with pytest.raises(InvalidEventName):
        broadcast().event("eb:connected")


@pytest.mark.parametrize(
    ("pending", "lacking"),
    [
        (lambda: broadcast().event("e"), "lacks a channel"),
        (lambda: broadcast().channel("general"), "lacks an event"),
    ],
)
async def test_broadcast_without_channel_or_event_says_what_is_missing(received, pending, lacking):
    with pytest.raises(ValueError, match=lacking):
        await pending().send()


async def test_each_failure_is_reported_by_channel_and_the_others_are_sent(received):
    with pytest.raises(DispatchFailed, match="broken: the disk is full") as caught:
        await broadcast().channels(["general", "broken", "admin"]).event("e").send()
    assert list(caught.value.failures) == ["broken"]
    assert [receipt.channel for receipt in caught.value.receipts] == ["general", "admin"]
    assert len(await envelopes(received)) == 2


async def test_without_an_open_bus_a_broadcast_says_what_to_do():
    with pytest.raises(BusStateError, match="open one with"):
        await broadcast("general", "e")
