"""Frames of clients, read in whatever pieces they come."""

import os
import sys
import tracemalloc
import zlib

import pytest
from hypothesis import given, strategies as st

from eventbus_edge.framing.reader import (
    BINARY,
    CLOSE,
    FRAGMENT,
    PING,
    PONG,
    TEXT,
    Fault,
    FrameReader,
)

LIMIT = 1000


def framed(opcode, payload=b"", *, fin=True, rsv1=False, mask=True):
    size = len(payload)
    if size < 126:
        short, extended = size, b""
    else:
        short, extended = (126, size.to_bytes(2)) if size < 65_536 else (127, size.to_bytes(8))
    head = bytes((fin << 7 | rsv1 << 6 | opcode, mask << 7 | short)) + extended
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def read_all(reader, data):
    reader.feed(data)
    frames = []
    while (frame := reader.read()) is not None:
        frames.append(frame)
    return frames


def read(data, *, deflates=False, limit=LIMIT):
    return read_all(FrameReader(limit, deflates=deflates), data)


def fault(data, *, deflates=False, limit=LIMIT):
    with pytest.raises(Fault) as caught:
        read(data, deflates=deflates, limit=limit)
    return caught.value.code


def deflate(payload, compressor=None, flush=zlib.Z_SYNC_FLUSH):
    compressor = compressor or zlib.compressobj(wbits=-15)
    data = compressor.compress(payload) + compressor.flush(flush)
    return data.removesuffix(b"\x00\x00\xff\xff")


def deflated(data, *, opcode=TEXT, fin=True):
    return framed(opcode, data, rsv1=True, fin=fin)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ping", "pong", "text", "binary", "parts"]),
            st.sampled_from([0, 1, 3, 124, 125, 126, 300, 65_535, 65_536]),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 200), max_size=40),
)
def test_frames_are_the_same_in_whatever_pieces_they_come(kinds, cuts):
    data, expected = b"", []
    for kind, size in kinds:
        payload = os.urandom(size)
        text = payload.hex()[:size]
        match kind:
            case "ping":
                data += framed(PING, payload[:125])
                expected.append((PING, payload[:125], ""))
            case "pong":
                data += framed(PONG, payload[:125])
                expected.append((PONG, payload[:125], ""))
            case "text":
                data += framed(TEXT, text.encode())
                expected.append((TEXT, text.encode(), text))
            case "binary":
                data += framed(BINARY, payload)
                expected.append((BINARY, payload, ""))
            case "parts":
                data += framed(BINARY, payload[:7], fin=False) + framed(PING)
                data += framed(FRAGMENT, payload[7:])
                expected += [(FRAGMENT, b"", ""), (PING, b"", ""), (BINARY, payload, "")]
    reader, frames = FrameReader(100_000, deflates=False), []
    for cut in cuts:
        frames += read_all(reader, data[:cut])
        data = data[cut:]
    assert frames + read_all(reader, data) == expected


FAULTS = {
    "5.1 an unmasked frame": framed(TEXT, b"{}", mask=False),
    "5.1 an unmasked ping": framed(PING, mask=False),
    "5.1 an unmasked close frame": framed(CLOSE, b"\x03\xe8", mask=False),
    "5.2 RSV1 without an extension": framed(TEXT, rsv1=True),
    "5.2 RSV2": b"\xa1\x80\0\0\0\0",
    "5.2 RSV3": b"\x91\x80\0\0\0\0",
    "5.2 a reserved data opcode": b"\x83\x80\0\0\0\0",
    "5.2 a reserved control opcode": b"\x8b\x80\0\0\0\0",
    "5.2 a size of 125 in 2 bytes": b"\x81\xfe\x00\x7d" + bytes(4 + 125),
    "5.2 a size of 65,535 in 8 bytes": b"\x82\xff" + (65_535).to_bytes(8) + bytes(4),
    "5.2 a size of 2^63": b"\x82\xff" + (2**63).to_bytes(8) + bytes(4),
    "5.4 a message within a message": framed(TEXT, b"a", fin=False) + framed(TEXT, b"b"),
    "5.4 a message within one that begins empty": framed(TEXT, fin=False) + framed(TEXT, b"b"),
    "5.4 a fragment within one that begins empty": framed(TEXT, fin=False)
    + framed(BINARY, fin=False),
    "5.4 a continuation of nothing": framed(FRAGMENT, b"a"),
    "5.4 a continuation after the last one": framed(TEXT, b"a", fin=False)
    + framed(FRAGMENT) + framed(FRAGMENT),
    "5.5 a fragmented ping": framed(PING, fin=False),
    "5.5 a fragmented close frame": framed(CLOSE, fin=False),
    "5.5 a ping of 126 bytes": b"\x89\xfe\x00\x7e" + bytes(4 + 126),
    "5.5.1 a close frame of one byte": framed(CLOSE, b"\x03"),
}  # fmt: skip


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS)
def test_frame_that_breaks_the_protocol_is_a_fault_with_1002(data):
    assert fault(data) == 1002


@pytest.mark.parametrize("data", [FAULTS["5.2 RSV2"], FAULTS["5.1 an unmasked frame"]])
def test_fault_is_found_in_the_first_two_bytes(data):
    assert fault(data[:2]) == 1002


def test_first_fragment_without_data_keeps_its_message_open():
    frames = read(framed(TEXT, fin=False) + framed(FRAGMENT, b"ab", fin=False) + framed(FRAGMENT))
    assert frames == [(FRAGMENT, b"", ""), (FRAGMENT, b"", ""), (TEXT, b"ab", "ab")]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4999])
def test_codes_that_a_client_may_send_are_taken(code):
    data = code.to_bytes(2)
    assert read(framed(CLOSE, data + "gü".encode())) == [(CLOSE, data, "")]


@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]
)
def test_codes_that_no_endpoint_may_send_are_faults(code):
    assert fault(framed(CLOSE, code.to_bytes(2))) == 1002


def test_close_frame_needs_no_code():
    assert read(framed(CLOSE)) == [(CLOSE, b"", "")]


@pytest.mark.parametrize(
    "data",
    [
        framed(TEXT, b"\xff"),
        framed(TEXT, "ü".encode()[:1]),
        framed(TEXT, "\ud800".encode("utf-8", "surrogatepass")),
        framed(TEXT, b"\xf4\x90\x80\x80"),
        framed(TEXT, b"a", fin=False) + framed(FRAGMENT, b"\xff"),
        framed(CLOSE, b"\x03\xe8\xff"),
    ],
    ids=range(6),  # the masks are random
)
def test_text_that_is_not_utf_8_is_a_fault_with_1007(data):
    assert fault(data) == 1007


@pytest.mark.parametrize("start", ["", "ü"])
def test_text_that_is_not_utf_8_is_a_fault_at_its_first_invalid_fragment(start):
    reader = FrameReader(100, deflates=False)
    first = start.encode() + b"\xf4"
    reader.feed(framed(TEXT, "whole, in fragments: ü".encode(), fin=False) + framed(FRAGMENT))
    assert [reader.read().opcode for _ in range(2)] == [FRAGMENT, TEXT]
    reader.feed(framed(TEXT, first, fin=False))
    assert reader.read().opcode == FRAGMENT
    reader.feed(framed(FRAGMENT, b"\x90", fin=False))
    with pytest.raises(Fault) as caught:
        reader.read()
    assert caught.value.code == 1007


def test_message_after_one_that_was_not_whole_text_is_checked_from_its_start():
    reader = FrameReader(100, deflates=False)
    reader.feed(framed(BINARY, b"\xff", fin=False) + framed(FRAGMENT, b"\xff"))
    assert [reader.read().opcode for _ in range(2)] == [FRAGMENT, BINARY]
    reader.feed(framed(TEXT, b"\xc3", fin=False) + framed(FRAGMENT, b"\xbc"))
    assert [reader.read().text for _ in range(2)] == ["", "ü"]


def test_reader_knows_whether_more_was_fed_than_read():
    reader = FrameReader(100, deflates=False)
    assert not reader.has_more
    reader.feed(framed(CLOSE) + b"\x81")
    reader.read()
    assert reader.has_more
    reader.feed(framed(TEXT)[1:])
    reader.read()
    assert not reader.has_more


def test_character_may_be_divided_between_fragments():
    frames = read(framed(TEXT, b"\xc3", fin=False) + framed(FRAGMENT, b"\xbc"))
    assert frames[-1].text == "ü"


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("limit", [10, 125, 126, 1000, 70_000])
def test_message_may_have_as_many_bytes_as_the_limit_and_not_one_more(limit, parts):
    def message(size):
        payload = b"x" * size
        data = b""
        for number in range(parts):
            opcode = FRAGMENT if number else TEXT
            last = number == parts - 1
            at = number * size // parts, (number + 1) * size // parts
            data += framed(opcode, payload[slice(*at)], fin=last)
        return data

    assert read(message(limit), limit=limit)[-1].payload == b"x" * limit
    assert fault(message(limit + 1), limit=limit) == 1009


def test_frame_that_is_too_large_is_refused_by_its_head():
    assert fault(b"\x81\xff" + (2**40).to_bytes(8)) == 1009


# Compression


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("payload", [b"x", os.urandom(4)], ids=["small", "incompressible"])
def test_limit_is_that_of_the_inflated_message(payload, parts):
    def message(size):
        data = deflate((payload * size)[:size] if payload == b"x" else os.urandom(size))
        half = len(data) // 2 if parts == 2 else len(data)
        frames = deflated(data[:half], opcode=BINARY, fin=parts == 1)
        return frames + (framed(FRAGMENT, data[half:]) if parts == 2 else b"")

    assert len(read(message(LIMIT), deflates=True)[-1].payload) == LIMIT
    assert fault(message(LIMIT + 1), deflates=True) == 1009


def test_incompressible_message_of_small_blocks_is_taken_up_to_the_limit():
    data = os.urandom(65_536)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 1)
    frames = read(deflated(deflate(data, compressor), opcode=BINARY), deflates=True, limit=65_536)
    assert frames[-1].payload == data


def test_messages_may_refer_to_those_before_them():
    compressor, text = zlib.compressobj(wbits=-15), "the same again and again" * 20
    frames = [deflated(deflate(text.encode(), compressor)) for _ in range(3)]
    assert len(frames[2]) < len(frames[0])
    assert [frame.text for frame in read(b"".join(frames), deflates=True)] == [text] * 3


def test_message_may_come_plain_although_deflating_is_agreed_on():
    frames = read(framed(TEXT, b"a") + deflated(deflate(b"b")) + framed(TEXT, b"c"), deflates=True)
    assert [frame.text for frame in frames] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("f2 48 cd c9 c9 07 00"),  # RFC 7692, 7.2.3.1
        bytes.fromhex("00 05 00 fa ff 48 65 6c 6c 6f 00"),  # 7.2.3.3: not compressed
        bytes.fromhex("f3 48 cd c9 c9 07 00 00"),  # 7.2.3.4: with BFINAL
        bytes.fromhex("f2 48 05 00 00 00 ff ff ca c9 c9 07 00"),  # 7.2.3.5: two blocks
        deflate(b"Hello", flush=zlib.Z_FINISH),
    ],
    ids=["7.2.3.1", "7.2.3.3", "7.2.3.4", "7.2.3.5", "finished"],
)
def test_examples_of_rfc_7692_are_read_and_so_is_what_follows(data):
    frames = deflated(data) + deflated(deflate(b"next"))
    assert [frame.text for frame in read(frames, deflates=True)] == ["Hello", "next"]


def test_deflated_message_may_be_empty():
    """RFC 7692, 7.2.3.6: one byte of 0."""
    assert read(deflated(b"\0"), deflates=True)[0].text == ""


@pytest.mark.parametrize(
    "data",
    [
        deflated(b"\xff" * 20),
        deflated(deflate(b"x" * 50)[:4] + b"\x07\x07\x07"),
        deflated(deflate(b"", flush=zlib.Z_FINISH) * 100),  # many streams in one message
        deflated(b"", fin=False) + deflated(b"", opcode=FRAGMENT),
        framed(TEXT, b"a", fin=False) + deflated(b"", opcode=FRAGMENT),
        framed(PING, rsv1=True),
        framed(PONG, rsv1=True),
        framed(CLOSE, rsv1=True),
    ],
    ids=["no block", "cut", "streams", "6 marked fragment", "6 fragment", "ping", "pong", "close"],
)
def test_invalid_deflated_data_is_a_fault_with_1002(data):
    assert fault(data, deflates=True) == 1002


def test_bomb_is_refused_and_takes_no_memory():
    bomb = deflated(deflate(b"0" * 20_000_000))
    tracemalloc.start()
    assert fault(bomb, deflates=True, limit=65_536) == 1009
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


# While the node closes


def test_messages_are_dropped_and_control_frames_are_not():
    reader = FrameReader(LIMIT, deflates=True)
    begun, large = framed(TEXT, b"a", fin=False), framed(BINARY, b"x" * LIMIT)
    assert read_all(reader, begun) == [(FRAGMENT, b"", "")]
    reader.feed(framed(FRAGMENT, b"\xff") + large + deflated(b"\xff") + framed(PING, b"p"))
    reader.feed(framed(CLOSE, b"\x03\xe8"))
    frames = []
    while (frame := reader.read(drop=True)) is not None:
        frames.append(frame)
    assert [frame.opcode for frame in frames] == [TEXT, BINARY, TEXT, PING, CLOSE]
    assert frames[1].payload == b""
    assert frames[-1].payload == b"\x03\xe8"


def test_reader_that_waits_keeps_nothing_of_what_it_has_read():
    reader, data = FrameReader(100_000, deflates=False), framed(BINARY, b"x" * 90_000)
    references = sys.getrefcount(data)
    assert len(read_all(reader, data)) == 1
    assert sys.getrefcount(data) == references


def test_frame_in_many_pieces_costs_no_more_than_its_size():
    reader, data = FrameReader(4_000_000, deflates=False), framed(BINARY, b"x" * 4_000_000)
    for at in range(0, len(data), 1000):
        frames = read_all(reader, data[at : at + 1000])
    assert len(frames[0].payload) == 4_000_000
