"""The result of broadcast_with() must match its annotation, if that is known."""

import json
from typing import Any

import msgspec
import pytest

import schemas
from eventbus import (
    Event,
    EventFieldError,
    ShouldBroadcast,
)
from eventbus.broadcasting import NotificationData
from eventbus.events import data_type, event as events
from eventbus.events.data_types import data_decoder
from eventbus.events.encoding import messages_of


class Total(msgspec.Struct):
    cents: int


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(events, "_types", dict(events._types))


def event_with(method):
    body = {"__module__": __name__, "__annotations__": {"value": Any}, "broadcast_with": method}
    return type(Event)("Paid", (Event, ShouldBroadcast), body, channel="paid")


def test_invalid_data_is_refused_naming_the_field():
    def broadcast_with(self) -> Total:
        return Total(cents=self.value)

    cls = event_with(broadcast_with)
    [message] = messages_of(cls(5))
    assert json.loads(bytes(message.data)) == {"cents": 5}
    with pytest.raises(
        EventFieldError, match=r"broadcast_with\(\) returned what does not"
    ) as reported:
        messages_of(cls("5"))
    assert (reported.value.event, reported.value.field) == ("Paid", "cents")


def test_catalogue_is_held_to_it():
    event = schemas.Notification(user_id="7", title="t", message="m", action_url="/x")
    assert data_type(type(event)) is NotificationData
    assert messages_of(event)


def _untyped(self):
    return {"n": self.value}


def _any(self) -> Any:
    return self.value


def _object(self) -> object:
    return self.value


def _unknown(self) -> "Nowhere":  # noqa: F821
    return self.value


def _custom(self) -> Exception:
    return self.value


@pytest.mark.parametrize("method", [_untyped, _any, _object, _unknown, _custom])
def test_data_of_unknown_type_is_not_checked(method):
    cls = event_with(method)
    assert data_decoder(cls) is None
    assert messages_of(cls({"a": [1]}))
