import re

import pytest
from hypothesis import given, strategies as st

from eventbus.channels import Pattern
from eventbus.drivers.base import Delivery, Position
from eventbus.drivers.redis.wire import (
    STORED_PREFIX,
    VOLATILE_PREFIX,
    decode,
    encode_body,
    glob_of,
)

HEADERS = st.dictionaries(st.text(), st.text(), max_size=3)


@given(st.binary(), HEADERS)
def test_stored_frame_comes_back_as_it_was(payload, headers):
    frame = STORED_PREFIX + b"abc 7 5 1700000000000001 " + encode_body(payload, headers)
    assert decode("eb.live.a", frame) == Delivery(
        "eb.live.a", payload, headers, Position(7, "abc"), 5, "2023-11-14T22:13:20.000001Z"
    )


@given(st.binary(), HEADERS)
def test_volatile_frame_comes_back_as_it_was(payload, headers):
    frame = VOLATILE_PREFIX + encode_body(payload, headers)
    assert decode("eb.live.a", frame) == Delivery("eb.live.a", payload, headers)


@given(st.one_of(st.binary(), st.binary().map(STORED_PREFIX.__add__)))
def test_bytes_of_others_are_never_an_error(data):
    assert decode("eb.live.a", data).subject == "eb.live.a"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        STORED_PREFIX,
        STORED_PREFIX + b"abc 1 2 0\nx",
        STORED_PREFIX + b"abc -1 0 1 0\nx",
        STORED_PREFIX + b"\xff 1 0 1 0\nx",
        STORED_PREFIX + b"abc 1 0 999999999999999999 0\nx",
        STORED_PREFIX + b"abc 1 0 1 x\nx",
        STORED_PREFIX + b"abc 1 0 1 3\n[1]x",
        VOLATILE_PREFIX + b"9",
        VOLATILE_PREFIX + b'7\n{"a":1}x',
    ],
)
def test_broken_frame_is_a_bare_payload(data):
    assert decode("eb.live.a", data) == Delivery("eb.live.a", data)


@pytest.mark.parametrize(
    ("pattern", "glob"),
    [("eb.live.>", b"eb.live.*"), ("a.*.c.>", b"a.*.c.*"), ("a.{x}.c", b"a.*.c"), ("a-b", b"a-b")],
)
def test_glob_holds_all_that_the_filter_matches(pattern, glob):
    assert glob_of(Pattern(pattern)) == glob


def test_no_token_can_hold_a_character_that_means_something_in_a_glob():
    for character in "?[]\\^":
        with pytest.raises(ValueError, match=re.escape("is not a channel pattern")):
            Pattern(f"a{character}b")
