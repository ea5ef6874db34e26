import json
import random
import zlib

import pytest
from hypothesis import given, strategies as st

from eventbus.drivers.base import Position
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing import deflate
from eventbus_edge.framing.deflate import DeflatedFramings
from eventbus_edge.framing.frames import TEXT_FRAMES
from eventbus_edge.protocols.native import NATIVE
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    Pong,
)

PLAIN = Wires().shared(NATIVE, TEXT_FRAMES)
DEFLATED = 0xC1
"""FIN, RSV1, text."""


def message(data, offset=None):
    body = json.dumps({"channel": "general", "event": "e", "data": data}).encode()
    position = None if offset is None else Position(offset, "E")
    return ChannelMessage("general", "e", body, position, None)


def payload_of(frame):
    size = frame[1]
    return frame[2:] if size < 126 else frame[4:] if size == 126 else frame[10:]


def inflate(frame, bits=15):
    """As a client that has seen nothing before, with a window of that size."""
    inflater = zlib.decompressobj(-bits)
    read, data = b"", payload_of(frame) + b"\x00\x00\xff\xff"
    while data:  # in small pieces: zlib reaches back beyond its window in what it gives at once
        read += inflater.decompress(data, 100)
        data = inflater.unconsumed_tail
    return read


@pytest.fixture
def calls():
    return []


class Formats:
    """The native protocol in deflated frames."""

    def __init__(self, **options):
        self.framings = DeflatedFramings(**options)
        self.wires = Wires()

    def format(self, window_bits):
        return self.wires.shared(NATIVE, self.framings.framing(window_bits))


@pytest.fixture
def formats(calls):
    return Formats(
        min_bytes=100, level=3, on_deflated=lambda before, after: calls.append((before, after))
    )


def test_a_message_is_deflated_and_reads_as_the_plain_one(formats, calls):
    made = message("word " * 100, offset=7)
    frame = formats.format(15).message(made)
    plain = payload_of(PLAIN.message(made))
    assert frame[0] == DEFLATED
    assert inflate(frame) == plain
    assert calls == [(len(plain), len(payload_of(frame)) + 4)]


@given(st.lists(st.text(max_size=2000), min_size=1, max_size=8), st.integers(9, 15))
def test_each_message_can_be_read_without_any_earlier_one(texts, bits):
    wire = Formats(min_bytes=1, level=6, on_deflated=lambda *_: None).format(bits)
    for text in [*texts, *texts]:
        frame = wire.message(message(text))
        read = inflate(frame, bits) if frame[0] == DEFLATED else payload_of(frame)
        assert json.loads(read)["data"] == text


def test_a_smaller_window_is_kept_to(formats):
    noise = random.Random(1).randbytes(3000).hex()
    made = message(noise + noise)  # what repeats lies further back than 512 bytes
    small, large = (formats.format(bits).message(made) for bits in (9, 15))
    assert inflate(small, 9) == inflate(large, 15)
    with pytest.raises(zlib.error):
        inflate(large, 9)


def test_a_message_below_the_threshold_goes_plain(formats, calls):
    made = message("x" * 10)
    assert formats.format(15).message(made) == PLAIN.message(made)
    assert calls == []


def test_a_message_that_becomes_no_smaller_goes_plain(formats):
    made = message(random.Random(1).randbytes(300).decode("latin-1"))._replace(
        body=random.Random(1).randbytes(300)
    )
    assert formats.format(15).message(made) == PLAIN.message(made)


def test_an_answer_to_one_client_goes_plain(formats, calls):
    frame = formats.format(15).reply(Pong(b'"' + b"x" * 5000 + b'"', None))
    assert frame[0] == 0x81
    assert calls == []


def test_the_same_message_is_deflated_once_for_all_clients(formats, calls):
    frames = {formats.format(15).message(message("word " * 100, offset=7)) for _ in range(100)}
    assert len(frames) == len(calls) == 1
    formats.format(15).message(message("word " * 100, offset=8))
    assert len(calls) == 2
    formats.format(9).message(message("word " * 100, offset=7))
    assert len(calls) == 3
    assert formats.format(9) is formats.format(9)


def test_frames_are_kept_to_a_bound(formats, calls):
    wire = formats.format(15)
    size = deflate.MAX_KEPT_BYTES // 10
    for number in range(100):
        wire.message(message("word " * (size // 5), offset=number))
    kept = sum(len(payload) + len(frame) for payload, frame in wire._framing._frames.items())
    assert 0 < kept <= deflate.MAX_KEPT_BYTES
    assert wire._framing._room == deflate.MAX_KEPT_BYTES - kept
    wire.message(message("word " * deflate.MAX_KEPT_BYTES))
    assert not wire._framing._frames
    assert wire._framing._room == deflate.MAX_KEPT_BYTES
