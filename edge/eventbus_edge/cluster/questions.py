"""The questions to the nodes of a cluster, with the types of their answers."""

from typing import Final

import msgspec

from eventbus.channels import ChannelKind
from eventbus_edge.cluster.answers import (
    Disconnect,
    NodeStats,
)
from eventbus_edge.cluster.gather import Question

__all__ = [
    "CHANNEL",
    "CHANNELS",
    "DISCONNECT",
    "NODE",
    "RULE",
    "AboutChannel",
    "ChannelCount",
    "ChannelRule",
    "ChannelsHeard",
    "Count",
    "Matching",
    "Nothing",
]


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


class ChannelsHeard(msgspec.Struct, frozen=True):
    """Some of a node's channels; `truncated` if more than MAX_LISTED match."""

    counts: list[ChannelCount]
    truncated: bool


class AboutChannel(msgspec.Struct, frozen=True):
    """A question about one channel."""

    channel: str


class Count(msgspec.Struct, frozen=True):
    """A number of connections."""

    count: int


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True):
    """A node's rule for a channel, in words, and the number of its subscribers there."""

    node: str
    pattern: str
    """That of the rule that applies; `>` if none does."""
    kind: ChannelKind
    join: list[str]
    """Who may join: those who meet one of these."""
    whisper: list[str]
    connections: int


NODE: Final = Question("node", Nothing, NodeStats)
CHANNELS: Final = Question("channels", Matching, ChannelsHeard)
CHANNEL: Final = Question("channel", AboutChannel, ChannelCount)
RULE: Final = Question("rule", AboutChannel, ChannelRule)
DISCONNECT: Final = Question("disconnect", Disconnect, Count)
