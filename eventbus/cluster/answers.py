"""What a cluster answers, as its nodes send it and as the HTTP API shows it."""

import datetime
from typing import Annotated, Any, Self

import msgspec

from eventbus.channels import (
    MAX_CHANNEL_BYTES,
    MAX_PATTERN_CHARS,
    TOKEN_REGEX,
    ChannelKind,
    validate_pattern,
)

__all__ = [
    "MAX_LISTED",
    "ChannelMembers",
    "ChannelStats",
    "Channels",
    "Disconnect",
    "Disconnected",
    "ListQuery",
    "Member",
    "NodeStats",
    "Stats",
]

MAX_LISTED = 10_000

Channel = Annotated[
    str,
    msgspec.Meta(
        description="A channel: dot-separated tokens of letters, digits and _ = @ , ; - with no "
        f"empty token, at most {MAX_CHANNEL_BYTES} bytes. Other characters of an id are "
        "escaped as ~hh for each byte: user.ada@example~2ecom.",
        examples=["orders.42"],
        # Described here, but checked by validate_channel, whose error says what is allowed.
        extra_json_schema={
            "pattern": rf"^{TOKEN_REGEX}(\.{TOKEN_REGEX})*$",
            "minLength": 1,
            "maxLength": MAX_CHANNEL_BYTES,
        },
    ),
]
Missing = Annotated[
    list[str],
    msgspec.Meta(description="Nodes that are known and did not answer in time; usually none."),
]


class NodeStats(msgspec.Struct, frozen=True, kw_only=True):
    """One node, since it was started."""

    id: str
    host: Annotated[str, msgspec.Meta(description="The name of the machine it runs on.")]
    address: Annotated[
        str,
        msgspec.Meta(
            description="Where it listens, as a URL; behind a proxy clients use another. Empty "
            "when it is not known.",
            examples=["http://0.0.0.0:8080"],
        ),
    ]
    started_at: datetime.datetime
    uptime_s: float
    connections: int
    channels: Annotated[int, msgspec.Meta(description="Channels with subscribers on this node.")]
    messages_in: Annotated[int, msgspec.Meta(description="Messages received from the bus.")]
    messages_out: Annotated[int, msgspec.Meta(description="Messages pushed to clients.")]
    protocols: Annotated[
        dict[str, int],
        msgspec.Meta(
            description="Connections by the protocol that they speak; empty from an older node.",
            examples=[{"native": 2}],
        ),
    ] = {}


class ChannelStats(msgspec.Struct, frozen=True, kw_only=True):
    """One channel, on all nodes."""

    channel: Channel
    kind: ChannelKind
    connections: int
    members: Annotated[
        int | msgspec.UnsetType, msgspec.Meta(description="Of a presence channel only.")
    ] = msgspec.UNSET


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """The channels with subscribers, those with most connections first."""

    channels: list[ChannelStats]
    truncated: Annotated[
        bool, msgspec.Meta(description="Whether there are, or may be, more than were asked for.")
    ]
    missing: Missing


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster: its nodes, its channels, and sums over all nodes."""

    driver: str
    nodes: list[NodeStats]
    connections: int
    channels: list[ChannelStats]
    truncated: Annotated[bool, msgspec.Meta(description="As in the list of channels.")]
    messages_in: int
    messages_out: int
    missing: Missing


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user who is present, with one or more connections."""

    user_id: str
    info: Any


class ChannelMembers(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a presence channel, in the order of their ids."""

    channel: str
    members: list[Member]
    missing: list[str]
    """Nodes that did not answer in time. Users connected only there are not among the members."""


class Disconnect(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What to disconnect: exactly one of user_id, connection_id, jti and channel is required."""

    user_id: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    connection_id: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    jti: (
        Annotated[str, msgspec.Meta(min_length=1, description="The id of the token that was used.")]
        | None
    ) = None
    channel: (
        Annotated[
            Channel,
            msgspec.Meta(
                description="Its subscribers get eb:unsubscribed with the reason revoked, and keep "
                "their connections."
            ),
        ]
        | None
    ) = None
    reconnect: Annotated[
        bool,
        msgspec.Meta(
            description="Whether clients should reconnect: close code 4200, otherwise 4003. "
            "No effect for a channel."
        ),
    ] = False
    issued_before: (
        Annotated[
            float,
            msgspec.Meta(
                ge=0,
                le=253_402_300_799,
                description="With user_id or channel: only tokens whose iat is less than this, "
                "in seconds since 1970 by the issuer's clock. By default, tokens issued until now.",
            ),
        ]
        | None
    ) = None

    def concerns(self, iat: float | None) -> bool:
        """Whether a token with that `iat` is meant."""
        return self.issued_before is None or iat is None or iat < self.issued_before

    def criteria(self) -> int:
        """How many of the four are given."""
        given = (self.user_id, self.connection_id, self.jti, self.channel)
        return sum(criterion is not None for criterion in given)


class Disconnected(msgspec.Struct, frozen=True, kw_only=True):
    """The number of connections, on all nodes."""

    count: int
    missing: Missing


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which channels to list."""

    limit: Annotated[
        int, msgspec.Meta(ge=1, le=MAX_LISTED, description="How many channels at most.")
    ] = 1000
    pattern: Annotated[
        str,
        msgspec.Meta(
            description="Only channels that match: * one token, > the rest.",
            extra_json_schema={"minLength": 1, "maxLength": MAX_PATTERN_CHARS},
        ),
    ] = ">"

    @classmethod
    def checked(cls, pattern: str, limit: int) -> Self:
        """A query of values that are not validated yet. Raises InvalidPattern and ValueError."""
        validate_pattern(pattern)
        if not 1 <= limit <= MAX_LISTED:
            raise ValueError(f"limit is {limit}; allowed: 1 to {MAX_LISTED:,}")
        return cls(pattern=pattern, limit=limit)
