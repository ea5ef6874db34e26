"""Request and response types of the HTTP API, which validate it and describe it."""

from typing import (
    Annotated,
    Any,
)

import msgspec

from eventbus_edge.cluster.answers import (
    Channel,
)

__all__ = [
    "MAX_CHANNELS",
    "HistoryPage",
    "HistoryQuery",
    "Member",
    "Members",
    "NoQuery",
    "Publish",
    "Published",
    "PublishedMessage",
]


MAX_CHANNELS = 100
"""The maximum number of channels per publish request."""
MAX_HISTORY = 1000


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user who is present, with one or more connections."""

    user_id: str
    info: Any


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a presence channel."""

    channel: Channel
    members: list[Member]
    count: int


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stored messages of a channel, in order."""

    messages: Annotated[
        list[msgspec.Raw], msgspec.Meta(description="Complete messages, as clients receive them.")
    ]
    offset: Annotated[
        int | None,
        msgspec.Meta(description="The offset of the stream; null if the driver has no stream."),
    ]
    epoch: str | None
    complete: Annotated[
        bool,
        msgspec.Meta(
            description="False if messages after `since` are, or may be, no longer stored."
        ),
    ]


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message for one or more channels. Either `channel` or `channels` is required."""

    channel: Channel | None = None
    channels: (
        Annotated[list[Channel], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)] | None
    ) = None
    event: Annotated[str, msgspec.Meta(examples=["order.shipped"])]
    data: Annotated[msgspec.Raw, msgspec.Meta(description="Any JSON.")]
    except_: Annotated[
        str | None,
        msgspec.Meta(
            description="The id of a connection that must not get it, usually the sender's."
        ),
    ] = msgspec.field(name="except", default=None)
    volatile: Annotated[
        bool, msgspec.Meta(description="Delivered to current subscribers only, and not stored.")
    ] = False


class PublishedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A published message; offset and epoch are null if it was not stored."""

    channel: Channel
    id: str
    offset: int | None
    epoch: str | None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The messages, one per channel, in the order of the request."""

    messages: list[PublishedMessage]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which messages: the first `limit` after `since`, or the last `limit`."""

    limit: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=MAX_HISTORY,
            description="The maximum number; fewer are returned if they are large.",
        ),
    ] = 100
    since: Annotated[int, msgspec.Meta(ge=0, description="An offset, exclusive.")] | None = None
