"""What the HTTP API takes and answers: validated by these types, and described by them."""

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
"""Channels of one request to publish."""
MAX_HISTORY = 1000


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user who is present, by however many connections."""

    user_id: str
    info: Any


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """Who is present in a channel."""

    channel: Channel
    members: list[Member]
    count: int


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stored messages of a channel, in order."""

    messages: Annotated[
        list[msgspec.Raw], msgspec.Meta(description="Whole envelopes, as clients receive them.")
    ]
    offset: Annotated[
        int | None,
        msgspec.Meta(description="Where the stream stands; null where the driver keeps none."),
    ]
    epoch: str | None
    complete: Annotated[
        bool,
        msgspec.Meta(
            description="False when messages after `since` are no longer held, or may not be."
        ),
    ]


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message for one or several channels. One of `channel` and `channels` is needed."""

    channel: Channel | None = None
    channels: (
        Annotated[list[Channel], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)] | None
    ) = None
    event: Annotated[str, msgspec.Meta(examples=["order.shipped"])]
    data: Annotated[msgspec.Raw, msgspec.Meta(description="Any JSON.")]
    except_: Annotated[
        str | None,
        msgspec.Meta(description="The id of the connection that must not get it: the sender's."),
    ] = msgspec.field(name="except", default=None)
    volatile: Annotated[
        bool, msgspec.Meta(description="Only for those who listen now: it is not stored.")
    ] = False


class PublishedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is safe; offset and epoch are null when nothing has stored it."""

    channel: Channel
    id: str
    offset: int | None
    epoch: str | None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A message for each channel, in the order that was given."""

    messages: list[PublishedMessage]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which messages: the first `limit` after `since`, or the last `limit`."""

    limit: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=MAX_HISTORY, description="How many at most; fewer when they are large."
        ),
    ] = 100
    since: Annotated[int, msgspec.Meta(ge=0, description="An offset, exclusive.")] | None = None
