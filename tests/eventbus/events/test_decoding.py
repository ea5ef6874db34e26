"""What a subscription reads: anything that anyone may have published, and the documented error."""

import contextlib
import datetime
import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from eventbus.drivers.base import Delivery, Position
from eventbus.drivers.queues import Failure
from eventbus.errors import InvalidPayload
from eventbus.events import Event, EventReader, ShouldBroadcast
from eventbus.messages import decode_metadata, decode_tags
from eventbus.queue.jobs import read_failure, read_job


class Read(Event, ShouldBroadcast, channel="read.{key}", name="decoding.read"):
    key: str
    n: int = 0
    at: datetime.datetime | None = None
    more: Any = None


reader = EventReader(Read)
texts = st.text(st.characters(codec="utf-8")) | st.sampled_from(
    ["", "0" * 5000, "1e999", "{}", "[" * 5000]
)
keys = st.sampled_from(
    ["event", "data", "channel", "id", "timestamp", "offset", "epoch", "key", "n", "at", "more"]
)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts
    | st.sampled_from(["decoding.read", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
payloads = st.binary() | values.map(lambda value: json.dumps(value).encode())
envelopes = values.map(lambda value: json.dumps({"event": "decoding.read", "data": value}).encode())
headers = st.dictionaries(
    st.sampled_from(["Eb-Event", "Eb-Meta", "Eb-Tags", "Eb-Version", "Nats-Msg-Id"]), texts
)


@given(payloads | envelopes, headers, st.none() | texts, st.booleans())
@example(b'{"event":"decoding.read","data":{"n":%s}}' % (b"9" * 5000), {}, None, False)
@example(b'{"event":"decoding.read","data":{"n":1e999}}', {}, None, False)
def test_any_delivery_is_an_event_or_nothing_or_the_documented_error(
    payload, given_headers, time, is_stored
):
    position = Position(7, "e") if is_stored else None
    delivery = Delivery("s", payload, headers=given_headers, position=position, time=time)
    try:
        found = reader.read("read.a~2eb", delivery)
    except InvalidPayload:
        return
    if found is not None:
        event, context = found
        assert isinstance(event, Read)
        assert context.timestamp.tzinfo is not None


def test_field_of_the_channel_is_decoded():
    found = reader.read(
        "read.ada@example~2ecom", Delivery("s", b'{"event":"decoding.read","data":{}}')
    )
    assert found is not None
    assert found[0].key == "ada@example.com"


@given(payloads)
def test_any_payload_read_as_a_job_raises_only_the_documented_error(payload):
    with pytest.raises(InvalidPayload):
        read_job(payload)


@given(texts, texts)
def test_any_stored_failure_can_be_read(text, info):
    assert read_failure(Failure(text, text, info, b"")).queue == text


@given(headers)
def test_whatever_headers_contain_raises_only_the_documented_error(given_headers):
    assert all(decode_tags(given_headers))
    with contextlib.suppress(InvalidPayload):
        assert isinstance(decode_metadata(given_headers), dict)
