"""What the nodes of a cluster are asked, and the types of questions and answers."""

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
    """A question without particulars."""


class Matching(msgspec.Struct, frozen=True):
    """Which channels match a pattern?"""

    pattern: str


class ChannelCount(msgspec.Struct, array_like=True, frozen=True):
    """A channel that clients of a node hear, its kind by the node's rules, and their number."""

    channel: str
    connections: int
    kind: ChannelKind


class ChannelsHeard(msgspec.Struct, frozen=True):
    """Some of a node's channels; `truncated` when it has more than MAX_LISTED that match."""

    counts: list[ChannelCount]
    truncated: bool


class AboutChannel(msgspec.Struct, frozen=True):
    """What of this channel?"""

    channel: str


class Count(msgspec.Struct, frozen=True):
    """A number of connections."""

    count: int


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's rules say of a channel, in words, and how many of its clients hear it."""

    node: str
    pattern: str
    """Of the rule that applies; `>` where no other does."""
    kind: ChannelKind
    join: list[str]
    """Who may join: whoever one of these is said of."""
    whisper: list[str]
    connections: int


NODE: Final = Question("node", Nothing, NodeStats)
CHANNELS: Final = Question("channels", Matching, ChannelsHeard)
CHANNEL: Final = Question("channel", AboutChannel, ChannelCount)
RULE: Final = Question("rule", AboutChannel, ChannelRule)
DISCONNECT: Final = Question("disconnect", Disconnect, Count)
