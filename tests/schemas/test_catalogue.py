"""The events that ship: their channels, names and payloads, as clients see them."""

import datetime
import json

import msgspec
import pytest

import schemas
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import EventFieldError
from eventbus.events import Event, event_definition, event_type
from eventbus.events.encoding import messages_of

AT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
LOAD = schemas.LoadAverage(one=0.5, five=0.25, fifteen=0.0)
METRICS = {
    "host": "web-1",
    "cpu_percent": 12.5,
    "cpu_count": 2,
    "memory_percent": 50.0,
    "memory_used_bytes": 1024,
    "memory_total_bytes": 2048,
    "load": LOAD,
    "disk_percent": 10.0,
    "disk_used_bytes": 10,
    "disk_total_bytes": 100,
}

CASES = {
    "Notification": (
        schemas.Notification(user_id="u1", title="Order", message="Shipped", timestamp=AT),
        ["user.u1"],
        "notification",
        {
            "title": "Order",
            "message": "Shipped",
            "action_url": None,
            "timestamp": "2026-01-02T03:04:05Z",
        },
    ),
    "SystemAlert": (
        schemas.SystemAlert(
            level=schemas.AlertLevel.CRITICAL, message="down", action_required=True, timestamp=AT
        ),
        ["system"],
        "alert",
        {
            "level": "critical",
            "message": "down",
            "action_required": True,
            "timestamp": "2026-01-02T03:04:05Z",
        },
    ),
    "UserRegistered": (
        schemas.UserRegistered(user_id="u1", name="Ada", registered_at=AT),
        ["user.registered"],
        "UserRegistered",
        {
            "user_id": "u1",
            "name": "Ada",
            "email": None,
            "registered_at": "2026-01-02T03:04:05Z",
        },
    ),
    "ChatMessage": (
        schemas.ChatMessage(room_id="lobby", user_id="u1", name="Ada", text="hi"),
        ["chat.lobby"],
        "ChatMessage",
        {"room_id": "lobby", "user_id": "u1", "name": "Ada", "text": "hi"},
    ),
    "DashboardMetrics": (
        schemas.DashboardMetrics(**METRICS),
        ["admin.dashboard", "public"],
        "DashboardMetrics",
        {**METRICS, "load": {"one": 0.5, "five": 0.25, "fifteen": 0.0}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_event_is_broadcast_as_documented(name):
    event, channels, event_name, data = CASES[name]
    messages = messages_of(event)
    assert [message.channel for message in messages] == channels
    for message in messages:
        assert message.event == event_name
        assert json.loads(bytes(message.data)) == data
        assert list(json.loads(bytes(message.data))) == list(data)


def test_every_event_of_the_catalogue_is_in_the_table_and_registered():
    exported = (getattr(schemas, name) for name in schemas.__all__)
    shipped = {cls for cls in exported if issubclass(cls, Event)}
    assert {cls.__name__ for cls in shipped} == set(CASES)
    for cls in shipped:
        assert event_type(event_definition(cls).name) is cls


BAD = [
    (schemas.Notification, {"user_id": "", "title": "t", "message": "m"}, "user_id"),
    (schemas.Notification, {"user_id": None, "title": "t", "message": "m"}, "user_id"),
    (schemas.Notification, {"user_id": "u", "title": "", "message": "m"}, "title"),
    (schemas.Notification, {"user_id": "u", "title": "t", "message": None}, "message"),
    (schemas.SystemAlert, {"level": "fatal", "message": "m"}, "level"),
    (schemas.SystemAlert, {"level": "", "message": "m"}, "level"),
    (schemas.SystemAlert, {"level": "info", "message": 5}, "message"),
    (schemas.ChatMessage, {"room_id": "", "user_id": "u", "name": "n", "text": "t"}, "room_id"),
    (schemas.ChatMessage, {"room_id": "a", "user_id": "u", "name": "n", "text": ""}, "text"),
    (
        schemas.ChatMessage,
        {"room_id": "a", "user_id": "u", "name": "n", "text": "x" * 4001},
        "text",
    ),
    (schemas.DashboardMetrics, {**METRICS, "cpu_percent": 101.0}, "cpu_percent"),
    (schemas.DashboardMetrics, {**METRICS, "cpu_percent": float("nan")}, "cpu_percent"),
    (schemas.DashboardMetrics, {**METRICS, "memory_used_bytes": -1}, "memory_used_bytes"),
    (
        schemas.DashboardMetrics,
        {**METRICS, "load": msgspec.structs.replace(LOAD, one=-1.0)},
        "load",
    ),
]


@pytest.mark.parametrize(("cls", "fields", "field"), BAD)
def test_bad_field_is_refused_naming_it(cls, fields, field):
    with pytest.raises(EventFieldError) as caught:
        messages_of(cls(**fields))
    assert caught.value.field == field


@pytest.mark.parametrize("level", ["info", "warning", "error", "critical"])
def test_alert_takes_its_level_also_as_a_word(level):
    (message,) = messages_of(schemas.SystemAlert(level=level, message="m"))
    assert json.loads(bytes(message.data))["level"] == level


async def test_times_are_those_of_the_making_of_the_event():
    before = datetime.datetime.now(datetime.UTC)
    event = schemas.Notification(user_id="u", title="t", message="m")
    assert before <= event.timestamp <= datetime.datetime.now(datetime.UTC)


async def test_metrics_are_volatile_and_chat_is_kept():
    async with EventBus(Settings(driver="memory")):
        metrics = await CASES["DashboardMetrics"][0].dispatch()
        chat = await CASES["ChatMessage"][0].dispatch()
    assert [receipt.offset for receipt in metrics] == [None, None]
    assert [receipt.offset for receipt in chat] == [1]
