"""Messages and their bytes."""

import datetime
import enum
import json
import uuid
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus.errors import EncodingError, InvalidEventName
from eventbus.messages import (
    Message,
    Receipt,
    client_event_name,
    new_id,
    read_payload,
    validate_event_name,
)
from eventbus.messages.message import MAX_EVENT_NAME, is_reserved_event

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_bytes_are_the_envelope_with_its_fields_in_order():
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    message = Message.create("general", "hello", {"a": [1, None]}, id="i1", timestamp=at)
    assert message.encode() == (
        b'{"channel":"general","event":"hello","data":{"a":[1,null]},'
        b'"timestamp":"2026-01-02T03:04:05Z","id":"i1"}'
    )


@given(json_values)
def test_data_comes_back_as_it_was_given(data):
    envelope = json.loads(Message.create("general", "hello", data).encode())
    assert envelope["data"] == data
    assert list(envelope) == ["channel", "event", "data", "timestamp", "id"]


@given(json_values)
def test_published_envelope_is_kept_byte_for_byte(data):
    message = Message.create("general", "hello", data)
    body = message.encode()
    timestamp = json.loads(body)["timestamp"]
    assert read_payload("general", body) == ("hello", body, message.id, timestamp)


def test_time_is_utc_and_ids_sort_by_time():
    before = datetime.datetime.now(datetime.UTC)
    message = Message.create("general", "hello", None)
    assert before <= message.timestamp <= datetime.datetime.now(datetime.UTC)
    assert json.loads(message.encode())["timestamp"].endswith("Z")
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert uuid.UUID(ids[0]).version == 7


class Colour(enum.StrEnum):
    RED = "red"


@dataclass
class Point:
    x: int


class Struct(msgspec.Struct):
    x: int


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (Point(1), b'{"x":1}'),
        (Struct(2), b'{"x":2}'),
        ({"c": Colour.RED}, b'{"c":"red"}'),
        (msgspec.Raw(b'{"as": "it is"}'), b'{"as": "it is"}'),
        (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        ("\u2028é", '"\u2028é"'.encode()),
    ],
    ids=["dataclass", "struct", "enum", "raw", "uuid", "unicode"],
)
def test_data_may_be_whatever_msgspec_encodes(data, encoded):
    assert bytes(Message.create("general", "hello", data).data) == encoded


def _endless():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "data",
    [object(), {"a": object()}, {(1, 2): 3}, "\ud800", _endless(), lambda: None],
    ids=["object", "object_inside", "tuple_key", "surrogate", "endless", "function"],
)
def test_data_that_is_not_json_is_refused_naming_event_and_channel(data):
    with pytest.raises(EncodingError, match="the data of event 'hello' on 'general'"):
        Message.create("general", "hello", data)


RESERVED = ["", "eb:", "eb:subscribed", "pusher:ping", "pusher_internal:x", "pong"]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_event_name_cannot_be_published(name):
    assert is_reserved_event(name)
    with pytest.raises(InvalidEventName, match="is not an event name"):
        Message.create("general", name, None)


@pytest.mark.parametrize("name", ["a\nb", "\0", "\x7f", "\t", "a" * 201, None, 5, b"x"])
def test_unusable_event_name_is_refused(name):
    with pytest.raises(InvalidEventName, match="1 to 200 characters"):
        validate_event_name(name)


@pytest.mark.parametrize("name", ["ping", "pongs", "EB:x", "ebx", "order shipped", "é", "a" * 200])
def test_name_that_only_looks_reserved_is_allowed(name):
    assert not is_reserved_event(name)
    assert validate_event_name(name) == name


def test_receipt_says_duplicate_only_when_it_is_one():
    assert msgspec.json.encode(Receipt("general", "i", None, None)) == (
        b'{"channel":"general","id":"i","offset":null,"epoch":null}'
    )
    assert b'"duplicate":true' in msgspec.json.encode(Receipt("a", "i", 1, "e", duplicate=True))


@pytest.mark.parametrize("name", ["typing", "client-typing"])
def test_clients_event_has_its_prefix_once(name):
    assert client_event_name(name) == "client-typing"


@pytest.mark.parametrize("name", ["", "client-", "eb:x", "a\nb", "x" * (MAX_EVENT_NAME - 6)])
def test_invalid_client_event_name_is_refused(name):
    with pytest.raises(InvalidEventName):
        client_event_name(name)
