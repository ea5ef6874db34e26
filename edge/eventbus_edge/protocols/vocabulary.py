"""The plain values that the packages of the edge exchange, independent of any wire format.

A protocol turns a client's frames into commands, and turns replies, messages and notices into
bytes. A session turns commands into effects. Nothing here knows the bytes.
"""

import datetime
import enum
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
)

import msgspec

from eventbus.channels import ChannelKind
from eventbus.drivers import MarkedPosition, Position

__all__ = [
    "Acknowledged",
    "AskStats",
    "Authenticate",
    "Authenticated",
    "ChannelMessage",
    "ClientEventSent",
    "CloseReason",
    "Closing",
    "ClusterSampled",
    "ClusterStats",
    "Command",
    "Connected",
    "Failed",
    "Malformed",
    "Member",
    "Members",
    "NothingStored",
    "Notice",
    "Ping",
    "Pong",
    "Presence",
    "PresenceChanged",
    "PresenceMembers",
    "PresentMember",
    "ReadHistory",
    "Ref",
    "Reply",
    "Returns",
    "SignIn",
    "SignOfLife",
    "SignedIn",
    "StoredMessages",
    "Subscribe",
    "SubscribePattern",
    "Subscribed",
    "SubscribedPattern",
    "SubscriptionsCounted",
    "TokenExpiring",
    "Unsubscribe",
    "UnsubscribePattern",
    "Unsubscribed",
    "UnsubscribedPattern",
    "UsersWatched",
    "Whisper",
]


_MEMBER_BYTES: Final = 24
"""What an encoding adds to the data of each member, such as `{"user_id":"","info":},`."""

Ref = str | int | None
"""A client's reference to a command, by which it recognizes the answer."""


class Member(NamedTuple):
    """The user of a connection in one channel, from its token or the subscription's signed data.

    `info` is what the other members of a presence channel see.
    """

    user_id: str
    info: Mapping[str, Any]


class PresentMember:
    """A member of a presence channel, as the other members see it; `info` is a JSON object."""

    __slots__ = ("_encoded", "info", "user_id")

    def __init__(self, user_id: str, info: bytes) -> None:
        self.user_id = user_id
        self.info = info
        self._encoded: tuple[Callable[[PresentMember], bytes], bytes] | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes in a list."""
        return len(self.user_id.encode("utf-8", "surrogatepass")) + len(self.info) + _MEMBER_BYTES

    def encoded(self, encode: "Callable[[PresentMember], bytes]") -> bytes:
        """The result of `encode`. Only that of the last function is cached.

        A channel has mostly clients of one protocol, and a node has very many members.
        """
        cached = self._encoded
        if cached is None or cached[0] is not encode:
            cached = self._encoded = encode, encode(self)
        return cached[1]


class Members:
    """The members of a presence channel at one moment.

    All clients that join until the next change get the same object. So each protocol encodes it
    once, and not once per client.
    """

    __slots__ = ("_encoded", "_members")

    def __init__(self, members: Iterable[PresentMember] = ()) -> None:
        self._members = tuple(members)
        self._encoded: dict[Callable[[Members], bytes], bytes] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[PresentMember]:
        return iter(self._members)

    def encoded(self, encode: "Callable[[Members], bytes]") -> bytes:
        """The result of `encode`, cached for each function."""
        found = self._encoded.get(encode)
        if found is None:
            found = self._encoded[encode] = encode(self)
        return found


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
    """Asks for a channel's messages, from `resume` on if it is given, or with the last few."""

    channel: str
    resume: Position | None
    history: int
    ref: Ref
    proof: Any = None
    """What proves the right to the channel, opaque to all but the protocol that checks it."""


class SubscribePattern(NamedTuple):
    """Asks for the messages of all channels that a pattern matches, from `resume` on if given."""

    pattern: str
    ref: Ref
    resume: Position | None = None


class UnsubscribePattern(NamedTuple):
    """Unsubscribes from a pattern."""

    pattern: str
    ref: Ref


class Unsubscribe(NamedTuple):
    """Unsubscribes from a channel."""

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


class SignIn(NamedTuple):
    """Says who the user of the connection is; `proof` is opaque to all but the protocol."""

    proof: Any
    ref: Ref = None
    resume: Position | None = None
    """Where the user's inbox continues."""


class ReadHistory(NamedTuple):
    """Asks for stored messages: the first `limit` after the offset `since`, or the last ones."""

    channel: str
    since: int | None
    limit: int
    ref: Ref


class AskStats(NamedTuple):
    """Asks for the statistics of the whole cluster."""

    ref: Ref


class Malformed(NamedTuple):
    """A frame that is not a command: the error to answer it with."""

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
    | SignIn
    | ReadHistory
    | AskStats
    | Malformed
)


class Connected(NamedTuple):
    """The first reply on every connection."""

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


class SignedIn(NamedTuple):
    """The proof of a user was accepted."""

    proof: Any
    ref: Ref


class Subscribed(NamedTuple):
    """A subscription is active; exactly the channel's messages after `position` follow."""

    channel: str
    kind: ChannelKind
    position: Position | None
    recovered: bool | None
    ref: Ref
    members: "Members | None" = None
    """Of a presence channel."""

    @property
    def marked(self) -> Position | None:
        """The position, with its mark where it has one."""
        return self.position


class NothingStored(NamedTuple):
    """There are no stored messages for a subscription; this follows its `Subscribed`."""

    channel: str
    ref: Ref


class SubscribedPattern(NamedTuple):
    """A subscription to a pattern is active; exactly the messages after `position` follow.

    In a repeated notice `recovered` is False: messages before those may have been lost.
    """

    pattern: str
    ref: Ref
    position: Position | None = None
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
    """The members of a presence channel."""

    channel: str
    members: "Members"
    ref: Ref


class ClusterStats(NamedTuple):
    """The statistics of the whole cluster: a JSON object."""

    stats: Mapping[str, Any]
    ref: Ref


class UsersWatched(NamedTuple):
    """Which users have come online or gone offline, by their inboxes, for one who watches them."""

    online: Sequence[str]
    offline: Sequence[str]


class Acknowledged(NamedTuple):
    """A command without an answer of its own was carried out."""

    channel: str
    ref: Ref


class TokenExpiring(NamedTuple):
    """The token ends at `expires_at` (Unix seconds), in `in_s` seconds."""

    expires_at: float
    in_s: float


class Failed(NamedTuple):
    """A command was refused; the connection stays open."""

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
    """When it was stored, or published if no stream stores it, RFC 3339; None if unknown."""
    mark: str | None = None
    """Identifies the message at the position; see MarkedPosition."""

    @property
    def size(self) -> int:
        """The size of its envelope in bytes."""
        return len(self.body)

    @property
    def marked(self) -> Position | None:
        """The position with its mark."""
        position, mark = self.position, self.mark
        if position is None or mark is None:
            return position
        offset, epoch = position
        return MarkedPosition(offset, epoch, mark)


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


class SubscriptionsCounted(NamedTuple):
    """The number of connections of the whole cluster that are subscribed to a channel."""

    channel: str
    connections: int

    @property
    def marked(self) -> None:
        """Notices are not stored."""
        return None


class ClientEventSent(NamedTuple):
    """A connection has sent a client event, which was accepted; `data` is JSON."""

    channel: str
    event: str
    data: bytes
    connection_id: str
    user_id: str | None


Notice: TypeAlias = PresenceChanged | ClusterSampled | SubscriptionsCounted
"""What a node itself reports to the subscribers of a channel."""


class StoredMessages(NamedTuple):
    """Some of a channel's history; `position` is the end of its stream, None without one."""

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
    TOO_MANY_WATCHED = enum.auto()
    """A user who signs in asks to watch more users than are allowed."""
    TOO_SLOW = enum.auto()
    UNEXPECTED_DATA = enum.auto()
    """The client sent something where nothing may be sent."""


class Returns(enum.Enum):
    """Whether the client of a closed connection may connect again, and when."""

    NEVER = enum.auto()
    LATER = enum.auto()
    AT_ONCE = enum.auto()


class Closing(NamedTuple):
    """The end of a connection, in the terms of its protocol; `text` is for people."""

    code: int
    text: str
    returns: Returns


Reply = (
    Connected
    | Authenticated
    | SignedIn
    | Subscribed
    | NothingStored
    | Unsubscribed
    | SubscribedPattern
    | UnsubscribedPattern
    | Pong
    | PresenceMembers
    | ClusterStats
    | StoredMessages
    | UsersWatched
    | Acknowledged
    | TokenExpiring
    | Failed
    | Closing
)
