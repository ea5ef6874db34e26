"""What passes between the layers of the edge: plain values, of no wire format's own.

A protocol turns a client's frames into commands, and replies and messages into bytes. A session
turns commands into effects. Nothing here knows how any of it looks on the wire.
"""

from collections.abc import (
    Mapping,
    Sequence,
)
from typing import (
    Any,
    NamedTuple,
    Protocol,
)

import msgspec

from eventbus.channels import ChannelKind
from eventbus.drivers.base import Position
from eventbus.drivers.marks import MarkedPosition

__all__ = [
    "Acknowledged",
    "AskStats",
    "Authenticate",
    "Authenticated",
    "ChannelMessage",
    "ClusterStats",
    "Command",
    "Connected",
    "Failed",
    "Malformed",
    "Ping",
    "Pong",
    "Presence",
    "PresenceMembers",
    "ReadHistory",
    "Ref",
    "Reply",
    "StoredMessages",
    "Subscribe",
    "SubscribePattern",
    "Subscribed",
    "SubscribedPattern",
    "TokenExpiring",
    "Unsubscribe",
    "UnsubscribePattern",
    "Unsubscribed",
    "UnsubscribedPattern",
    "Whisper",
    "WireFormat",
]


Ref = str | int | None
"""What a client gave with a command, to know its answer by."""


class Ping(NamedTuple):
    """Asks for a pong that carries `data` back."""

    data: msgspec.Raw
    ref: Ref


class Authenticate(NamedTuple):
    """Gives a token, or a newer one."""

    token: str
    ref: Ref


class Subscribe(NamedTuple):
    """Asks for a channel's messages, from `resume` on where it is given, or with the last few."""

    channel: str
    resume: Position | None
    history: int
    ref: Ref


class SubscribePattern(NamedTuple):
    """Asks for the messages of all channels that a pattern matches."""

    pattern: str
    ref: Ref


class UnsubscribePattern(NamedTuple):
    """Wants no more of a pattern."""

    pattern: str
    ref: Ref


class Unsubscribe(NamedTuple):
    """Wants no more of a channel."""

    channel: str
    ref: Ref


class Whisper(NamedTuple):
    """An event from a client to the other connections of a channel; `data` is JSON."""

    channel: str
    event: str
    data: bytes
    ref: Ref


class Presence(NamedTuple):
    """Asks who is in a presence channel; with `changes`, changes the sender's info first."""

    channel: str
    changes: Mapping[str, Any] | None
    ref: Ref


class ReadHistory(NamedTuple):
    """Asks for stored messages: the first `limit` after the offset `since`, or the last ones."""

    channel: str
    since: int | None
    limit: int
    ref: Ref


class AskStats(NamedTuple):
    """Asks what the whole cluster holds."""

    ref: Ref


class Malformed(NamedTuple):
    """A frame that is no command: the error to answer it with."""

    code: str
    message: str
    ref: Ref


Command = (
    Ping
    | Authenticate
    | Subscribe
    | Unsubscribe
    | SubscribePattern
    | UnsubscribePattern
    | Whisper
    | Presence
    | ReadHistory
    | AskStats
    | Malformed
)


class Connected(NamedTuple):
    """The first thing a connection hears."""

    connection_id: str
    node: str
    heartbeat_s: float
    actions_per_s: float
    action_burst: int


class Authenticated(NamedTuple):
    """A token was accepted; `expires_at` is in Unix seconds."""

    user_id: str
    expires_at: float
    ref: Ref


class Subscribed(NamedTuple):
    """A subscription stands; exactly the channel's messages after `position` follow."""

    channel: str
    kind: ChannelKind
    position: Position | None
    recovered: bool | None
    ref: Ref
    members: bytes | None = None
    """Of a presence channel: a JSON array."""


class SubscribedPattern(NamedTuple):
    """A subscription to a pattern stands; what is published from now on follows.

    `recovered` is False where that is told again, since messages may have been lost.
    """

    pattern: str
    ref: Ref
    recovered: bool | None = None


class UnsubscribedPattern(NamedTuple):
    """A subscription to a pattern has ended: the client wanted it, or `reason` tells why."""

    pattern: str
    ref: Ref
    reason: str | None = None


class Unsubscribed(NamedTuple):
    """A subscription has ended: the client wanted it, or `reason` tells why."""

    channel: str
    ref: Ref
    reason: str | None = None


class Pong(NamedTuple):
    """The answer to a ping."""

    data: msgspec.Raw
    ref: Ref


class PresenceMembers(NamedTuple):
    """Who is in a presence channel; `members` is a JSON array."""

    channel: str
    members: bytes
    total: int
    ref: Ref


class ClusterStats(NamedTuple):
    """What the whole cluster holds: an object of JSON."""

    stats: Mapping[str, Any]
    ref: Ref


class Acknowledged(NamedTuple):
    """A command without an answer of its own was carried out."""

    channel: str
    ref: Ref


class TokenExpiring(NamedTuple):
    """The token ends at `expires_at` (Unix seconds), in `in_s` seconds."""

    expires_at: float
    in_s: float


class Failed(NamedTuple):
    """A command was refused; the connection goes on."""

    code: str
    message: str
    channel: str | None
    ref: Ref


class ChannelMessage(NamedTuple):
    """A message on its way to a channel's subscribers; `body` is its checked envelope."""

    channel: str
    event: str
    body: bytes
    position: Position | None
    exclude: str | None
    """The id of the connection that must not receive it."""
    published: str | None = None
    """When it was stored, or published where no stream has it, RFC 3339; None where nobody says."""
    mark: str | None = None
    """Which message it is that stands at the position; see MarkedPosition."""

    @property
    def marked(self) -> Position | None:
        """The position with its mark."""
        if self.position is None or self.mark is None:
            return self.position
        return MarkedPosition(*self.position, self.mark)


class StoredMessages(NamedTuple):
    """Some of a channel's history; `position` is where its stream stands, None without one."""

    channel: str
    messages: Sequence[ChannelMessage]
    position: Position | None
    ref: Ref


Reply = (
    Connected
    | Authenticated
    | Subscribed
    | Unsubscribed
    | SubscribedPattern
    | UnsubscribedPattern
    | Pong
    | PresenceMembers
    | ClusterStats
    | StoredMessages
    | Acknowledged
    | TokenExpiring
    | Failed
)


class WireFormat(Protocol):
    """How replies and messages look to one kind of connection: the bytes that go to its socket.

    Formats are shared: a message is encoded once for each format, not for each connection.
    """

    def message(self, message: ChannelMessage) -> bytes:
        """The bytes of a channel's message."""

    def reply(self, reply: Reply) -> bytes:
        """The bytes of an answer or a notice."""
