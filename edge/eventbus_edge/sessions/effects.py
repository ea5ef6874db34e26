"""What a session asks its connection to do: plain values, carried out in their order."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.channels import Pattern
from eventbus_edge.access import Ask, Rule
from eventbus_edge.protocols import (
    CloseReason,
    Failed,
    Member,
    Presence,
    ReadHistory,
    Ref,
    Reply,
    SignIn,
    Subscribe,
    SubscribePattern,
    Whisper,
)

__all__ = [
    "AnswerPresence",
    "AnswerStats",
    "ClaimUser",
    "Close",
    "Consult",
    "Effect",
    "Heartbeat",
    "Join",
    "JoinPattern",
    "Leave",
    "LeavePattern",
    "Read",
    "Recheck",
    "Send",
    "UpdatePresence",
    "Verify",
    "Watch",
    "WhisperOut",
    "failed",
    "not_subscribed",
]


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Send(NamedTuple):
    """Send the client a reply."""

    reply: Reply


class Verify(NamedTuple):
    """Check a token, then call `verified` or `token_rejected`."""

    token: str
    ref: Ref


class ClaimUser(NamedTuple):
    """Count the connection for a user who signs in, then call `signed_in` or `refused`."""

    command: SignIn
    join: "Join"
    user: Member
    watched: Sequence[str] = ()
    """The inboxes of users to watch."""


class Consult(NamedTuple):
    """Ask an authorizer of the application, then call `consulted`."""

    command: Subscribe | ReadHistory | Presence
    question: Ask


class Join(NamedTuple):
    """Subscribe to the channel, then call `joined` or `not_joined`; then deliver its messages."""

    command: Subscribe
    rule: Rule
    info: Mapping[str, Any] = _NOTHING
    """What an authorizer adds to the presence info."""
    member: Member | None = None
    """The user who joins, from the subscription's proof; None if the token says it."""


class JoinPattern(NamedTuple):
    """Subscribe to the channels of a pattern, then call `patterns.joined`.

    The pattern may be joined already.
    """

    command: SubscribePattern
    pattern: Pattern


class LeavePattern(NamedTuple):
    """Stop delivering the channels of a pattern."""

    pattern: Pattern


class Leave(NamedTuple):
    """Stop delivering the channel."""

    channel: str


class Recheck(NamedTuple):
    """Ask an authorizer again about a joined channel, then call `rechecked`."""

    channel: str
    question: Ask
    changes: Mapping[str, Any] = _NOTHING
    """Changes of the user's presence info that a new token brings."""


class UpdatePresence(NamedTuple):
    """Change fields of the user's presence info in a channel; a None removes one."""

    channel: str
    changes: Mapping[str, Any]


class WhisperOut(NamedTuple):
    """Publish a client event to the other subscribers of its channel, then call `whispered`."""

    command: Whisper
    event: str
    user_id: str | None


class AnswerPresence(NamedTuple):
    """Answer the action `presence` about a joined channel.

    The user's info is changed before, if the command asks for it.
    """

    command: Presence


class Read(NamedTuple):
    """Read a channel's history, or who is in one that is not joined, and answer with it."""

    command: ReadHistory | Presence


class AnswerStats(NamedTuple):
    """Ask all nodes for their statistics, and answer with them."""

    ref: Ref


class Watch(NamedTuple):
    """Notify the client when the users of these inboxes come online or go offline."""

    inboxes: Sequence[str]


class Heartbeat(NamedTuple):
    """Ask the client for a sign of life."""


class Close(NamedTuple):
    """End the connection; `text` says why, for people."""

    reason: CloseReason
    text: str


Effect = (
    Send
    | Verify
    | ClaimUser
    | Consult
    | Join
    | JoinPattern
    | Leave
    | LeavePattern
    | Recheck
    | UpdatePresence
    | WhisperOut
    | AnswerPresence
    | Read
    | AnswerStats
    | Watch
    | Heartbeat
    | Close
)


def failed(code: str, message: str, channel: str | None, ref: Ref) -> Send:
    """Send the client an error for its command; see the protocol for the codes."""
    return Send(Failed(code, message, channel, ref))


def not_subscribed(name: str) -> str:
    """The error message for a command about a channel or pattern that is not joined."""
    return f"this connection is not subscribed to {name}"
