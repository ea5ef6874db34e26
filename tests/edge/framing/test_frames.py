"""Server frames: as RFC 6455 counts them, and as another implementation reads them."""

import pytest
from hypothesis import given, strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from eventbus_edge.framing.frames import (
    MAX_CLOSE_REASON,
    PING_FRAME,
    close_reason,
    pong_frame,
    text_frame,
)

LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000]


def read(data):
    """What the `websockets` package, as a client, makes of the bytes."""
    client = ClientProtocol(parse_uri("ws://test/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    frames = client.events_received()
    assert client.parser_exc is None
    assert all(isinstance(frame, Frame) for frame in frames)
    return frames


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_frame_has_the_length_field_of_rfc_6455_section_5_2(length):
    frame = text_frame(b"x" * length)
    assert frame[0] == 0x81  # FIN, no extension, text
    assert frame[1] & 0x80 == 0  # a server does not mask
    if length <= 125:
        assert frame[1] == length
        head = 2
    elif length <= 65_535:
        assert (frame[1], int.from_bytes(frame[2:4])) == (126, length)
        head = 4
    else:
        assert (frame[1], int.from_bytes(frame[2:10])) == (127, length)
        head = 10
    assert frame[head:] == b"x" * length


@pytest.mark.parametrize("length", LENGTHS)
def test_another_implementation_reads_a_text_frame_of_any_length(length):
    (frame,) = read(text_frame(b"x" * length))
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.TEXT, True, b"x" * length)


@given(st.lists(st.text(max_size=200), max_size=20))
def test_frames_joined_into_one_write_are_read_as_the_frames_they_were(texts):
    frames = read(b"".join(text_frame(text.encode()) for text in texts))
    assert [bytes(frame.data).decode() for frame in frames] == texts


def test_a_ping_is_an_empty_control_frame():
    (frame,) = read(PING_FRAME)
    assert (frame.opcode, bytes(frame.data)) == (Opcode.PING, b"")


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", b"x" * 125])
def test_a_pong_carries_the_payload_of_its_ping(payload):
    (frame,) = read(pong_frame(payload))
    assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, payload)


@given(st.sampled_from([1000, 1001, 4001, 4200, 4203]), st.text(max_size=200))
def test_a_close_frame_is_whole_however_long_its_reason(code, reason):
    data = code.to_bytes(2, "big") + close_reason(reason)
    assert len(data) <= 125
    close = Close.parse(data)  # raises when the reason is not UTF-8
    assert close.code == code
    assert reason.startswith(close.reason)
    if len(reason.encode()) <= MAX_CLOSE_REASON:
        assert close.reason == reason
