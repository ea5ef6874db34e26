"""The limit on the nesting of JSON: exact, bounded in time, and the same on any call stack."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus import EncodingError, Event
from eventbus.drivers.base import Delivery
from eventbus.errors import InvalidPayload
from eventbus.events import EventReader, ShouldBroadcast, encode_messages
from eventbus.messages import decode_metadata, encode_data, read_payload
from eventbus.messages.json_depth import (
    MAX_DATA_DEPTH,
    MAX_DEPTH,
    TooDeep,
    check_depth,
    decode_json,
    is_deeper,
    json_decoder,
)
from eventbus.queue.jobs import read_job

T = TypeVar("T")


def deep(levels: int, inside: str = "1") -> str:
    return "[" * levels + inside + "]" * levels


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def on_a_deep_stack(call: Callable[[], T], left: int = 60) -> T:
    """Call with few frames left before Python's recursion limit."""
    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]

    def dive(levels: int) -> T:
        return call() if levels <= 0 else dive(levels - 1)

    return dive(sys.getrecursionlimit() - used - left)


hostile = st.text(st.sampled_from('"\\[]{},: aé\u2028'))
values = st.recursive(
    st.none() | st.integers() | hostile,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile, inner, max_size=4),
    max_leaves=60,
)


@given(values, st.booleans())
def test_depth_is_that_of_the_decoded_value_whatever_its_strings_contain(value, ascii_only):
    text, depth = json.dumps(value, ensure_ascii=ascii_only), depth_of(value)
    for given_text in (text, text.encode()):
        assert not is_deeper(given_text, depth)
        assert depth == 0 or is_deeper(given_text, depth - 1)


def nested(ups: list[bool]) -> str:
    """Arrays, opened and closed in this order where that is possible."""
    parts, level, is_first = ["["], 1, True
    for up in ups:
        if up:
            parts.append("[" if is_first else ",[")
            level, is_first = level + 1, True
        elif level > 1:
            parts.append("]")
            level, is_first = level - 1, False
    return "".join([*parts, "]" * level])


@given(st.lists(st.booleans() | st.just(True), min_size=100, max_size=400))
def test_depth_is_that_of_arrays_which_are_nested_in_any_way(ups):
    text = nested(ups)
    depth = depth_of(json.loads(text))
    assert not is_deeper(text, depth)
    assert is_deeper(text, depth - 1)


@pytest.mark.parametrize("many", [1, 300])
@pytest.mark.parametrize("inside", ["1", '"["', r'"\\"', r'"\"[["', '"]]]]"', "{}"])
def test_limit_is_exact_in_wide_text_and_beside_brackets_in_strings(many, inside):
    extra = inside == "{}"
    for levels in (MAX_DATA_DEPTH - extra - 1, MAX_DATA_DEPTH - extra):
        wide = "[" + ",".join([deep(levels, inside)] * many) + "]"
        is_too_deep = levels + extra + 1 > MAX_DATA_DEPTH
        assert is_deeper(wide, MAX_DATA_DEPTH) == is_too_deep


@pytest.mark.parametrize(
    "text",
    [b"[" * 1_000_000, deep(500_000).encode(), b"]" * 1_000_000, b'["' * 300_000, b"\\" * 999_999,
     b"[" + b",".join([deep(90).encode()] * 5000) + b"]", b"[" + b"[]," * 300_000 + b"1]"],
    ids=["open", "chain", "closed", "quotes", "backslashes", "forest", "flat"],
)  # fmt: skip
def test_any_megabyte_is_judged_quickly(text):
    before = time.process_time()
    is_deeper(text, MAX_DEPTH)
    assert time.process_time() - before < 1


def test_decoder_accepts_the_limit_and_refuses_more():
    decode = json_decoder(msgspec.Raw)
    assert bytes(decode(deep(MAX_DEPTH))) == deep(MAX_DEPTH).encode()
    assert depth_of(decode_json(msgspec.Raw(deep(MAX_DEPTH).encode()))) == MAX_DEPTH
    for refuse in (decode, decode_json, check_depth):
        with pytest.raises(TooDeep, match=f"at most {MAX_DEPTH} levels"):
            refuse(deep(MAX_DEPTH + 1))
        with pytest.raises(msgspec.DecodeError):
            refuse("[" * 100_000)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since 3.12, C code has its own limit")
def test_exhausted_stack_is_a_clear_error_and_no_recursion_error():
    with pytest.raises(TooDeep, match="call stack"):
        on_a_deep_stack(lambda: decode_json(deep(90)))
    value = json.loads(deep(90))
    with pytest.raises(EncodingError, match="nested too deeply"):
        on_a_deep_stack(lambda: encode_data(value, "x"))
    with pytest.raises(InvalidPayload) as caught:
        on_a_deep_stack(lambda: read_payload("general", deep(90).encode()))
    assert caught.value.reason == "too_deep"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="until 3.12, C code shares the limit")
def test_call_on_a_deep_stack_decodes_what_any_other_does():
    assert depth_of(on_a_deep_stack(lambda: decode_json(deep(90)))) == 90
    assert on_a_deep_stack(lambda: read_payload("general", deep(90).encode()))


@pytest.mark.parametrize(
    "form",
    [
        "%s",
        '{"event":"a","data":%s}',
        '{"data":%s,"event":"a","x":{}}',
        '{"event":"a","data":%s,"channel":"general","id":"i"}',
    ],
)
def test_payload_of_any_form_has_the_same_limit_on_its_data(form):
    assert read_payload("general", (form % deep(MAX_DATA_DEPTH)).encode())
    for levels in (MAX_DATA_DEPTH + 1, MAX_DATA_DEPTH + 2, 100_000):
        with pytest.raises(InvalidPayload, match="nested too deeply") as caught:
            read_payload("general", (form % deep(levels)).encode())
        assert caught.value.reason == "too_deep"


class Nested(Event, ShouldBroadcast, channel="general", name="json_depth.nested"):
    data: Any


def test_publisher_can_send_what_subscribers_accept_and_no_more():
    value = json.loads(deep(MAX_DATA_DEPTH - 1))  # the event itself is one level
    (sent,) = encode_messages(Nested(value))
    found = EventReader(Nested).read("general", Delivery("s", sent.message.encode()))
    assert found is not None
    assert found[0].data == value
    for given_value in ([value], json.loads(deep(500))):
        with pytest.raises(EncodingError, match="nested too deeply"):
            encode_messages(Nested(given_value))


def test_data_that_contains_itself_is_an_encoding_error():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodingError, match="contains itself"):
        encode_data(loop, "the data")


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 1200, 100_000])
def test_all_other_decoders_of_json_from_the_bus_refuse_deep_json(levels):
    text = '{"x":' + deep(levels) + "}"
    with pytest.raises(InvalidPayload, match="nested too deeply"):
        read_job(text.encode())
    with pytest.raises(InvalidPayload, match="nested too deeply"):
        decode_metadata({"Eb-Meta": text})
