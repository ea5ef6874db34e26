"""The plain values that the packages of the edge exchange, independent of any wire format.

A protocol turns a client's frames into commands, and turns replies, messages and notices into
bytes. A session turns commands into effects. Nothing here knows the bytes.
"""

import datetime
import enum
from collections.abc import (
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
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
    "CloseReason",
    "Closing",
    "ClusterSampled",
    "ClusterStats",
    "Command",
    "Connected",
    "Failed",
    "Malformed",
    "Member",
    "Notice",
    "Ping",
    "Pong",
    "Presence",
    "PresenceChanged",
    "PresenceMembers",
    "ReadHistory",
    "Ref",
    "Reply",
    "Returns",
    "SignOfLife",
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
]


Ref = str | int | None
"""What a client gave with a command, to know its answer by."""


class Member(NamedTuple):
    """Who a connection is in one channel, from its token or from data that signs the subscription.

    `info` is what the other members of a presence channel see.
    """

    user_id: str
    info: Mapping[str, Any]


class SignOfLife(NamedTuple):
    """Shows that the client is there, such as its answer to a heartbeat. It is not answered."""

    ref: Ref = None


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
    proof: Any = None
    """What proves the right to the channel, opaque to all but the protocol that checks it."""


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
    SignOfLife
    | Ping
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

    @property
    def marked(self) -> Position | None:
        """The position, with its mark where it has one."""
        return self.position


class SubscribedPattern(NamedTuple):
    """A subscription to a pattern stands; what is published from now on follows.

    `recovered` is False in a repeated notice: messages may have been lost.
    """

    pattern: str
    ref: Ref
    recovered: bool | None = None


class UnsubscribedPattern(NamedTuple):
    """A subscription to a pattern has ended: the client asked for it, or `reason` says why."""

    pattern: str
    ref: Ref
    reason: str | None = None


class Unsubscribed(NamedTuple):
    """A subscription has ended: the client asked for it, or `reason` says why."""

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
    def size(self) -> int:
        """How many bytes its envelope has."""
        return len(self.body)

    @property
    def marked(self) -> Position | None:
        """The position with its mark."""
        if self.position is None or self.mark is None:
            return self.position
        return MarkedPosition(*self.position, self.mark)


class PresenceChanged(NamedTuple):
    """A member of a presence channel has come, has gone, or has other info."""

    channel: str
    change: Literal["joined", "left", "updated"]
    user_id: str
    info: bytes
    """A JSON object."""
    at: datetime.datetime
    exclude: str | None = None
    """The id of the connection that must not receive it."""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.user_id) + len(self.info)

    @property
    def position(self) -> None:
        """Notices are not stored."""
        return None

    @property
    def marked(self) -> None:
        """Notices are not stored."""
        return None


class ClusterSampled(NamedTuple):
    """A sample of the whole cluster for administrators who watch it."""

    channel: str
    sample: msgspec.Struct
    at: datetime.datetime

    @property
    def marked(self) -> None:
        """Notices are not stored."""
        return None


Notice: TypeAlias = PresenceChanged | ClusterSampled
"""What a node itself reports to the subscribers of a channel."""


class StoredMessages(NamedTuple):
    """Some of a channel's history; `position` is where its stream stands, None without one."""

    channel: str
    messages: Sequence[ChannelMessage]
    position: Position | None
    ref: Ref


class CloseReason(enum.Enum):
    """Why a node ends a connection. The connection's protocol has a close code for each."""

    BAD_TOKENS = enum.auto()
    COME_BACK = enum.auto()
    """An administrator ended it, and the client is to connect again."""
    DISCONNECTED = enum.auto()
    """An administrator ended it for good."""
    DRAINING = enum.auto()
    INTERNAL_ERROR = enum.auto()
    NO_HEARTBEAT = enum.auto()
    NO_TOKEN = enum.auto()
    REVOKED = enum.auto()
    TOKEN_EXPIRED = enum.auto()
    TOO_MANY_ACTIONS = enum.auto()
    TOO_SLOW = enum.auto()
    UNEXPECTED_DATA = enum.auto()
    """The client sent something where nothing may be sent."""


class Returns(enum.Enum):
    """Whether the client of a closed connection may connect again, and when."""

    NEVER = enum.auto()
    LATER = enum.auto()
    AT_ONCE = enum.auto()


class Closing(NamedTuple):
    """The end of a connection, as its protocol says it: `text` is for people."""

    code: int
    text: str
    returns: Returns


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
    | Closing
)
