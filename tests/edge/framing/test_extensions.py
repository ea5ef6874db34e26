import contextlib

import pytest
from hypothesis import given, strategies as st

from eventbus_edge.framing.extensions import (
    InvalidExtensions,
    negotiate_extensions,
)

OURS = "permessage-deflate; server_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "bits", "answer"),
    [
        ("permessage-deflate", 15, OURS),
        ("permessage-deflate; client_max_window_bits", 15, OURS),  # browsers
        ("permessage-deflate; client_max_window_bits=8", 15, OURS),
        ("permessage-deflate; client_no_context_takeover", 15, OURS),
        ("permessage-deflate; server_no_context_takeover", 15, OURS),
        # What is asked of the server must be in the answer (7.1.2.1), also when it is as usual.
        (
            "permessage-deflate; server_max_window_bits=15",
            15,
            f"{OURS}; server_max_window_bits=15",
        ),
        ("permessage-deflate; server_max_window_bits=9", 9, f"{OURS}; server_max_window_bits=9"),
        (
            'permessage-deflate ;server_max_window_bits = "1\\0"; client_no_context_takeover',
            10,
            f"{OURS}; server_max_window_bits=10",
        ),
        # The first acceptable one, whatever precedes it.
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate",
            15,
            OURS,
        ),
        ("x-webkit-deflate-frame, , permessage-deflate", 15, OURS),
    ],
)
def test_an_offer_that_can_be_kept_is_accepted(offer, bits, answer):
    assert negotiate_extensions(offer) == (bits, answer)


@pytest.mark.parametrize(
    "offer",
    [
        "",
        " , ",
        "x-permessage-deflate",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=8",  # zlib cannot
        # What RFC 7692, 7.1, has a server decline:
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=ten",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=9; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; level=9",
    ],
)
def test_an_offer_that_cannot_be_kept_is_declined(offer):
    assert negotiate_extensions(offer) is None


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate;",
        "permessage-deflate; ;",
        "permessage-deflate; server_max_window_bits=",
        'permessage-deflate; server_max_window_bits="1',
        'permessage-deflate; server_max_window_bits="1 0"',
        'permessage-deflate; server_max_window_bits=""',
        "permessage-deflate client_max_window_bits",
        "permessage-deflate, =",
        "(comment)",
        "perméssage",
    ],
)
def test_a_header_outside_the_grammar_is_an_error(header):
    with pytest.raises(InvalidExtensions):
        negotiate_extensions(header)


@given(st.text(st.sampled_from('permessage-deflate;,="\\ \t1') | st.characters(), max_size=200))
def test_any_header_gives_an_answer_or_an_error(header):
    with contextlib.suppress(InvalidExtensions):
        agreed = negotiate_extensions(header)
        assert agreed is None or 9 <= agreed.window_bits <= 15


def test_a_long_header_of_the_worst_kind_is_read_at_once():
    header = "permessage-deflate" + "; a" * 10_000 + '; b="' + "\\x" * 10_000
    with pytest.raises(InvalidExtensions):
        negotiate_extensions(header)
