"""What travels beside an event: metadata, tags and the sender, out by headers and back."""

import json
import math

import pytest
from hypothesis import given, strategies as st

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import EncodingError, InvalidName, InvalidPayload
from eventbus.events import Event, ShouldBroadcast
from eventbus.events.encoding import (
    headers_of,
    messages_of,
)
from eventbus.messages import decode_metadata, decode_tags, encode_metadata
from eventbus.messages.headers import MAX_METADATA, MAX_TAGS


class Paid(Event, ShouldBroadcast, name="hdr.paid", channel="paid"):
    amount: int


class Newer(Event, ShouldBroadcast, name="hdr.newer", channel="newer", version=2):
    pass


def test_event_without_more_has_no_headers():
    assert headers_of(Paid(1)) == {}
    assert headers_of(Newer()) == {"Eb-Version": "2"}


def test_metadata_tags_and_sender_stay_with_the_same_event():
    event = Paid(1)
    other = event.with_meta(metadata={"trace": "t1"}, tags=["a"]).to_others("c-9")
    assert other == event
    assert other is not event
    assert other.event_meta.id == event.event_meta.id
    assert other.event_meta.timestamp == event.event_meta.timestamp
    assert event.event_meta.metadata == {}
    assert headers_of(event) == {}
    assert headers_of(other) == {
        "Eb-Meta": '{"trace":"t1"}', "Eb-Tags": "a", "Eb-Except": "c-9",
    }  # fmt: skip


def test_metadata_and_tags_add_up_and_later_keys_win():
    event = Paid(1).with_meta(metadata={"a": 1, "b": 1}, tags=("x",))
    event = event.with_meta(metadata={"b": 2}).with_meta(tags=("y", "x"))
    assert event.event_meta.metadata == {"a": 1, "b": 2}
    assert event.event_meta.tags == ("x", "y")


def test_sender_can_be_reset():
    assert Paid(1).to_others("c").to_others(None).event_meta.except_connection is None


async def test_clients_notice_no_difference():
    async with EventBus(Settings(driver="memory")) as bus:
        got = []
        await bus.driver.subscribe("eb.>", got.append)
        event = (
            Paid(1).with_meta(metadata={"secret": "s3cr"}, tags=("internal",)).to_others("c-xyz")
        )
        await event.dispatch()
        (page,) = (await bus.driver.read("eb.live.paid", after=None, limit=10)).messages
        assert page.headers["Eb-Except"] == "c-xyz"
        for word in (b"s3cr", b"internal", b"c-xyz"):
            assert word not in page.payload
        assert set(json.loads(page.payload)) == {"channel", "event", "data", "timestamp", "id"}


async def test_same_event_with_more_metadata_is_stored_once():
    async with EventBus(Settings(driver="memory")) as bus:
        event = Paid(1)
        (first,) = await bus.dispatch(event)
        (again,) = await bus.dispatch(event.with_meta(metadata={"retry": 1}))
        assert again.duplicate
        assert again.offset == first.offset


@pytest.mark.parametrize(
    "metadata",
    [{"x": object()}, {("a", "b"): 1}, {"x": "é" * MAX_METADATA}, {"x": "y" * MAX_METADATA}],
)
def test_metadata_that_cannot_travel_is_refused(metadata):
    with pytest.raises(EncodingError, match="metadata"):
        Paid(1).with_meta(metadata=metadata)


def test_metadata_at_the_limit_travels():
    text = "y" * (MAX_METADATA - len('{"x":""}'))
    assert len(headers_of(Paid(1).with_meta(metadata={"x": text}))["Eb-Meta"]) == MAX_METADATA


@pytest.mark.parametrize("tags", [("",), ("a,b",), ("a b",), ("é",), ("a\n",), ("x" * 65,), (5,)])
def test_tag_that_cannot_travel_is_refused(tags):
    with pytest.raises(InvalidName, match="tag"):
        Paid(1).with_meta(tags=tags)


def test_tags_are_bounded_also_over_several_calls():
    event = Paid(1).with_meta(tags=[f"t{n}" for n in range(MAX_TAGS)])
    with pytest.raises(InvalidName, match="too many"):
        event.with_meta(tags=("more",))


def test_one_tag_may_be_given_as_a_string():
    assert Paid(1).with_meta(tags="urgent").event_meta.tags == ("urgent",)


@pytest.mark.parametrize("connection", ["", "a b", "x\r\nNats-Rollup: all", "x" * 201, 5])
def test_invalid_connection_id_is_refused(connection):
    with pytest.raises(InvalidName, match="connection"):
        Paid(1).to_others(connection)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_metadata_comes_back_as_it_was_and_fits_a_header(metadata):
    try:
        text = encode_metadata(metadata)
    except EncodingError:
        assert len(json.dumps(metadata, separators=(",", ":"))) > MAX_METADATA
        return
    assert text.isascii()
    assert text.isprintable()
    assert decode_metadata({"Eb-Meta": text}) == metadata


def test_numbers_that_json_lacks_become_null():
    assert decode_metadata({"Eb-Meta": encode_metadata({"x": math.nan})}) == {"x": None}


@pytest.mark.parametrize("text", ["[1]", "{", "5", '{"a":' + "[" * 5000 + "]" * 5000 + "}"])
def test_metadata_of_others_that_is_not_an_object_is_an_invalid_payload(text):
    with pytest.raises(InvalidPayload) as caught:
        decode_metadata({"Eb-Meta": text})
    assert caught.value.reason == "bad_metadata"


def test_tags_of_others_are_read_without_empty_ones():
    assert decode_tags({"Eb-Tags": "a,,b,"}) == ("a", "b")
    assert decode_tags({}) == ()


@pytest.mark.parametrize("name", ["dispatch_if", "dispatch_unless", "with_meta", "to_others"])
def test_field_that_would_hide_a_method_of_events_is_refused(name):
    with pytest.raises(TypeError, match=f"a field cannot be called '{name}'"):
        type(Event)("Hiding", (Event,), {"__annotations__": {name: int}})


def test_messages_of_one_event_are_the_same_with_and_without_metadata():
    event = Paid(1)
    assert messages_of(event) == messages_of(event.with_meta(tags=("a",)))
