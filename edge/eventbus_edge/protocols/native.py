"""The native protocol, `eventbus.v1`: JSON frames to commands, replies and messages to JSON."""

import datetime
from collections.abc import (
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.channels import ChannelKind
from eventbus.drivers import MarkedPosition, Position, mark_of
from eventbus.messages import MAX_DATA_DEPTH, TooDeep, check_depth, json_decoder
from eventbus_edge.protocols.base import (
    Liveness,
    Prove,
    Subprotocols,
    random_connection_id,
)
from eventbus_edge.protocols.envelope import (
    encode_envelope,
    encode_message,
)
from eventbus_edge.protocols.vocabulary import (
    Acknowledged,
    AskStats,
    Authenticate,
    Authenticated,
    ChannelMessage,
    CloseReason,
    Closing,
    ClusterSampled,
    ClusterStats,
    Command,
    Connected,
    Failed,
    Malformed,
    Members,
    NothingStored,
    Notice,
    Ping,
    Pong,
    Presence,
    PresenceChanged,
    PresenceMembers,
    PresentMember,
    ReadHistory,
    Ref,
    Reply,
    Returns,
    SignedIn,
    StoredMessages,
    Subscribe,
    Subscribed,
    SubscribedPattern,
    SubscribePattern,
    SubscriptionsCounted,
    TokenExpiring,
    Unsubscribe,
    Unsubscribed,
    UnsubscribedPattern,
    UnsubscribePattern,
    UsersWatched,
    Whisper,
)

__all__ = [
    "ACTIONS",
    "CLOSE_CODES",
    "NATIVE",
    "Native",
    "decode",
    "encode_notice",
    "encode_reply",
]


PROTOCOL: Final = "eventbus.v1"
BEARER_PREFIX: Final = "eventbus.bearer."

CLOSE_CODES: Final[Mapping[CloseReason, int]] = {
    CloseReason.INTERNAL_ERROR: 1011,  # RFC 6455, 7.4.1
    CloseReason.BAD_TOKENS: 4001,
    CloseReason.NO_TOKEN: 4001,
    CloseReason.DISCONNECTED: 4003,
    CloseReason.REVOKED: 4003,
    CloseReason.TOO_MANY_ACTIONS: 4008,
    CloseReason.TOO_MANY_WATCHED: 4008,
    CloseReason.UNEXPECTED_DATA: 4008,
    CloseReason.COME_BACK: 4200,
    CloseReason.DRAINING: 4200,
    CloseReason.TOO_SLOW: 4201,
    CloseReason.TOKEN_EXPIRED: 4202,
    CloseReason.NO_HEARTBEAT: 4203,
}
"""Clients do not reconnect after 4000 to 4099, and reconnect at once after 4200 to 4299."""

ACTIONS: Final = (
    "ping",
    "auth",
    "subscribe",
    "join",
    "unsubscribe",
    "leave",
    "whisper",
    "presence",
    "history",
    "stats",
)
_MAX_HISTORY: Final = 1000
_MAX_OFFSET: Final = 2**63 - 1


_NO_DATA: Final = msgspec.Raw(b"null")


class _Frame(msgspec.Struct):
    action: str
    channel: str | None = None
    pattern: str | None = None
    event: str | None = None
    data: msgspec.Raw = _NO_DATA
    ref: Ref = None


class _RefOnly(msgspec.Struct):
    ref: Ref = None


class _AuthData(msgspec.Struct):
    token: str


class _SubscribeData(msgspec.Struct):
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    history: int | None = None


class _HistoryData(msgspec.Struct):
    limit: int = 100
    since: int | None = None


class _Event(msgspec.Struct):
    """A system event; structs are encoded faster than mappings."""

    channel: str | None
    event: str
    data: Any
    timestamp: datetime.datetime


class _ConnectedData(msgspec.Struct):
    connection_id: str
    node: str
    heartbeat_s: float
    actions_per_s: float
    action_burst: int
    protocol: str = PROTOCOL


class _SubscribedData(msgspec.Struct, omit_defaults=True):
    kind: str
    offset: int | None
    epoch: str | None
    mark: str | None = None
    recovered: bool | None = None
    members: msgspec.Raw | None = None
    ref: Ref = None


_decode_history: Final = json_decoder(_HistoryData)
_decode_frame: Final = json_decoder(_Frame)
_decode_ref: Final = json_decoder(_RefOnly)
_decode_auth: Final = json_decoder(_AuthData)
_decode_subscribe: Final = json_decoder(_SubscribeData)
_decode_info: Final = json_decoder(dict[str, Any])
_encode: Final = msgspec.json.Encoder().encode


class _Refused(Exception):
    """A frame of a known action with a missing or invalid field."""


def decode(text: str | bytes) -> Command:
    """One frame as a command; an invalid one is returned as Malformed."""
    if isinstance(text, bytes):
        return Malformed("bad_request", "a binary frame: commands are JSON in text frames", None)
    try:
        frame = _decode_frame(text)
    except TooDeep as exc:  # its ref is not read either, since that would take as long
        return Malformed("bad_request", f"not a command: {exc}", None)
    except (msgspec.DecodeError, UnicodeError) as exc:
        return Malformed("bad_request", f"not a command: {exc}", _ref_of(text))
    try:
        return _command(frame)
    except (_Refused, msgspec.DecodeError) as exc:
        message = f"action {frame.action}: {exc}"
        return Malformed("bad_request", message, frame.ref)


def _command(frame: _Frame) -> Command:
    match frame.action:
        case "ping":
            return Ping(frame.data, frame.ref)
        case "auth":
            return Authenticate(_decode_auth(_data(frame)).token, frame.ref)
        case "subscribe" | "join":
            return _subscribe(frame)
        case "unsubscribe" | "leave":
            return _unsubscribe(frame)
        case "whisper":
            if frame.event is None:
                raise _Refused("the field event is missing: a string is needed")
            data = bytes(_data(frame))
            check_depth(data, MAX_DATA_DEPTH)
            return Whisper(_channel(frame), frame.event, data, frame.ref)
        case "presence":
            changes = None if frame.data == _NO_DATA else _decode_info(frame.data)
            return Presence(_channel(frame), changes, frame.ref)
        case "history":
            return _history(frame)
        case "stats":
            return AskStats(frame.ref)
        case _:
            allowed = ", ".join(ACTIONS)
            shown = frame.action[:40]
            return Malformed(
                "unknown_action", f"there is no action {shown!r}: allowed are {allowed}", frame.ref
            )


def _unsubscribe(frame: _Frame) -> Unsubscribe | UnsubscribePattern:
    if frame.pattern is None:
        return Unsubscribe(_channel(frame), frame.ref)
    return UnsubscribePattern(_pattern(frame), frame.ref)


def _subscribe(frame: _Frame) -> Subscribe | SubscribePattern:
    name = _channel(frame) if frame.pattern is None else _pattern(frame)
    data = _SubscribeData() if frame.data == _NO_DATA else _decode_subscribe(frame.data)
    if (data.offset is None) != (data.epoch is None):
        raise _Refused("data.offset and data.epoch go together: give both to resume, or neither")
    if data.offset is not None and data.offset < 0:
        raise _Refused("data.offset is negative: 0 or more is allowed")
    if data.history is not None and not 0 <= data.history <= _MAX_HISTORY:
        raise _Refused(f"data.history must be 0 to {_MAX_HISTORY}")
    if data.offset is not None and data.history is not None:
        raise _Refused("data has offset and history: only one is allowed")
    resume = None
    if data.offset is not None and data.epoch is not None:
        resume = Position(data.offset, data.epoch)
        if data.mark:
            resume = MarkedPosition(data.offset, data.epoch, data.mark)
    if frame.pattern is not None:
        if data.history:
            raise _Refused("data.history is for channels: a pattern resumes from an offset")
        return SubscribePattern(name, frame.ref, resume)
    return Subscribe(name, resume, data.history or 0, frame.ref)


def _history(frame: _Frame) -> ReadHistory:
    channel = _channel(frame)
    data = _HistoryData() if frame.data == _NO_DATA else _decode_history(frame.data)
    if not 1 <= data.limit <= _MAX_HISTORY:
        raise _Refused(f"data.limit must be 1 to {_MAX_HISTORY}")
    if data.since is not None and not 0 <= data.since <= _MAX_OFFSET:
        raise _Refused(f"data.since must be 0 to {_MAX_OFFSET}")
    return ReadHistory(channel, data.since, data.limit, frame.ref)


def _pattern(frame: _Frame) -> str:
    if frame.pattern is None or frame.channel is not None:
        raise _Refused("channel and pattern are both given: only one is allowed")
    return frame.pattern


def _channel(frame: _Frame) -> str:
    if frame.channel is None:
        raise _Refused("the field channel is missing: a channel's name is needed")
    return frame.channel


def _data(frame: _Frame) -> msgspec.Raw:
    if frame.data is _NO_DATA:
        raise _Refused("the field data is missing")
    return frame.data


def _ref_of(text: str) -> Ref:
    try:
        return _decode_ref(text).ref
    except (msgspec.DecodeError, UnicodeError):
        return None


def encode_reply(reply: Reply) -> bytes:
    """A reply's JSON: always channel, event, data and timestamp."""
    channel, event, data = _system_event(reply)
    if isinstance(data, dict) and (ref := getattr(reply, "ref", None)) is not None:
        data["ref"] = ref
    return _encode(_Event(channel, event, data, _now()))


def _subscribed(reply: Subscribed) -> _SubscribedData:
    position, members = reply.position, reply.members
    offset, epoch = position or (None, None)
    return _SubscribedData(
        reply.kind.value,
        offset,
        epoch,
        mark_of(position),
        reply.recovered,
        None if members is None else msgspec.Raw(members.encoded(_encode_members)),
        reply.ref,
    )


def _system_event(
    reply: Reply,
) -> tuple[str | None, str, dict[str, Any] | _ConnectedData | _SubscribedData]:
    match reply:
        case Connected():
            return None, "eb:connected", _ConnectedData(*reply)
        case Subscribed():
            return reply.channel, "eb:subscribed", _subscribed(reply)
        case Authenticated(user_id, expires_at):
            return None, "eb:authenticated", {"user_id": user_id, "expires_at": _time(expires_at)}
        case SubscribedPattern() | UnsubscribedPattern():
            return _of_pattern(reply)
        case Unsubscribed(channel, reason=reason):
            return channel, "eb:unsubscribed", {} if reason is None else {"reason": reason}
        case Pong(echo):
            return None, "pong", {"timestamp": _now(), "echo_data": echo}
        case PresenceMembers() | StoredMessages() | ClusterStats():
            return _looked_up(reply)
        case SignedIn() | NothingStored() | UsersWatched():
            return None, "eb:ack", {}
        case Acknowledged(channel):
            return channel, "eb:ack", {}
        case TokenExpiring(expires_at, in_s):
            return None, "eb:token.expiring", {"expires_at": _time(expires_at), "in_s": in_s}
        case Failed(code, message, channel):
            return channel, "eb:error", {"code": code, "message": message}
        case Closing(code, text):
            return None, "eb:closing", {"code": code, "reason": text}


def _looked_up(
    reply: PresenceMembers | StoredMessages | ClusterStats,
) -> tuple[str | None, str, dict[str, Any]]:
    match reply:
        case PresenceMembers(channel, members):
            listed = msgspec.Raw(members.encoded(_encode_members))
            return channel, "eb:presence", {"members": listed, "count": len(members)}
        case StoredMessages(channel, messages, position):
            offset, epoch = position or (None, None)
            raw = [msgspec.Raw(encode_message(message)) for message in messages]
            return channel, "eb:history", {"messages": raw, "offset": offset, "epoch": epoch}
        case ClusterStats(stats):
            return None, "eb:stats", dict(stats)


def _encode_members(members: Members) -> bytes:
    return b"[%b]" % b",".join([member.encoded(_encode_member) for member in members])


def _encode_member(member: PresentMember) -> bytes:
    return _encode({"user_id": member.user_id, "info": msgspec.Raw(member.info)})


def _of_pattern(
    reply: SubscribedPattern | UnsubscribedPattern,
) -> tuple[None, str, dict[str, Any]]:
    match reply:
        case SubscribedPattern(pattern, position=position, recovered=recovered):
            offset, epoch = position or (None, None)
            kind = ChannelKind.PRIVATE.value
            about = {"pattern": pattern, "kind": kind, "offset": offset, "epoch": epoch}
            data = _with(about, mark=mark_of(position), recovered=recovered)
            return None, "eb:subscribed", data
        case UnsubscribedPattern(pattern, reason=reason):
            return None, "eb:unsubscribed", _with({"pattern": pattern}, reason=reason)


def _with(data: dict[str, Any], **more: str | bool | msgspec.Raw | None) -> dict[str, Any]:
    """The same, and those of the other fields that have a value."""
    return data | {name: value for name, value in more.items() if value is not None}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _time(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC)


def encode_notice(notice: PresenceChanged | ClusterSampled) -> bytes:
    """A notice as an envelope of a reserved event, which no publisher can send."""
    match notice:
        case PresenceChanged(channel, change, user_id, info, at):
            member = {"user_id": user_id, "info": msgspec.Raw(info)}
            return encode_envelope(channel, f"eb:presence.{change}", member, at)
        case ClusterSampled(channel, sample, at):
            return encode_envelope(channel, "eb:stats", sample, at)


class Native:
    """The native protocol, for WebSockets and Server-Sent Events alike."""

    name: Final = "native"
    liveness: Final = Liveness()
    subprotocols: Final = Subprotocols(PROTOCOL, BEARER_PREFIX)
    announces_close: Final = False
    refuse: Callable[[Failed], Closing] | None = None
    prove: Prove | None = None

    def agree(self, _query: Mapping[str, str]) -> "Native":
        """It has one form."""
        return self

    def connection_id(self) -> str:
        """A random text."""
        return random_connection_id()

    def decode(self, frame: str | bytes) -> Command:
        """See the function `decode`."""
        return decode(frame)

    def message(self, message: ChannelMessage | Notice) -> bytes | None:
        """An envelope; None for counts of subscriptions, which clients do not get."""
        if isinstance(message, ChannelMessage):
            return encode_message(message)
        if isinstance(message, SubscriptionsCounted):
            return None
        return encode_notice(message)

    def reply(self, reply: Reply) -> bytes | None:
        """A system event; None for what clients notice by receiving nothing."""
        return None if isinstance(reply, NothingStored | UsersWatched) else encode_reply(reply)

    def closing(self, reason: CloseReason, text: str) -> Closing:
        """The code, and what its range says about reconnecting."""
        code = CLOSE_CODES[reason]
        returns = _RETURNS.get(code // 100, Returns.LATER)
        return Closing(code, text, returns)


_RETURNS: Final = {40: Returns.NEVER, 42: Returns.AT_ONCE}
"""By the hundreds of a code."""

NATIVE: Final = Native()
