"""Payloads from the bus: kept, completed, wrapped or refused, and never anything else."""

import datetime
import json

import msgspec
import pytest
from hypothesis import example, given, settings as hypothesis_settings, strategies as st

from eventbus.errors import InvalidPayload
from eventbus.messages import (
    Message,
    read_payload,
    read_whole,
)
from eventbus.messages.envelope import DEFAULT_EVENT
from eventbus.messages.message import is_reserved_event

REASONS = {"not_utf8", "not_json", "too_deep", "bad_envelope", "reserved_event", "other_channel"}
AT = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
WHOLE = {
    "channel": "general",
    "event": "hello",
    "data": {"a": 1},
    "timestamp": "2026-01-01T00:00:00Z",
    "id": "i1",
}

# No floats: the two readers need not agree on the last digit of one.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
field_values = st.one_of(
    json_values, st.sampled_from(["general", "other", "", "pong", "eb:x", "hello", None, 7])
)
near_envelopes = st.dictionaries(
    st.sampled_from([*WHOLE, "offset", "epoch", "more"]), field_values
).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
broken_envelopes = st.builds(
    lambda body, at, byte: body[: at % len(body)] + byte + body[at % len(body) + 1 :],
    near_envelopes,
    st.integers(0, 500),
    st.binary(max_size=3),
)


@given(
    st.one_of(
        st.binary(),
        near_envelopes,
        broken_envelopes,
        json_values.map(lambda value: json.dumps(value).encode()),
    )
)
@example(b"")
@example(b"   ")
@example(b"[" * 100_000)
@example(b'{"event":"a","data":' + b"[" * 100_000)
@example(b'{"event":"a","data":"\xff"}')
@example(b'{"event":"a","data":1} x')
@example(b'{"event":"a","data":NaN}')
@example(b'{"event":"a","data":1,}')
@example(b'{"event":"\\ud800","data":1}')
@example(b'{"event":"a","data":"\\ud800"}')
@example(b'{"event":"a","data":01}')
@example(b"\xef\xbb\xbf{}")
@example(b'{"event":"a","event":"eb:x","data":1}')
@example(b'{"event":"eb:x","event":"a","data":1}')
@example(b'{"event":"a","data":1,"channel":"other","channel":"general"}')
@example(b'{"event":"a","data":1,"offset":5}')
@example(b'{"event":"a","data":1,"offset":5,"timestamp":null,"id":null,"channel":null}')
@example(b'{"event":"a","data":1,"id":null,"timestamp":null}')
@hypothesis_settings(deadline=None, max_examples=500)
def test_any_bytes_give_an_envelope_that_all_read_alike_or_a_known_reason(payload):
    try:
        envelope = read_payload("general", payload, id="7", timestamp=AT)
    except InvalidPayload as exc:
        assert exc.reason in REASONS  # noqa: PT017 - one of two outcomes
        return
    read = [json.loads(envelope.body), msgspec.json.decode(envelope.body)]
    for value in read:
        assert isinstance(value, dict)
        assert value["channel"] == "general"
        assert value["event"] == envelope.event
        assert not is_reserved_event(value["event"])
        assert "data" in value
        assert isinstance(value["timestamp"], str)
        assert value["id"] == envelope.id
        assert "offset" not in value
        assert "epoch" not in value
    assert read[0] == read[1]


@given(json_values, st.permutations(list(WHOLE)))
def test_valid_envelope_is_kept_byte_for_byte_whatever_its_order_and_spaces(data, order):
    whole = {**WHOLE, "data": data}
    body = json.dumps({key: whole[key] for key in order}, indent=1).encode()
    envelope = read_payload("general", body, id="other", timestamp=AT)
    assert envelope == ("hello", body, "i1", WHOLE["timestamp"])


def test_unknown_fields_of_an_envelope_are_kept():
    body = json.dumps({**WHOLE, "more": 1}).encode()
    assert read_payload("general", body).body == body


@pytest.mark.parametrize("missing", ["channel", "timestamp", "id"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_fields_of_an_envelope_are_completed_and_its_data_is_kept(missing, how):
    given_ = dict(WHOLE)
    if how == "null":
        given_[missing] = None
    else:
        del given_[missing]
    envelope = read_payload("general", json.dumps(given_).encode(), id="7", timestamp=AT)
    completed = {"channel": "general", "timestamp": "2026-01-02T00:00:00Z", "id": "7"}
    assert json.loads(envelope.body) == {**WHOLE, missing: completed[missing]}
    assert envelope.id == ("7" if missing == "id" else "i1")


@pytest.mark.parametrize("payload", [b'{"hello":1}', b"[1]", b'"text"', b"7", b"null", b" 1 \n"])
def test_other_json_is_wrapped_as_data(payload):
    envelope = read_payload("general", payload, id="7", timestamp=AT)
    assert json.loads(envelope.body) == {
        "channel": "general",
        "event": DEFAULT_EVENT,
        "data": json.loads(payload),
        "timestamp": "2026-01-02T00:00:00Z",
        "id": "7",
    }


@pytest.mark.parametrize("payload", [b'{"event":"x"}', b'{"data":{}}', b'{"event":5}'])
def test_object_without_both_event_and_data_is_not_an_envelope(payload):
    envelope = read_payload("general", payload, event="named")
    assert envelope.event == "named"
    assert json.loads(envelope.body)["data"] == json.loads(payload)


def test_message_without_an_id_from_anywhere_has_none():
    for payload in (b"1", b'{"event":"a","data":1}'):
        envelope = read_payload("general", payload, timestamp=AT)
        assert envelope.id is None
        assert "id" not in json.loads(envelope.body)


def test_data_reaches_clients_exactly_as_it_was_published():
    data = b'{ "n":1.0, "big":123456789012345678901234567890, "e":1E5, "s":"\\u00e9" }'
    for payload in (data, b'{"event":"a","data":' + data + b"}"):
        assert b'"data":' + data in read_payload("general", payload).body


@pytest.mark.parametrize(
    "claimed", [{"offset": 9, "epoch": "mine"}, {"offset": 9}, {"epoch": 1}, {"mark": "mine"}]
)
def test_position_that_a_publisher_claims_is_taken_out(claimed):
    body = json.dumps({**WHOLE, **claimed}).encode()
    assert json.loads(read_payload("general", body).body) == WHOLE


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"hello", "not_json"),
        (b"{", "not_json"),
        (b'{"a":1} {"a":2}', "not_json"),
        (b'{"event":"a","data":1', "not_json"),
        (b"NaN", "not_json"),
        (b"\xff", "not_utf8"),
        (b'{"event":"a","data":"\xc3("}', "not_utf8"),
        (b'"\xed\xa0\x80"', "not_utf8"),
        (b"[" * 50_000 + b"]" * 50_000, "too_deep"),
        (b'{"event":5,"data":1}', "bad_envelope"),
        (b'{"event":null,"data":1}', "bad_envelope"),
        (b'{"event":"a","data":1,"channel":5}', "bad_envelope"),
        (b'{"event":"a","data":1,"channel":""}', "bad_envelope"),
        (b'{"event":"a","data":1,"id":5}', "bad_envelope"),
        (b'{"event":"a","data":1,"timestamp":5}', "bad_envelope"),
        (json.dumps({"event": "a" * 201, "data": 1}).encode(), "bad_envelope"),
        (b'{"event":"","data":1}', "reserved_event"),
        (b'{"event":"pong","data":1}', "reserved_event"),
        (b'{"event":"eb:subscribed","data":1}', "reserved_event"),
        (b'{"event":"\\u0065b:x","data":1}', "reserved_event"),
        (b'{"event":"pusher:error","data":1}', "reserved_event"),
        (b'{"event":"a","data":1,"channel":"other"}', "other_channel"),
    ],
)
def test_payload_that_is_not_a_message_is_refused_with_its_reason(payload, reason):
    with pytest.raises(InvalidPayload) as caught:
        read_payload("general", payload)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["eb:x", "pong", "pusher:x"])
def test_reserved_event_in_the_header_is_refused(name):
    with pytest.raises(InvalidPayload) as caught:
        read_payload("general", b"1", event=name)
    assert caught.value.reason == "reserved_event"


# What a reader that skips over values without looking would let through to every client.
NO_JSON = [
    rb'"\q"', rb'"\x41"', rb'"\u12"', rb'"\uZZZZ"', rb'"\ud800"', rb'"\udc00\ud800"', b'"a\nb"',
    b'"\0"', b'{"a\n":1}', rb'{"\ud800":1}', b"tru", b"nulll", b"-", b"1.", b".5", b"+1", b"01",
    b"1e", b"0x1", b"Infinity", b"[1,]", b"[1 2]", b'{"a":1,}', b'{"a" 1}', b"{a:1}", b"'a'",
    b"[1]]", b"\x0b1", b"\xc2\xa01", b"//c\n1",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_JSON)
@pytest.mark.parametrize(
    "around",
    [b"%s", b'{"event":"a","data":%s}', b'{"event":"a","data":1,"more":%s}'],
    ids=["alone", "as_data", "as_another_field"],
)
def test_value_that_browsers_cannot_parse_is_refused_wherever_it_stands(around, value):
    with pytest.raises(InvalidPayload) as caught:
        read_payload("general", around % value)
    assert caught.value.reason in {"not_json", "bad_envelope"}


@given(
    st.one_of(
        near_envelopes,
        broken_envelopes,
        st.builds(lambda more: json.dumps({**WHOLE, **more}).encode(), st.dictionaries(
            st.sampled_from([*WHOLE, "offset", "epoch", "mark"]), field_values, max_size=2
        )),
    )
)  # fmt: skip
@example(json.dumps(WHOLE).encode() + b" \n")
@example(json.dumps({**WHOLE, "data": "ü"}, ensure_ascii=False).encode())
@example(b'{"event":"eb:x","event":"a",%b' % json.dumps(WHOLE).encode()[1:])
@hypothesis_settings(deadline=None, max_examples=500)
def test_the_short_way_gives_what_the_long_way_gives(payload):
    whole = read_whole("general", payload)
    if whole is not None:
        assert whole == read_payload("general", payload, event="named", id="other", timestamp=AT)
        assert whole.body is payload


def test_a_message_of_our_own_publishers_takes_the_short_way():
    for data in ("x", {"a": [1, 2]}, "x" * 5000, None):
        body = Message.create("general", "hello", data, id="i1").encode()
        whole = read_whole("general", body)
        assert whole is not None
        assert (whole.event, whole.body, whole.id) == ("hello", body, "i1")
