"""Server-Sent Events as bytes: events, and cursors that come back as they were given."""

import json
import random

import pytest

from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.drivers.marks import (
    MarkedPosition,
    mark_of,
    nanoseconds,
)
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing import sse
from eventbus_edge.framing.sse import (
    MAX_CURSOR,
    ManyChannels,
    OneChannel,
    closing as last_event,
    decode_cursor,
    encode_cursor,
)
from eventbus_edge.protocols.native import NATIVE
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    CloseReason,
    Connected,
    Returns,
    Subscribed,
)

EPOCH = "2026-11-23T20:07:01.298134Z"


WIRES = Wires()


def native(framing):
    """The native protocol over a framing."""
    return WIRES.own(NATIVE, framing)


def closing(reason, text):
    """The last event of a native stream."""
    end = NATIVE.closing(reason, text)
    return last_event(NATIVE.reply(end), returns_at_once=end.returns is Returns.AT_ONCE)


def message(channel, offset, body=b'{"channel":"a","data":1}', epoch=EPOCH):
    position = None if offset is None else Position(offset, epoch)
    return ChannelMessage(channel, "e", body, position, None)


def parse(event):
    """One event as the standard's parser reads it: its fields, the data's lines joined."""
    assert event.endswith(b"\n\n")
    fields = {}
    for line in event.decode().splitlines():
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields


def test_cursors_of_any_positions_come_back():
    rng = random.Random(7)
    for size in (1, 2, 3, 10, 100):
        channels = [f"c{n}" for n in range(size)]
        for _ in range(50):
            positions = {
                name: Position(rng.choice([0, 1, 200, 10**6, 2**63]), rng.choice([EPOCH, "x", "y"]))
                for name in channels
                if rng.random() < 0.8
            }
            text = encode_cursor(channels, positions).decode()
            rng.shuffle(channels)
            assert decode_cursor(text, channels) == positions


def test_marks_of_positions_come_back_with_a_cursor():
    marks = ["2026-11-30T18:55:02.52499475Z", "~2026-11-30T18:55:02Z", "~1970-01-01T00:00:00.1Z"]
    positions = {f"c{n}": MarkedPosition(n, EPOCH, mark) for n, mark in enumerate(marks)}
    positions["plain"] = Position(7, EPOCH)
    positions["odd"] = MarkedPosition(8, EPOCH, "no time")
    names = [*positions, "nowhere"]
    found = decode_cursor(encode_cursor(names, positions).decode(), names)
    assert found == positions
    assert {name: mark_of(position) for name, position in found.items()} == {
        "c0": marks[0], "c1": marks[1], "c2": marks[2], "plain": None, "odd": None,
    }  # fmt: skip


def test_event_of_a_stream_bears_the_mark_of_its_message():
    marked = message("a", 7)._replace(mark="2026-11-30T18:55:02.5Z")
    streams = (native(OneChannel()), native(ManyChannels(["a", "b"], {})))
    for stream in streams:
        event = parse(stream.message(marked))
        assert json.loads(event["data"])["mark"] == "2026-11-30T18:55:02.5Z"
        names = ["a"] if stream is streams[0] else ["a", "b"]
        assert mark_of(decode_cursor(event["id"], names)["a"]) == "2026-11-30T18:55:02.5Z"


def test_a_cursor_of_a_hundred_marked_channels_is_short_enough_to_be_read():
    channels = [f"orders.{n:0>40}" for n in range(200)]
    positions = {
        name: MarkedPosition(10**9 + n, EPOCH, f"2026-11-30T18:{n % 60:02}:02.{n:09}Z")
        for n, name in enumerate(channels)
    }
    cursor = encode_cursor(channels, positions).decode()
    assert len(cursor) < MAX_CURSOR
    assert decode_cursor(cursor, channels) == positions


def test_a_cursor_of_a_hundred_channels_is_short():
    channels = [f"orders.{n:0>40}" for n in range(100)]
    positions = {name: Position(10**9 + n, EPOCH) for n, name in enumerate(channels)}
    assert len(encode_cursor(channels, positions)) < 700


def test_a_cursor_can_be_a_header_and_a_parameter():
    channels = ["a", "b"]
    for offset in range(300):
        text = encode_cursor(channels, {"a": Position(offset, EPOCH)}).decode()
        assert text.replace("-", "").replace("_", "").isalnum()


def test_the_cursor_of_a_stream_follows_every_message_and_answer():
    rng = random.Random(7)
    channels = [f"c{n}" for n in range(20)]
    wire = native(ManyChannels(channels, {}))
    expected: dict[str, Position] = {}
    for step in range(2000):
        channel = rng.choice([*channels, "of another pattern"])
        offset = max(0, step + rng.choice([0, 0, 0, 10_000, -50, 2**63]))
        position = Position(offset, rng.choice([EPOCH, EPOCH, EPOCH, f"new-{step // 100}"]))
        mark = rng.choice([None, f"2026-11-30T18:{step % 60:02}:02.{step + 1:09}Z"])
        if rng.random() < 0.1:
            answered = None if rng.random() < 0.5 else position
            event = wire.reply(Subscribed(channel, ChannelKind.PUBLIC, answered, None, None))
            position, mark = answered, None
        else:
            event = wire.message(message(channel, 7)._replace(position=position, mark=mark))
        if channel in channels:
            expected.pop(channel, None)
            if position is not None:
                expected[channel] = position if mark is None else MarkedPosition(*position, mark)
        found = decode_cursor(parse(event)["id"], channels)
        assert found == expected
        assert [mark_of(each) for each in found.values()] == [
            mark_of(expected[name]) and mark_of(expected[name]).rstrip("Z").rstrip("0") + "Z"
            for name in found
        ]


@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 100, 200])
@pytest.mark.parametrize("epoch", ["", "1", "12", "123"])
def test_cursor_of_a_stream_is_read_and_fits_whatever_its_size(size, epoch):
    channels = [f"c{n}" for n in range(size)]
    mark = "2026-11-30T18:55:02.123456789Z"
    positions = {name: MarkedPosition(10**9, EPOCH + epoch, mark) for name in channels[1:]}
    wire = native(ManyChannels(channels, positions))
    text = parse(wire.message(message("of another pattern", 7)))["id"]
    assert len(text) < MAX_CURSOR
    assert decode_cursor(text, channels) == positions
    moved = MarkedPosition(2, EPOCH + epoch, mark)
    event = wire.message(message("c0", 7)._replace(position=Position(*moved), mark=mark))
    assert decode_cursor(parse(event)["id"], channels) == positions | {"c0": moved}


def test_cursor_that_another_version_wrote_with_short_numbers_is_read():
    # Of a stream of the channels a, b and c, where nothing is known of b.
    positions = {
        "a": MarkedPosition(900, EPOCH, "2026-11-30T18:55:02.5Z"),
        "c": Position(3, "another"),
    }
    text = encode_cursor(["a", "b", "c"], positions).decode()
    assert decode_cursor(text, ["a", "b", "c"]) == positions
    wire = native(ManyChannels(["a", "b", "c"], decode_cursor(text, ["a", "b", "c"])))
    event = parse(wire.message(message("d", 7)))
    assert decode_cursor(event["id"], ["a", "b", "c"]) == positions


def test_the_places_of_other_channels_are_not_computed_for_each_message(monkeypatch):
    parsed = []
    monkeypatch.setattr(sse, "nanoseconds", lambda text: parsed.append(text) or nanoseconds(text))
    channels = [f"c{n}" for n in range(100)]
    start = MarkedPosition(1000, EPOCH, "2026-11-30T18:55:02Z")
    wire = native(ManyChannels(channels, dict.fromkeys(channels, start)))
    del parsed[:]
    for number in range(500):
        mark = f"2026-11-30T18:55:02.{number + 1:09}Z"
        wire.message(message(f"c{number % 100}", 1001 + number)._replace(mark=mark))
    assert len(parsed) == 500


def test_a_time_that_no_stream_can_have_leaves_the_other_channels_in_the_cursor():
    wire = native(ManyChannels(["a", "b"], {"a": Position(5, EPOCH)}))
    event = parse(wire.message(message("b", 7)._replace(mark="9999-01-01T00:00:00Z")))
    assert decode_cursor(event["id"], ["a", "b"]) == {
        "a": Position(5, EPOCH), "b": Position(7, EPOCH),
    }  # fmt: skip


GOOD = encode_cursor(["a"], {"a": Position(5, "x")}).decode()


@pytest.mark.parametrize(
    "text",
    ["", "x", "%", "ü", "AAAA", GOOD[:-2], GOOD + "AAAA", GOOD + "=" * 5, GOOD + " ", "\x00",
     "A" * (MAX_CURSOR + 1), encode_cursor(["b"], {"b": Position(5, "x")}).decode(),
     encode_cursor(["a", "b"], {}).decode()],
)  # fmt: skip
def test_cursor_of_other_channels_is_not_read(text):
    assert decode_cursor(text, ["a"]) is None


def test_damaged_cursors_never_raise_and_never_give_an_impossible_position():
    rng = random.Random(7)
    for _ in range(3000):
        damaged = list(GOOD)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = chr(rng.randrange(33, 127))
        for position in (decode_cursor("".join(damaged), ["a"]) or {}).values():
            assert position.offset >= 0


def test_event_has_the_whole_envelope_and_no_event_field():
    event = parse(native(OneChannel()).message(message("a", 7)))
    assert set(event) == {"id", "data"}
    assert json.loads(event["data"]) == {"channel": "a", "data": 1, "offset": 7, "epoch": EPOCH}
    assert decode_cursor(event["id"], ["a"]) == {"a": Position(7, EPOCH)}


@pytest.mark.parametrize("wire", [native(OneChannel()), native(ManyChannels(["a", "b"], {}))])
def test_line_ends_in_an_envelope_do_not_break_its_event(wire):
    body = b'{"channel":"a",\r\n\r\n"data":\r{"x":\n"id: 9\\n"},\n"event":"e"\n}\n'
    for offset in (None, 7):
        event = parse(wire.message(message("a", offset, body)))
        assert set(event) == ({"data"} if offset is None else {"data", "id"})
        expected = json.loads(body) | ({"offset": 7, "epoch": EPOCH} if offset else {})
        assert json.loads(event["data"]) == expected


def test_volatile_messages_and_other_system_events_leave_the_cursor_as_it_is():
    for wire in (native(OneChannel()), native(ManyChannels(["a", "b"], {}))):
        assert set(parse(wire.message(message("a", None)))) == {"data"}
        assert set(parse(wire.reply(Connected("c", "n", 25.0, 50.0, 100)))) == {"data"}


def test_a_cursor_of_several_channels_keeps_where_the_others_stand():
    wire = native(ManyChannels(["b", "a"], {"a": Position(3, EPOCH), "b": Position(4, EPOCH)}))
    reported = Subscribed("a", ChannelKind.PUBLIC, Position(3, EPOCH), recovered=True, ref=None)
    for event, expected in (
        (wire.reply(reported), {"a": 3, "b": 4}),
        (wire.message(message("a", 9)), {"a": 9, "b": 4}),
        (wire.message(message("b", 10)), {"a": 9, "b": 10}),
    ):
        positions = decode_cursor(parse(event)["id"], ["a", "b"])
        assert {name: position.offset for name, position in positions.items()} == expected


def test_streams_of_several_channels_do_not_share_their_cursors():
    first, second = native(ManyChannels(["a", "b"], {})), native(ManyChannels(["a", "c"], {}))
    one = message("a", 7)
    for wire, channels in ((first, ["a", "b"]), (second, ["a", "c"]), (first, ["a", "b"])):
        event = parse(wire.message(one))
        assert decode_cursor(event["id"], channels) == {"a": Position(7, EPOCH)}
        assert json.loads(event["data"])["offset"] == 7


def test_the_last_event_says_why_and_when_to_return():
    event = parse(closing(CloseReason.DRAINING, "the node is draining"))
    body = json.loads(event["data"])
    assert (body["event"], body["channel"]) == ("eb:closing", None)
    assert body["data"] == {"code": 4200, "reason": "the node is draining"}
    assert "id" not in event
    assert int(event["retry"]) < int(parse(closing(CloseReason.REVOKED, "revoked"))["retry"])


def test_cursor_in_the_alphabet_that_is_not_for_urls_is_not_read():
    cursors = (
        encode_cursor(["general"], {"general": Position(offset, EPOCH)}).decode()
        for offset in range(10_000)
    )
    cursor = next(each for each in cursors if {"-", "_"} & set(each))
    assert decode_cursor(cursor, ["general"]) is not None
    assert decode_cursor(cursor.replace("-", "+").replace("_", "/"), ["general"]) is None
