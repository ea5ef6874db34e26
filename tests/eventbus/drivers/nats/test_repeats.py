"""Volatile messages that arrive again after the connection was lost are recognized by their ids."""

import json

import pytest

from eventbus.drivers.nats.subscriptions import repeats
from eventbus.drivers.nats.subscriptions.repeats import Repeats

LIVE = "eb.live.in"


def message(id_, data=1):
    return json.dumps({"id": id_, "event": "tick", "data": data}).encode()


async def test_message_is_a_repeat_only_after_a_lost_connection():
    one, subscription = Repeats(), 1
    assert not one.add(subscription, LIVE, message("a"))
    assert not one.add(subscription, LIVE, message("a"))  # somebody published it twice
    one.on_lost()
    assert one.add(subscription, LIVE, message("a"))
    assert not one.add(subscription, LIVE, message("b"))
    one.on_lost()
    assert one.add(subscription, LIVE, message("a"))
    assert one.add(subscription, LIVE, message("b"))


async def test_message_is_compared_by_subscription_and_subject():
    one, subscription = Repeats(), 1
    one.add(subscription, LIVE, message("a"))
    one.on_lost()
    assert not one.add(2, LIVE, message("a"))
    assert not one.add(subscription, "eb.live.out", message("a"))  # one event, two channels


@pytest.mark.parametrize("payload", [b"", b"tick", b"{}", b'{"id": 7}', b'{"id": ""}', b"\xff"])
async def test_message_without_an_id_is_never_a_repeat(payload):
    one, subscription = Repeats(), 1
    one.add(subscription, LIVE, payload)
    one.on_lost()
    assert not one.add(subscription, LIVE, payload)


@pytest.mark.parametrize(("limit", "value"), [("_MESSAGES", 3), ("_BYTES", 3 * len(message("0")))])
async def test_only_the_last_messages_are_kept(monkeypatch, limit, value):
    monkeypatch.setattr(repeats, limit, value)
    one, subscription = Repeats(), 1
    for number in range(5):
        one.add(subscription, LIVE, message(str(number)))
    one.on_lost()
    found = [one.add(subscription, LIVE, message(str(number))) for number in range(5)]
    assert found == [False, False, True, True, True]


async def test_messages_are_compared_for_some_minutes_only(monkeypatch):
    one, subscription = Repeats(), 1
    one.add(subscription, LIVE, message("a"))
    monkeypatch.setattr(repeats, "_FOR_S", -1.0)
    one.on_lost()
    assert not one.add(subscription, LIVE, message("a"))
