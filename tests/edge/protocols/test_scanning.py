"""Frames of clients, found in whatever pieces they come."""

import os

import pytest
from hypothesis import given, strategies as st
from websockets.frames import Frame, Opcode

from eventbus_edge.framing.scanning import FrameScanner

MANY = 10**6


def framed(opcode, payload=b"", *, fin=True, mask=True):
    return Frame(opcode, payload, fin=fin).serialize(mask=mask)


def ping(payload=b""):
    return framed(Opcode.PING, payload)


def text(payload=b"{}", *, fin=True):
    return framed(Opcode.TEXT, payload, fin=fin)


def take_all(scanner, *, most=MANY):
    """All that is there, portion by portion."""
    portions = [scanner.take(most, MANY)]
    while portions[-1].more:
        portions.append(scanner.take(most, MANY))
    return portions


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ping", "pong", "text", "part"]),
            st.sampled_from([0, 1, 125, 126, 300, 65_536]),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 200), max_size=40),
    st.integers(1, 5),
)
def test_frames_are_counted_alike_in_whatever_pieces_they_come(kinds, cuts, most):
    data, left, counted, messages, pings = b"", b"", 0, 0, []
    for kind, size in kinds:
        payload = os.urandom(min(size, 125) if kind in {"ping", "pong"} else size)
        match kind:
            case "ping":
                data += ping(payload)
                pings.append(payload)
            case "pong":
                data += framed(Opcode.PONG, payload)
            case "text":
                data, left = data + (frame := text(payload)), left + frame
            case "part":
                data, left = data + (frame := text(payload, fin=False)), left + frame
        messages += kind == "text"
        counted += kind != "text"
    scanner = FrameScanner(deflates=False)
    portions = []
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        scanner.feed(piece)
        portions += take_all(scanner, most=most)
    assert b"".join(portion.data for portion in portions) == left
    assert sum(portion.messages for portion in portions) == messages
    assert sum(portion.frames for portion in portions) == counted
    assert [p.ping for p in portions if p.ping is not None][-1:] == pings[-1:]
    assert all(portion.frames + portion.messages <= most for portion in portions)


def test_of_a_thousand_pings_the_newest_is_given():
    scanner = FrameScanner(deflates=False)
    scanner.feed(b"".join(ping(b"%d" % number) for number in range(1000)))
    assert scanner.take(MANY, MANY) == (b"", 1000, 0, b"999", False)


def test_no_more_frames_are_taken_than_asked_for_and_the_rest_comes_later():
    scanner = FrameScanner(deflates=False)
    scanner.feed(ping(b"1") + text() + ping(b"2") + text())
    first, second = scanner.take(3, MANY), scanner.take(3, MANY)
    assert (first.frames, first.messages, first.ping, first.more) == (2, 1, b"2", True)
    assert (second.frames, second.messages, second.ping, second.more) == (0, 1, None, False)


def test_no_more_messages_are_taken_than_there_is_room_for():
    scanner = FrameScanner(deflates=False)
    scanner.feed(text() * 3 + ping())
    first = scanner.take(MANY, 2)
    assert (first.messages, first.frames, first.more) == (2, 0, True)
    assert scanner.take(MANY, 0).more
    second = scanner.take(MANY, 1)
    assert (second.messages, second.frames, second.more) == (1, 0, True)
    assert scanner.take(MANY, 1).ping == b""


@pytest.mark.parametrize("payload", [b"", b"x" * 70_000])
def test_while_closing_all_is_dropped_but_the_close_frame(payload):
    scanner = FrameScanner(deflates=False)
    close = framed(Opcode.CLOSE, b"\x03\xe8")
    scanner.feed(text(payload) + ping() + text(payload, fin=False) + close + text())
    scanned = scanner.take(MANY, 1, drop=True)
    assert (scanned.data, scanned.messages) == (close, 0)


def test_a_message_that_was_begun_is_not_cut_off_by_closing():
    scanner = FrameScanner(deflates=False)
    frame = text(b"x" * 1000)
    scanner.feed(frame[:500])
    assert scanner.take(MANY, 1).data == frame[:500]
    scanner.feed(frame[500:] + frame)
    assert scanner.take(MANY, 1, drop=True).data == frame[500:]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x09\x80\x00\x00\x00\x00",  # a fragmented ping
        b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126,  # a ping of 126 bytes
        b"\xa9\x80\x00\x00\x00\x00",  # RSV2
        b"\xc9\x80\x00\x00\x00\x00",  # RSV1, not agreed on
        b"\x83\x80\x00\x00\x00\x00",  # an unknown opcode
        b"\x8b\x80\x00\x00\x00\x00",  # another one
    ],
)
def test_a_frame_that_breaks_the_protocol_is_left_to_the_reader(frame):
    scanner = FrameScanner(deflates=False)
    scanner.feed(frame)
    scanned = scanner.take(MANY, MANY)
    assert (scanned.data, scanned.ping) == (frame, None)
    assert scanned.frames + scanned.messages == 1


def test_where_deflating_is_agreed_on_its_bit_means_nothing_on_a_ping():
    scanner = FrameScanner(deflates=True)
    scanner.feed(b"\xc9\x80\x00\x00\x00\x00")
    assert scanner.take(MANY, MANY) == (b"", 1, 0, b"", False)


def test_an_unmasked_ping_is_read_as_it_is():
    scanner = FrameScanner(deflates=False)
    scanner.feed(framed(Opcode.PING, b"abc", mask=False))
    assert scanner.take(MANY, MANY).ping == b"abc"
