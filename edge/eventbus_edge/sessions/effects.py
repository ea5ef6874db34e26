"""What a session asks its node to do: plain values, in the order in which they are to be done."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.channels import Pattern
from eventbus_edge.access.rules import (
    Ask,
    Rule,
)
from eventbus_edge.protocols.vocabulary import (
    CloseReason,
    Failed,
    Member,
    Presence,
    ReadHistory,
    Ref,
    Reply,
    Subscribe,
    SubscribePattern,
    Whisper,
)

__all__ = [
    "Attend",
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
    "Restate",
    "Send",
    "Survey",
    "Verify",
    "WhisperOut",
    "failed",
    "not_subscribed",
]


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Send(NamedTuple):
    """Give the client a reply."""

    reply: Reply


class Verify(NamedTuple):
    """Check a token, then call `verified` or `token_rejected`."""

    token: str
    ref: Ref


class Consult(NamedTuple):
    """Ask an authorizer of the application, then call `consulted`."""

    command: Subscribe | ReadHistory
    question: Ask


class Join(NamedTuple):
    """Listen to the channel, then call `joined` or `not_joined`; only then deliver its messages."""

    command: Subscribe
    rule: Rule
    info: Mapping[str, Any] = _NOTHING
    """What an authorizer adds to the presence info."""
    member: Member | None = None
    """Who joins, from the proof of the subscription; None: the token says it."""


class JoinPattern(NamedTuple):
    """Listen to the channels of a pattern, then call `joined_pattern` or `not_joined_pattern`."""

    command: SubscribePattern
    pattern: Pattern


class LeavePattern(NamedTuple):
    """Deliver no more of a pattern."""

    pattern: Pattern


class Leave(NamedTuple):
    """Deliver no more of the channel."""

    channel: str


class Recheck(NamedTuple):
    """Ask an authorizer again about a channel that is joined, then call `rechecked`."""

    channel: str
    question: Ask
    changes: Mapping[str, Any] = _NOTHING
    """What the token that raised the question says otherwise of its user."""


class Restate(NamedTuple):
    """Change members of the user's presence info in a channel; a None takes one away."""

    channel: str
    changes: Mapping[str, Any]


class WhisperOut(NamedTuple):
    """Carry a client's event to the others of its channel, then call `whispered`."""

    command: Whisper
    event: str
    user_id: str | None


class Attend(NamedTuple):
    """Answer the action `presence`, after changing the user's info where that is asked for."""

    command: Presence


class Read(NamedTuple):
    """Read a channel's history, and answer with it."""

    command: ReadHistory


class Survey(NamedTuple):
    """Ask all nodes what they hold, and answer with it."""

    ref: Ref


class Heartbeat(NamedTuple):
    """Ask the client whether it is there."""


class Close(NamedTuple):
    """End the connection; `text` says why, for people."""

    reason: CloseReason
    text: str


Effect = (
    Send
    | Verify
    | Consult
    | Join
    | JoinPattern
    | Leave
    | LeavePattern
    | Recheck
    | Restate
    | WhisperOut
    | Attend
    | Read
    | Survey
    | Heartbeat
    | Close
)


def failed(code: str, message: str, channel: str | None, ref: Ref) -> Send:
    """Tell the client that its command is not carried out; see the protocol for the codes."""
    return Send(Failed(code, message, channel, ref))


def not_subscribed(name: str) -> str:
    """What a client hears that speaks of a channel, or a pattern, which it has not joined."""
    return f"this connection is not subscribed to {name}"
