"""The Pusher Channels protocol, version 7, which pusher-js, Laravel Echo and others speak.

https://pusher.com/docs/channels/library_auth_reference/pusher-websockets-protocol. Channels have
other names there: the kind is a prefix, as in `private-user.1` for the channel `user.1`. The kind
still comes from the rules, so a name with a prefix that does not fit is refused.
"""

import contextlib
import hmac
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from eventbus.channels import ChannelKind, decode_token, encode_token, validate_channel
from eventbus.drivers import MarkedPosition, Position, mark_of
from eventbus.errors import InvalidChannel
from eventbus.integrations.pusher import MAX_WATCHED, PusherApp
from eventbus.messages import (
    CLIENT_EVENT_PREFIX,
    MAX_DATA_DEPTH,
    check_depth,
    decode_json,
    json_decoder,
)
from eventbus_edge.protocols.base import Liveness, Prove, Proven
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    CloseReason,
    Closing,
    Command,
    Connected,
    Failed,
    Malformed,
    Member,
    Members,
    NothingStored,
    Notice,
    Ping,
    Pong,
    PresenceChanged,
    PresentMember,
    Reply,
    Returns,
    SignedIn,
    SignIn,
    SignOfLife,
    Subscribe,
    Subscribed,
    SubscriptionsCounted,
    Unsubscribe,
    Unsubscribed,
    UsersWatched,
    Whisper,
)

__all__ = [
    "INBOX",
    "INBOX_CHANNELS",
    "Pusher",
    "UnknownApp",
    "channel_of",
    "data_of",
    "has_cache",
    "is_inbox",
    "name_of",
    "text_id",
    "text_of",
]


_CLOSE_CODES: Final[Mapping[CloseReason, int]] = {
    CloseReason.BAD_TOKENS: 4009,
    CloseReason.COME_BACK: 4200,
    CloseReason.DISCONNECTED: 4009,
    CloseReason.DRAINING: 4200,
    CloseReason.INTERNAL_ERROR: 4100,
    CloseReason.NO_HEARTBEAT: 4201,
    CloseReason.NO_TOKEN: 4009,
    CloseReason.REVOKED: 4009,
    CloseReason.TOKEN_EXPIRED: 4009,
    CloseReason.TOO_MANY_ACTIONS: 4009,
    CloseReason.TOO_MANY_WATCHED: 4302,
    CloseReason.TOO_SLOW: 4200,
    CloseReason.UNEXPECTED_DATA: 4009,
}
"""Clients return after 1 s from 4100 on, and at once from 4200 on; after others they stay away."""
_REFUSALS: Final[Mapping[str, int]] = {
    "not_found": 4001,
    "invalid_version": 4006,
    "unsupported_version": 4007,
    "limit_exceeded": 4004,
    "rate_limited": 4100,
    "unavailable": 4100,
    "internal": 4100,
}
"""How a handshake is refused, by the code of its error; 4009 for all others."""
_UNAUTHORIZED: Final = 4009
_ERRORS: Final[Mapping[str, int]] = {
    "rate_limited": 4301,
    "unauthorized": _UNAUTHORIZED,
    "forbidden": _UNAUTHORIZED,
    "not_subscribed": _UNAUTHORIZED,
}
"""The code of an error that leaves the connection open; none for all others."""
_STATUSES: Final[Mapping[str, tuple[str, int]]] = {
    "unauthorized": ("AuthError", 401),
    "forbidden": ("AuthError", 403),
    "rate_limited": ("LimitReached", 429),
    "limit_exceeded": ("LimitReached", 400),
    "unavailable": ("ServerError", 503),
}
"""The type and the status of a refused subscription."""

PROTOCOL_VERSIONS: Final = frozenset({"5", "6", "7"})
_PRIVATE: Final = "private-"
_PRESENCE: Final = "presence-"
_PRESENCE_CHANNELS: Final = "presence."
INBOX: Final = "#server-to-user-"
"""The prefix of the names of channels that only one signed-in user receives."""
INBOX_CHANNELS: Final = "server-to-user."
_PREFIXES: Final = {ChannelKind.PRIVATE: _PRIVATE, ChannelKind.PRESENCE: _PRESENCE}
_CACHE: Final = ("cache-", "encrypted-cache-", "presence.cache-")
"""The prefixes of channels whose last message is sent to new subscribers."""
_BARE: Final = "pusher:user_info"
"""The field of a member's info for a `user_info` that is not an object."""
_TEXT_MARK: Final = "-text"
_SILENT: Final = ""
"""The reference of commands to which the protocol has no answer."""
_PONG_S: Final = 5
_SOCKET_ID_PART: Final = 10**10

_encode: Final = msgspec.json.Encoder().encode


def channel_of(name: str) -> tuple[str, ChannelKind]:
    """The channel, and the kind that the prefix claims: `presence-chat.1` is `presence.chat.1`.

    Raises InvalidChannel for an inbox whose user's id is not valid.
    """
    if name.startswith(INBOX):
        user_id = name.removeprefix(INBOX)
        return INBOX_CHANNELS + encode_token(user_id), ChannelKind.PRIVATE
    if name.startswith(_PRESENCE):
        return _PRESENCE_CHANNELS + name.removeprefix(_PRESENCE), ChannelKind.PRESENCE
    if name.startswith(_PRIVATE):
        return name.removeprefix(_PRIVATE), ChannelKind.PRIVATE
    return name, ChannelKind.PUBLIC


def name_of(channel: str, kind: ChannelKind) -> str:
    """The name of a channel of this kind: the inverse of `channel_of`."""
    if is_inbox(channel):
        return INBOX + _user_of(channel)
    if kind is ChannelKind.PRESENCE:
        channel = channel.removeprefix(_PRESENCE_CHANNELS)
    return _PREFIXES.get(kind, "") + channel


def _inbox_of(user_id: str) -> str:
    """The inbox of a user. Raises InvalidChannel for an id that cannot have one."""
    return validate_channel(channel_of(INBOX + user_id)[0])


def _user_of(inbox: str) -> str:
    return decode_token(inbox.removeprefix(INBOX_CHANNELS))


def is_inbox(channel: str) -> bool:
    """Whether only a signed-in user hears a channel."""
    return channel.startswith(INBOX_CHANNELS)


def has_cache(channel: str) -> bool:
    """Whether a channel's last message is sent to new subscribers."""
    return channel.startswith(_CACHE)


class _Frame(msgspec.Struct):
    event: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    channel: str | None = None


class _SubscribeData(msgspec.Struct):
    channel: str
    auth: str | None = None
    channel_data: str | None = None
    cursor: str | None = None


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where a client is in a channel's history; it gives the text back."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    epoch: str
    mark: str | None = None


class _SignInData(msgspec.Struct):
    auth: str
    user_data: str
    cursor: str | None = None


class _UserData(msgspec.Struct):
    id: str
    user_info: Any = None
    watchlist: list[str | int] = []


class _UnsubscribeData(msgspec.Struct):
    channel: str


class _ChannelData(msgspec.Struct):
    user_id: str | int
    user_info: Any = None


class _Envelope(msgspec.Struct):
    """The fields that are used of an envelope that has been checked."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    user_id: str | None = None
    id: str | None = None


class _Proof(NamedTuple):
    """A client's proof that it may join a channel; with a `fault` it is refused in any case."""

    name: str
    auth: str
    channel_data: str | None
    fault: str | None = None


_decode_frame: Final = json_decoder(_Frame)
_decode_text: Final = json_decoder(str)
_decode_subscribe: Final = json_decoder(_SubscribeData)
_decode_unsubscribe: Final = json_decoder(_UnsubscribeData)
_decode_sign_in: Final = json_decoder(_SignInData)
_decode_user: Final = json_decoder(_UserData)
_decode_cursor: Final = json_decoder(_Cursor)
_decode_channel_data: Final = json_decoder(_ChannelData)
_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_decode_info: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def data_of(given: Any) -> tuple[Any, bool]:
    """The data to publish for that of a server library, and whether it is plain text.

    Libraries give JSON in a string. A string that is not JSON is published as it is, and must be
    delivered as it is.
    """
    if not isinstance(given, str):
        return given, False
    if given != given.strip():
        return given, True
    try:
        decode_json(given, MAX_DATA_DEPTH)
    except ValueError:
        return given, True
    return msgspec.Raw(given.encode()), False


def text_id(message_id: str) -> str:
    """The id of a message whose data is plain text; native clients ignore the mark."""
    return message_id + _TEXT_MARK


def text_of(body: bytes) -> str:
    """The data of an envelope as the publisher gave it to a server library: JSON, or plain text."""
    return _text_of(_decode_envelope(body))


def _text_of(envelope: _Envelope) -> str:
    if envelope.id is not None and envelope.id.endswith(_TEXT_MARK):
        with contextlib.suppress(msgspec.DecodeError):  # anyone may publish any id
            return _decode_text(envelope.data)
    return bytes(envelope.data).decode()


class Pusher:
    """The protocol for the clients of one app."""

    name: Final = "pusher"
    subprotocols: Final = None
    announces_close: Final = True
    liveness: Final = Liveness(heartbeat=b'{"event":"pusher:ping","data":"{}"}')

    def __init__(
        self,
        app: PusherApp,
        kind_of: Callable[[str], ChannelKind],
        *,
        cursors: bool = False,
        counts: bool = False,
    ) -> None:
        """`kind_of` gives the kind of a channel by its rule.

        `cursors`: clients may resume, so messages say where they are in the channel's history.
        `counts`: clients are notified how many connections are subscribed to their channels.
        """
        self._app = app
        self._kind_of = kind_of
        self._cursors = cursors
        self._counts = counts
        self._resuming = self if cursors else Pusher(app, kind_of, cursors=True, counts=counts)
        self.prove: Prove | None = self._prove

    def connection_id(self) -> str:
        """Two numbers: applications check that before they sign."""
        return f"{secrets.randbelow(_SOCKET_ID_PART)}.{secrets.randbelow(_SOCKET_ID_PART)}"

    def agree(self, query: Mapping[str, str], /) -> "Pusher | Failed":
        """Versions 5 to 7 are spoken; without a version, 7. With `cursor=1` clients may resume."""
        version = query.get("protocol", "7")
        if version in PROTOCOL_VERSIONS:
            return self._resuming if query.get("cursor") == "1" else self
        is_number = version.isascii() and version.isdigit()
        code = "unsupported_version" if is_number else "invalid_version"
        message = f"protocol={version[:20]} is not supported: allowed are 5, 6 and 7"
        return Failed(code, message, None, None)

    def refuse(self, failed: Failed) -> Closing:
        """Within the socket, since clients read errors nowhere else."""
        return _closing(_REFUSALS.get(failed.code, _UNAUTHORIZED), failed.message)

    def closing(self, reason: CloseReason, text: str) -> Closing:
        """The code, and what its range says about reconnecting."""
        return _closing(_CLOSE_CODES[reason], text)

    # From clients

    def decode(self, frame: str | bytes) -> Command:
        """See WireProtocol."""
        if isinstance(frame, bytes):
            return Malformed(
                "bad_request", "a binary frame: messages are JSON in text frames", None
            )
        try:
            return self._command(_decode_frame(frame))
        except (msgspec.DecodeError, UnicodeError, InvalidChannel) as exc:
            return Malformed("bad_request", f"the message is not valid: {exc}", None)

    def _command(self, frame: _Frame) -> Command:
        match frame.event:
            case "pusher:ping":
                return Ping(frame.data, None)
            case "pusher:pong":
                return SignOfLife()
            case "pusher:subscribe":
                return self._subscribe(_decode_subscribe(_inner(frame.data)))
            case "pusher:unsubscribe":
                name = _decode_unsubscribe(_inner(frame.data)).channel
                channel = channel_of(name)[0]
                if name.startswith(INBOX) or self._misnamed(name, channel) is not None:
                    # An inbox lasts as long as its user is signed in. Under a name that is not
                    # the channel's, nothing was joined.
                    return SignOfLife()
                return Unsubscribe(channel, _SILENT)
            case "pusher:signin":
                asked = _decode_sign_in(_inner(frame.data))
                return SignIn(asked, resume=_resume(asked.cursor))
            case event if event.startswith(CLIENT_EVENT_PREFIX):
                if frame.channel is None:
                    return Malformed("bad_request", "a client event needs a channel", None)
                data = bytes(frame.data)
                check_depth(data, MAX_DATA_DEPTH)
                channel = channel_of(frame.channel)[0]
                if (fault := self._misnamed(frame.channel, channel)) is not None:
                    return Malformed("not_subscribed", fault, None)
                return Whisper(channel, event, data, None)
            case event:
                message = (
                    f"there is no event {event[:40]!r} for clients: allowed are pusher:ping, "
                    "pusher:pong, pusher:subscribe, pusher:unsubscribe, pusher:signin and "
                    "client-<name>"
                )
                return Malformed("bad_request", message, None)

    def _subscribe(self, asked: _SubscribeData) -> Subscribe | Malformed:
        name = asked.channel
        if not name:
            return Malformed("bad_request", "the channel's name is empty", None)
        channel, claimed = channel_of(name)
        proof = None
        if (fault := self._misnamed(name, channel)) is not None:
            proof = _Proof(name, "", None, fault)
        elif claimed is not ChannelKind.PUBLIC:
            proof = _Proof(name, asked.auth or "", asked.channel_data)
        resume = _resume(asked.cursor)
        history = 1 if has_cache(channel) and resume is None else 0
        return Subscribe(channel, resume, history, name, proof)

    def _misnamed(self, name: str, channel: str) -> str | None:
        """Why the channel does not have this name; None if it has."""
        kind = self._kind_of(channel)
        right = name_of(channel, kind)
        if right == name:
            return None
        by = "by the channel rules"
        if kind is ChannelKind.PRIVATE and not is_inbox(channel):
            by += ", or because none matches"
        return f"{by}, {channel!r} is {kind.value}: its name is {right!r}, not {name!r}"

    def _prove(
        self, connection_id: str, command: Subscribe | SignIn, user: Member | None
    ) -> Proven:
        if isinstance(command, SignIn):
            return self._prove_user(connection_id, command.proof)
        proof: _Proof = command.proof
        if proof.fault is not None:
            return Proven(None, proof.fault)
        if proof.name.startswith(INBOX):
            return Proven(None, "only the user with that id receives this, after pusher:signin")
        expected = self._app.sign_channel(connection_id, proof.name, proof.channel_data)
        if not hmac.compare_digest(expected.encode(), proof.auth.encode("utf-8", "replace")):
            message = f"the signature for {proof.name!r} is missing or wrong"
            return Proven(None, message, "unauthorized")
        if channel_of(proof.name)[1] is not ChannelKind.PRESENCE:
            return Proven(None)
        if proof.channel_data is None and user is not None:
            return Proven(user)
        try:
            member = _decode_channel_data(proof.channel_data or "{}")
        except (msgspec.DecodeError, UnicodeError) as exc:
            return Proven(None, f"channel_data is not valid: {exc}")
        user_id = str(member.user_id)
        if not user_id:
            return Proven(None, "channel_data has an empty user_id")
        return Proven(Member(user_id, _info(member.user_info)))

    def _prove_user(self, connection_id: str, data: _SignInData) -> Proven:
        expected = self._app.sign_user(connection_id, data.user_data)
        if not hmac.compare_digest(expected.encode(), data.auth.encode("utf-8", "replace")):
            return Proven(None, "the signature of the user's data is wrong", "unauthorized")
        try:
            user = _decode_user(data.user_data)
            inbox = _inbox_of(user.id)
            if (count := len(user.watchlist)) > MAX_WATCHED:
                message = f"the watch list has {count} users: at most {MAX_WATCHED} are allowed"
                return Proven(None, message, closes=CloseReason.TOO_MANY_WATCHED)
            watched = tuple(dict.fromkeys(_inbox_of(str(each)) for each in user.watchlist))
        except (msgspec.DecodeError, UnicodeError, InvalidChannel) as exc:
            return Proven(None, f"user_data is not valid: {exc}")
        return Proven(Member(user.id, _info(user.user_info)), inbox=inbox, watched=watched)

    # To clients

    def message(self, message: ChannelMessage | Notice) -> bytes | None:
        """An event of a channel; its data is JSON in a string, but for client events."""
        match message:
            case ChannelMessage(channel, event):
                envelope, kind = _decode_envelope(message.body), self._kind_of(channel)
                frame: dict[str, Any] = {"event": event, "channel": name_of(channel, kind)}
                if self._cursors and message.position is not None:
                    frame["cursor"] = _cursor(message.marked)
                if not event.startswith(CLIENT_EVENT_PREFIX):
                    return _encode(frame | {"data": _text_of(envelope)})
                frame["data"] = envelope.data
                if kind is ChannelKind.PRESENCE and envelope.user_id is not None:
                    frame["user_id"] = envelope.user_id
                return _encode(frame)
            case PresenceChanged(channel, "joined", user_id, info):
                data = {"user_id": user_id, "user_info": _user_info(user_id, info)}
                name = name_of(channel, ChannelKind.PRESENCE)
                return _event("pusher_internal:member_added", data, name)
            case PresenceChanged(channel, "left", user_id):
                name = name_of(channel, ChannelKind.PRESENCE)
                return _event("pusher_internal:member_removed", {"user_id": user_id}, name)
            case SubscriptionsCounted(channel, connections):
                return self._count(channel, connections)
        return None

    def _count(self, channel: str, connections: int) -> bytes | None:
        """Members tell that of presence channels; inboxes are nobody else's business."""
        kind = self._kind_of(channel)
        if not self._counts or kind is ChannelKind.PRESENCE or is_inbox(channel):
            return None
        data = {"subscription_count": connections}
        return _event("pusher_internal:subscription_count", data, name_of(channel, kind))

    def reply(self, reply: Reply) -> bytes | None:
        """A system event; None for answers that the protocol does not have."""
        match reply:
            case Connected(connection_id, heartbeat_s=heartbeat_s):
                timeout = math.ceil(heartbeat_s) + _PONG_S
                data = {"socket_id": connection_id, "activity_timeout": timeout}
                return _event("pusher:connection_established", data)
            case Pong():
                return _event("pusher:pong", {})
            case SignedIn(proof):
                return _event("pusher:signin_success", {"user_data": proof.user_data})
            case UsersWatched(online, offline):
                events = [
                    {"name": name, "user_ids": [_user_of(each) for each in inboxes]}
                    for name, inboxes in (("online", online), ("offline", offline))
                    if inboxes
                ]
                return _event("pusher_internal:watchlist_events", {"events": events})
            case Subscribed(ref="") | Failed(ref=""):
                return None
            case Subscribed(ref=str(name)):
                return self._subscribed(name, reply)
            case Subscribed(channel, recovered=False) if self._cursors:
                name = name_of(channel, self._kind_of(channel))
                data = {"recovered": False, "cursor": _cursor(reply.position)}
                return _event("eventbus:gap", data, name)
            case NothingStored(channel, ref=str(name)) if has_cache(channel):
                return _encode({"event": "pusher:cache_miss", "channel": name})
            case Unsubscribed(channel, reason=reason) if reason is not None:
                name = name_of(channel, self._kind_of(channel))
                return _refused(name, "forbidden", f"access to {name!r} was {reason}")
            case Failed(code, message, ref=str(name)):
                return _refused(name, code, message)
            case Failed(code, message):
                return _error(_ERRORS.get(code), message)
            case Closing(code, text):
                return _error(code, text)
        return None

    def _subscribed(self, name: str, reply: Subscribed) -> bytes:
        members = reply.members
        data = b"{}" if members is None else members.encoded(_encode_members)
        frame = {"event": "pusher_internal:subscription_succeeded", "channel": name}
        if not self._cursors:
            return _encode(frame | {"data": data.decode()})
        more = {} if reply.recovered is None else {"recovered": reply.recovered}
        text = _text(_decode_info(data) | more)
        return _encode(frame | {"data": text, "cursor": _cursor(reply.position)})


class UnknownApp(Pusher):
    """Refuses all clients: no app has their key."""

    def __init__(self) -> None:
        app = PusherApp(id="0", key="unknown", secret=secrets.token_hex())  # which nobody knows
        super().__init__(app, lambda _: ChannelKind.PRIVATE)

    def agree(self, _query: Mapping[str, str], /) -> Failed:
        """There is no such app."""
        return Failed("not_found", "there is no app with this key", None, None)


def _closing(code: int, text: str) -> Closing:
    returns = {40: Returns.NEVER, 42: Returns.AT_ONCE, 43: Returns.NEVER}.get(
        code // 100, Returns.LATER
    )
    return Closing(code, text, returns)


def _inner(data: msgspec.Raw) -> msgspec.Raw | str:
    """The data of a client's own event, which some libraries put into a string."""
    return _decode_text(data) if bytes(data).lstrip()[:1] == b'"' else data


def _event(event: str, data: dict[str, Any], channel: str | None = None) -> bytes:
    """An event of the server, whose data is JSON in a string."""
    frame = {"event": event} if channel is None else {"event": event, "channel": channel}
    return _encode(frame | {"data": _text(data)})


def _error(code: int | None, message: str) -> bytes:
    return _encode({"event": "pusher:error", "data": {"code": code, "message": message}})


def _cursor(position: Position | None) -> str | None:
    return None if position is None else _text(_Cursor(*position, mark_of(position)))


def _resume(cursor: str | None) -> Position | None:
    return None if cursor is None else _read_cursor(cursor)


def _read_cursor(text: str) -> Position:
    """Raises msgspec.DecodeError for what `_cursor` cannot have made."""
    at = _decode_cursor(text)
    if at.mark is None:
        return Position(at.offset, at.epoch)
    return MarkedPosition(at.offset, at.epoch, at.mark)


def _text(data: Any) -> str:
    return _encode(data).decode()


def _refused(name: str, code: str, message: str) -> bytes:
    kind, status = _STATUSES.get(code, ("AuthError", 400))
    data = {"type": kind, "error": message, "status": status}
    return _encode({"event": "pusher:subscription_error", "channel": name, "data": data})


def _encode_members(members: Members) -> bytes:
    ids = [member.user_id for member in members]
    infos = {member.user_id: msgspec.Raw(member.encoded(_encode_info)) for member in members}
    return _encode({"presence": {"ids": ids, "hash": infos, "count": len(ids)}})


def _encode_info(member: PresentMember) -> bytes:
    return _encode(_user_info(member.user_id, member.info))


def _info(user_info: Any) -> dict[str, Any]:
    """The info of a member, which must be an object: any other value becomes a field of one."""
    if user_info is None:
        return {}
    return user_info if isinstance(user_info, dict) else {_BARE: user_info}


def _user_info(user_id: str, info: bytes) -> Any:
    """With the id, since Laravel Echo shows nothing but the info.

    Members may change their info: it cannot make them somebody else.
    """
    fields = _decode_info(info)
    if fields.keys() == {_BARE}:
        return fields[_BARE]
    shown = {"id": user_id, **fields}
    if _text(shown["id"]).strip('"') != user_id:
        shown["id"] = user_id
    return shown
