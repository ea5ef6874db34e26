"""Client events, and the channels that broadcast_on() may name: declared, and held to."""

import asyncio

import pytest

from eventbus import (
    ClientEvent,
    Event,
    EventBus,
    EventDefinitionError,
    Settings,
    ShouldBroadcast,
    ShouldQueue,
    event_definition,
)
from eventbus.events import event as events
from eventbus.events.encoding import messages_of


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(events, "_types", dict(events._types))


def test_client_event_has_a_pattern_that_no_field_fills():
    class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
        is_typing: bool

    class Moved(Event, ClientEvent, channel="presence.>", name="moved"):
        x: int

    definition = event_definition(Typing)
    assert (definition.name, definition.wire_name) == ("typing", "client-typing")
    assert definition.from_clients
    assert definition.volatile
    assert event_definition(Moved).channel.text == "presence.>"


def test_client_event_is_not_dispatched():
    class Typing(Event, ClientEvent, channel="chat.{room_id}"):
        is_typing: bool

    with pytest.raises(EventDefinitionError, match="Typing is a ClientEvent: clients send it"):
        messages_of(Typing(is_typing=True))


@pytest.mark.parametrize("other", [ShouldBroadcast, ShouldQueue])
def test_client_event_is_nothing_else_besides(other):
    with pytest.raises(EventDefinitionError, match="is a ClientEvent"):

        class Both(Event, ClientEvent, other, channel="chat.1"):
            x: int


@pytest.mark.parametrize(
    ("keywords", "fault"),
    [
        ({}, "has no channel"),
        ({"channel": "chat..x"}, "is not a channel pattern"),
        ({"channel": "chat.>", "name": "client-x"}, "leave out the prefix client-"),
        ({"channel": "chat.>", "name": "x" * 195}, "is not an event name"),
        ({"channel": "chat.>", "channels": ["a"]}, "broadcast_on"),
    ],
)
def test_client_event_is_refused_where_it_is_declared_wrongly(keywords, fault):
    with pytest.raises(EventDefinitionError, match=fault):

        class Wrong(Event, ClientEvent, **keywords):
            x: int


async def test_service_receives_what_clients_send():
    class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
        is_typing: bool

    received: asyncio.Queue = asyncio.Queue()
    async with EventBus(Settings(driver="memory")) as bus:

        async def on_typing(event: Typing, context) -> None:
            await received.put((event, context.channel))

        await bus.subscribe(Typing, on_typing)
        await bus.publish("chat.7", "typing", {"is_typing": True}, volatile=True)  # not a client's
        await bus.publish("chat.7", "client-typing", {"is_typing": False}, volatile=True)
        assert await received.get() == (Typing(is_typing=False), "chat.7")
        assert received.empty()


async def test_client_events_are_not_stored_so_no_durable_subscription_can_be():
    class Typing(Event, ClientEvent, channel="chat.{room_id}", name="typing"):
        is_typing: bool

    async with EventBus(Settings(driver="memory")) as bus:

        async def on_typing(event: Typing) -> None: ...

        with pytest.raises(EventDefinitionError, match="volatile"):
            await bus.subscribe(Typing, on_typing, group="g", durable=True)


def test_broadcast_on_is_held_to_the_channels_that_were_declared():
    class Metrics(Event, ShouldBroadcast, channels=("admin.{host}", "public")):
        where: tuple[str, ...]

        def broadcast_on(self) -> tuple[str, ...]:
            return self.where

    reported = [m.channel for m in messages_of(Metrics(where=("admin.a", "public")))]
    assert reported == ["admin.a", "public"]
    with pytest.raises(EventDefinitionError, match=r"named 'general': declared are admin\.\{host"):
        messages_of(Metrics(where=("public", "general")))


@pytest.mark.parametrize("channels", ["public", ["a..b"]])
def test_declared_channels_are_patterns(channels):
    with pytest.raises(EventDefinitionError, match="channels="):

        class Wrong(Event, ShouldBroadcast, channels=channels):
            def broadcast_on(self) -> str:
                return "public"


def test_channels_are_declared_for_broadcast_on_alone():
    with pytest.raises(EventDefinitionError, match="that is not overridden: give `channel="):

        class Wrong(Event, ShouldBroadcast, channels=("public",)):
            pass
