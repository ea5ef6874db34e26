"""The native protocol: frames to commands, replies and messages to JSON."""

import datetime
import json
import time

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.drivers.marks import mark_of
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing.frames import (
    TEXT_FRAMES,
    text_frame,
)
from eventbus_edge.framing.sse import WITHOUT_CURSOR
from eventbus_edge.protocols.envelope import encode_message
from eventbus_edge.protocols.native import (
    ACTIONS,
    NATIVE,
    Native,
    decode,
    encode_reply,
)
from eventbus_edge.protocols.vocabulary import (
    Acknowledged,
    Authenticate,
    Authenticated,
    ChannelMessage,
    CloseReason,
    Connected,
    Failed,
    Malformed,
    Ping,
    Pong,
    PresenceChanged,
    Returns,
    Subscribe,
    Subscribed,
    TokenExpiring,
    Unsubscribe,
    Unsubscribed,
    Whisper,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)

# Decoding

COMMANDS = [
    ('{"action":"auth","data":{"token":"a.b.c"}}', Authenticate("a.b.c", None)),
    ('{"action":"auth","data":{"token":"a.b.c","x":1},"ref":"r"}', Authenticate("a.b.c", "r")),
    ('{"action":"subscribe","channel":"general"}', Subscribe("general", None, 0, None)),
    ('{"action":"join","channel":"general","ref":7}', Subscribe("general", None, 0, 7)),
    ('{"action":"subscribe","channel":"c","data":null}', Subscribe("c", None, 0, None)),
    ('{"action":"subscribe","channel":"c","data":{}}', Subscribe("c", None, 0, None)),
    ('{"action":"subscribe","channel":"c","data":{"history":5}}', Subscribe("c", None, 5, None)),
    (
        '{"action":"subscribe","channel":"c","data":{"offset":0,"epoch":"e"}}',
        Subscribe("c", Position(0, "e"), 0, None),
    ),
    # A name outside the grammar is the session's to refuse, whatever protocol it came by.
    ('{"action":"subscribe","channel":"a b"}', Subscribe("a b", None, 0, None)),
    ('{"action":"unsubscribe","channel":"c","ref":0}', Unsubscribe("c", 0)),
    ('{"action":"leave","channel":"c","ref":""}', Unsubscribe("c", "")),
    (
        '{"action":"whisper","channel":"c","event":"typing","data": {"a" : 1} ,"ref":1}',
        Whisper("c", "typing", b'{"a" : 1}', 1),
    ),
    (
        '{"action":"whisper","channel":"c","event":"e","data":null}',
        Whisper("c", "e", b"null", None),
    ),
    (' {"ref":-1,"unknown":[{}],"channel":"c","action":"leave"}\n', Unsubscribe("c", -1)),
]


@pytest.mark.parametrize(("text", "command"), COMMANDS)
def test_a_frame_is_decoded_to_its_command(text, command):
    assert decode(text) == command


@pytest.mark.parametrize("data", ["null", "1e3", '"x"', "[1, 2]", '{"a": {}}'])
def test_a_ping_keeps_its_data_as_it_was_written(data):
    command = decode(f'{{"action":"ping","data":{data},"ref":"r"}}')
    assert isinstance(command, Ping)
    assert (bytes(command.data), command.ref) == (data.encode(), "r")


def test_a_ping_needs_nothing_and_then_echoes_null():
    command = decode('{"action":"ping"}')
    assert isinstance(command, Ping)
    assert json.loads(encode_reply(Pong(*command)))["data"]["echo_data"] is None


MALFORMED = [
    # the frame, the ref that its answer carries, what the answer must speak of
    ("", None, "truncated"),
    ("hello", None, "JSON"),
    ("{", None, "truncated"),
    ('{"action":"ping"} {}', None, "trailing"),
    ('\ufeff{"action":"ping"}', None, "invalid character"),
    ("[]", None, "object"),
    ("null", None, "object"),
    ('"ping"', None, "object"),
    ("{}", None, "action"),
    ('{"ref":5}', 5, "action"),
    ('{"action":null,"ref":"r"}', "r", "action"),
    ('{"action":["ping"],"ref":"r"}', "r", "action"),
    ('{"action":"ping","ref":1.5}', None, "ref"),
    ('{"action":"ping","ref":true}', None, "ref"),
    ('{"action":"ping","ref":{}}', None, "ref"),
    (f'{{"action":"ping","ref":{"9" * 5000}}}', None, "ref"),
    ('{"action":"ping","data":NaN}', None, "invalid character"),
    ('{"action":"ping","data":Infinity}', None, "invalid character"),
    ('{"action":"ping","data":01}', None, "invalid number"),
    (r'{"action":"ping","data":"\x"}', None, "escape"),
    (r'{"action":"ping","data":"\ud800"}', None, "not a command"),
    ('{"action":"ping","data":"a\x00b"}', None, "invalid character"),
    ("\ud800", None, "surrogates"),
    (f'{{"action":"ping","data":{"[" * 99_999}{"]" * 99_999}}}', None, "nested too deeply"),
    ('{"action":"auth","ref":1}', 1, "data is missing"),
    ('{"action":"auth","data":"a.b.c","ref":1}', 1, "object"),
    ('{"action":"auth","data":{},"ref":1}', 1, "token"),
    ('{"action":"auth","data":{"token":null},"ref":1}', 1, "token"),
    ('{"action":"auth","data":{"token":["a"]},"ref":1}', 1, "token"),
    ('{"action":"subscribe","ref":1}', 1, "channel is missing"),
    ('{"action":"subscribe","channel":null,"ref":1}', 1, "channel is missing"),
    ('{"action":"subscribe","channel":7,"ref":1}', 1, "channel"),
    ('{"action":"subscribe","channel":["a"],"ref":1}', 1, "channel"),
    ('{"action":"subscribe","channel":"c","data":[],"ref":1}', 1, "object"),
    ('{"action":"subscribe","channel":"c","data":{"offset":1},"ref":1}', 1, "go together"),
    ('{"action":"subscribe","channel":"c","data":{"epoch":"e"},"ref":1}', 1, "go together"),
    ('{"action":"join","channel":"c","data":{"offset":-1,"epoch":"e"},"ref":1}', 1, "negative"),
    ('{"action":"join","channel":"c","data":{"offset":"1","epoch":"e"},"ref":1}', 1, "offset"),
    ('{"action":"join","channel":"c","data":{"offset":1,"epoch":2},"ref":1}', 1, "epoch"),
    ('{"action":"join","channel":"c","data":{"history":-1},"ref":1}', 1, "0 to 1000"),
    ('{"action":"join","channel":"c","data":{"history":1001},"ref":1}', 1, "0 to 1000"),
    ('{"action":"join","channel":"c","data":{"history":true},"ref":1}', 1, "history"),
    (
        '{"action":"join","channel":"c","data":{"history":1,"offset":1,"epoch":"e"},"ref":1}',
        1,
        "only one is allowed",
    ),
    ('{"action":"unsubscribe","ref":1}', 1, "channel is missing"),
    ('{"action":"leave","channel":{},"ref":1}', 1, "channel"),
    ('{"action":"whisper","event":"e","data":1,"ref":1}', 1, "channel is missing"),
    ('{"action":"whisper","channel":"c","data":1,"ref":1}', 1, "event is missing"),
    ('{"action":"whisper","channel":"c","event":"e","ref":1}', 1, "data is missing"),
    ('{"action":"whisper","channel":"c","event":1,"data":1,"ref":1}', 1, "event"),
]


@pytest.mark.parametrize(("text", "ref", "expected"), MALFORMED)
def test_a_malformed_frame_is_answered_with_what_is_wrong_and_its_ref(text, ref, expected):
    command = decode(text)
    assert isinstance(command, Malformed)
    assert command.code == "bad_request"
    assert expected in command.message
    assert command.ref == ref


@pytest.mark.parametrize("action", ["", "Ping", "publish", "eb:connected", "x" * 10_000])
def test_an_unknown_action_is_answered_with_the_known_ones(action):
    command = decode(json.dumps({"action": action, "ref": 9}))
    assert isinstance(command, Malformed)
    assert (command.code, command.ref) == ("unknown_action", 9)
    assert all(known in command.message for known in ACTIONS)
    assert len(command.message) < 300  # an answer is not an amplifier


def test_the_text_of_a_malformed_token_frame_does_not_show_the_token():
    command = decode('{"action":"auth","data":{"token":["SECRET"],"x":"SECRET"}}')
    assert isinstance(command, Malformed)
    assert "SECRET" not in command.message


@given(st.text())
def test_no_text_raises(text):
    decode(text)


@given(JSON)
def test_no_json_raises(value):
    decode(json.dumps(value))


@given(
    st.fixed_dictionaries(
        {"action": st.sampled_from(ACTIONS) | JSON},
        optional={
            "channel": st.just("c") | JSON,
            "event": JSON,
            "ref": st.integers() | st.text() | JSON,
            "data": JSON
            | st.dictionaries(st.sampled_from(["token", "offset", "epoch", "history"]), JSON),
        },
    )
)
def test_no_frame_of_a_known_shape_with_anything_in_it_raises_or_loses_its_ref(frame):
    command = decode(json.dumps(frame))
    ref = frame.get("ref")
    if isinstance(ref, str | int) and not isinstance(ref, bool):
        assert command.ref == ref


# Replies

EXP = 1_893_456_000.0  # 2030-01-01
AT = Position(12, "e1")
REPLIES = [
    (
        Connected("c1", "n1", 25.0, 50.0, 100),
        None,
        "eb:connected",
        {
            "connection_id": "c1",
            "node": "n1",
            "heartbeat_s": 25.0,
            "actions_per_s": 50.0,
            "action_burst": 100,
            "protocol": "eventbus.v1",
        },
    ),
    (
        Authenticated("7", EXP, None),
        None,
        "eb:authenticated",
        {"user_id": "7", "expires_at": "2030-01-01T00:00:00Z"},
    ),
    (
        Authenticated("7", EXP, "r"),
        None,
        "eb:authenticated",
        {"user_id": "7", "expires_at": "2030-01-01T00:00:00Z", "ref": "r"},
    ),
    (
        Subscribed("general", ChannelKind.PUBLIC, AT, None, None),
        "general",
        "eb:subscribed",
        {"kind": "public", "offset": 12, "epoch": "e1"},
    ),
    (
        Subscribed("chat.1", ChannelKind.PRIVATE, None, None, 0),
        "chat.1",
        "eb:subscribed",
        {"kind": "private", "offset": None, "epoch": None, "ref": 0},
    ),
    (
        Subscribed("presence.1", ChannelKind.PRESENCE, AT, False, ""),
        "presence.1",
        "eb:subscribed",
        {"kind": "presence", "offset": 12, "epoch": "e1", "recovered": False, "ref": ""},
    ),
    (Unsubscribed("general", None), "general", "eb:unsubscribed", {}),
    (Acknowledged("chat.1", 3), "chat.1", "eb:ack", {"ref": 3}),
    (
        TokenExpiring(EXP, 59.5),
        None,
        "eb:token.expiring",
        {"expires_at": "2030-01-01T00:00:00Z", "in_s": 59.5},
    ),
    (
        Failed("forbidden", "no", "chat.1", 2**53),
        "chat.1",
        "eb:error",
        {"code": "forbidden", "message": "no", "ref": 2**53},
    ),
    (
        Failed("bad_request", "no", None, None),
        None,
        "eb:error",
        {"code": "bad_request", "message": "no"},
    ),
]


@pytest.mark.parametrize(("reply", "channel", "event", "data"), REPLIES)
def test_a_reply_has_the_four_fields_and_its_data(reply, channel, event, data):
    frame = json.loads(encode_reply(reply))
    assert_is_now(frame.pop("timestamp"))
    assert frame == {"channel": channel, "event": event, "data": data}


@pytest.mark.parametrize("echo", [None, msgspec.Raw(b'{"a" : [1.50]}')])
def test_a_pong_echoes_the_data_of_the_ping_byte_for_byte(echo):
    encoded = encode_reply(Pong(echo, "r"))
    frame = json.loads(encoded)
    assert_is_now(frame["timestamp"])
    assert_is_now(frame["data"].pop("timestamp"))
    assert (frame["channel"], frame["event"]) == (None, "pong")
    expected = None if echo is None else {"a": [1.5]}
    assert frame["data"] == {"echo_data": expected, "ref": "r"}
    assert (b"null" if echo is None else bytes(echo)) in encoded


def assert_is_now(timestamp):
    assert timestamp.endswith("Z")
    assert abs(datetime.datetime.fromisoformat(timestamp).timestamp() - time.time()) < 60


# Messages


@given(
    envelope=st.dictionaries(
        st.text().filter(lambda key: key not in {"offset", "epoch"}), JSON, min_size=1
    ),
    offset=st.integers(0, 2**64),
    epoch=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
    space=st.text(" \t\r\n"),
)
def test_a_message_is_its_envelope_with_offset_and_epoch_and_nothing_else(
    envelope, offset, epoch, space
):
    body = json.dumps(envelope).encode()
    at = Position(offset, epoch)
    encoded = encode_message(ChannelMessage("c", "e", body + space.encode(), at, None))
    assert json.loads(encoded) == envelope | {"offset": offset, "epoch": epoch}
    assert encoded.startswith(body[:-1])  # the very bytes that came


def test_a_message_without_a_position_is_the_very_bytes_that_came():
    body = b'{ "channel":"c","event":"e","data":1.0}'
    assert encode_message(ChannelMessage("c", "e", body, None, None)) is body


def test_the_websocket_format_wraps_replies_and_messages_in_text_frames():
    wire = Wires().shared(NATIVE, TEXT_FRAMES)
    message = ChannelMessage("c", "e", b'{"channel":"c"}', None, None)
    assert wire.message(message) == text_frame(b'{"channel":"c"}')
    assert wire.reply(Unsubscribed("c", None))[:1] == text_frame(b"")[:1]


def test_mark_of_a_position_is_read_and_written():
    place = {"offset": 3, "epoch": "e1", "mark": "2026-11-30T18:55:02.5Z"}
    command = decode(json.dumps({"action": "subscribe", "channel": "a", "data": place}))
    assert command.resume == Position(3, "e1")
    assert mark_of(command.resume) == place["mark"]
    answer = Subscribed("a", ChannelKind.PUBLIC, command.resume, True, None)
    body = json.loads(encode_reply(answer))["data"]
    assert {key: body[key] for key in place} == place


def test_time_that_somebody_has_forged_stays_within_its_string():
    message = ChannelMessage("a", "e", b'{"data":1}', Position(1, "e1"), None, None, 'x","data":"2')
    assert json.loads(encode_message(message)) == {
        "data": 1, "offset": 1, "epoch": "e1", "mark": 'x","data":"2',
    }  # fmt: skip


def test_every_reason_to_close_has_a_code_whose_range_says_who_reconnects():
    ends = {reason: NATIVE.closing(reason, "why") for reason in CloseReason}
    assert all(end.text == "why" for end in ends.values())
    for end in ends.values():
        assert (end.returns is Returns.NEVER) == (4000 <= end.code < 4100)
        assert (end.returns is Returns.AT_ONCE) == (4200 <= end.code < 4300)


def test_notices_are_envelopes_of_reserved_events():
    at = datetime.datetime(2026, 11, 30, 18, 55, 2, tzinfo=datetime.UTC)
    notice = PresenceChanged("presence.a", "joined", 'a"b', b'{"name":"Ann"}', at)
    assert NATIVE.message(notice) == (
        b'{"channel":"presence.a","event":"eb:presence.joined",'
        b'"data":{"user_id":"a\\"b","info":{"name":"Ann"}},"timestamp":"2026-11-30T18:55:02Z"}'
    )


def test_message_is_encoded_once_for_all_framings_of_a_protocol():
    class Counting(Native):
        count = 0

        def message(self, message):
            self.count += 1
            return super().message(message)

    protocol, wires = Counting(), Wires()
    pair = wires.shared(protocol, TEXT_FRAMES), wires.shared(protocol, WITHOUT_CURSOR)
    assert pair[0] is wires.shared(protocol, TEXT_FRAMES)
    for number in range(3):
        message = ChannelMessage("c", "e", b'{"n":%d}' % number, None, None)
        assert [wire.message(message) for wire in pair for _ in "12"] == [
            text_frame(message.body), text_frame(message.body),
            b"data: %b\n\n" % message.body, b"data: %b\n\n" % message.body,
        ]  # fmt: skip
    assert protocol.count == 3
