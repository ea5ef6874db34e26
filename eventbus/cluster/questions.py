"""The questions to the nodes of a cluster, with the types of their answers."""

from typing import Final

import msgspec

from eventbus.channels import ChannelKind
from eventbus.cluster.answers import (
    Disconnect,
    NodeStats,
)
from eventbus.cluster.gather import Question

__all__ = [
    "CHANNEL",
    "CHANNELS",
    "CONNECTIONS",
    "DISCONNECT",
    "MAX_ALIKE",
    "MEMBERS",
    "NODE",
    "RULE",
    "AboutChannel",
    "ChannelCount",
    "ChannelRule",
    "ChannelsHeard",
    "ConnectionIds",
    "Count",
    "Matching",
    "MemberHeard",
    "MembersHeard",
    "Nothing",
    "StartOfId",
]

MAX_ALIKE: Final = 10
"""Enough to say that a start of an id is not unique."""


class Nothing(msgspec.Struct, frozen=True):
    """A question without parameters."""


class Matching(msgspec.Struct, frozen=True):
    """Which channels match a pattern?"""

    pattern: str


class ChannelCount(msgspec.Struct, array_like=True, frozen=True):
    """A channel with subscribers on a node: their number, and the kind by the node's rules."""

    channel: str
    connections: int
    kind: ChannelKind
    members: int | None = None
    """Of a presence channel: the members in the whole cluster, as far as the node knows."""


class ChannelsHeard(msgspec.Struct, frozen=True):
    """Some of a node's channels; `truncated` if more than MAX_LISTED match."""

    counts: list[ChannelCount]
    truncated: bool


class AboutChannel(msgspec.Struct, frozen=True):
    """A question about one channel."""

    channel: str


class MemberHeard(msgspec.Struct, array_like=True, frozen=True):
    """A user with connections to a node, as of `at`, in Unix milliseconds."""

    user_id: str
    info: msgspec.Raw
    at: int


class MembersHeard(msgspec.Struct, frozen=True):
    """Some of the members of a channel on one node, and the kind by the node's rules."""

    kind: ChannelKind
    members: list[MemberHeard]


class StartOfId(msgspec.Struct, frozen=True):
    """Which connections have an id with this start?"""

    start: str


class ConnectionIds(msgspec.Struct, frozen=True):
    """The ids of some of a node's connections, at most MAX_ALIKE."""

    ids: list[str]


class Count(msgspec.Struct, frozen=True):
    """A number of connections."""

    count: int


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True):
    """A node's rule for a channel, in words, and the number of its subscribers there."""

    node: str
    pattern: str
    """The pattern of the rule that applies; `>` if none does."""
    kind: ChannelKind
    join: list[str]
    """Who may join: users who meet one of these conditions."""
    whisper: list[str]
    connections: int


NODE: Final = Question("node", Nothing, NodeStats)
CHANNELS: Final = Question("channels", Matching, ChannelsHeard)
CHANNEL: Final = Question("channel", AboutChannel, ChannelCount)
RULE: Final = Question("rule", AboutChannel, ChannelRule)
MEMBERS: Final = Question("members", AboutChannel, MembersHeard)
CONNECTIONS: Final = Question("connections", StartOfId, ConnectionIds)
DISCONNECT: Final = Question("disconnect", Disconnect, Count)
