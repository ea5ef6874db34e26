"""Request and response types of the HTTP API, which validate it and describe it."""

from typing import (
    Annotated,
)

import msgspec

from eventbus.cluster import Channel, ChannelStats, Member
from eventbus.messages import MAX_DATA_DEPTH, MAX_EVENT_NAME, MAX_ID, check_depth

__all__ = [
    "MAX_CHANNELS",
    "ChannelState",
    "HistoryPage",
    "HistoryQuery",
    "Members",
    "NoQuery",
    "Publish",
    "Published",
    "PublishedMessage",
]


MAX_CHANNELS = 100
"""The maximum number of channels per publish request."""
MAX_HISTORY = 1000


class ChannelState(ChannelStats, frozen=True, kw_only=True):
    """One channel, on all nodes, and where its stream ends: all later messages follow that."""

    offset: Annotated[
        int | None,
        msgspec.Meta(
            description="Where to resume from, after loading a state that was read later; null if "
            "the driver has no stream."
        ),
    ]
    epoch: str | None
    mark: Annotated[
        str | None,
        msgspec.Meta(description="Opaque: pass it along with the offset to resume. May be null."),
    ]


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


ConnectionId = Annotated[
    str,
    # Described here, but checked by check_id.
    msgspec.Meta(
        extra_json_schema={"pattern": r"^[\x21-\x7e]+$", "minLength": 1, "maxLength": MAX_ID}
    ),
]


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message for one or more channels. Either `channel` or `channels` is required."""

    channel: Channel | None = None
    channels: (
        Annotated[list[Channel], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)] | None
    ) = None
    event: Annotated[
        str,
        msgspec.Meta(
            examples=["order.shipped"],
            # Described here, but checked by validate_event_name.
            extra_json_schema={
                "pattern": r"^(?!eb:|pusher:|pusher_internal:|pong$)[^\x00-\x1f\x7f]+$",
                "minLength": 1,
                "maxLength": MAX_EVENT_NAME,
            },
        ),
    ]
    data: Annotated[msgspec.Raw, msgspec.Meta(description="Any JSON.")]
    except_: Annotated[
        ConnectionId | None,
        msgspec.Meta(
            description="The id of a connection that must not get it, usually the sender's.",
        ),
    ] = msgspec.field(name="except", default=None)
    volatile: Annotated[
        bool, msgspec.Meta(description="Delivered to current subscribers only, and not stored.")
    ] = False

    def __post_init__(self) -> None:
        """Raises ValueError if the data is nested too deeply."""
        check_depth(self.data, MAX_DATA_DEPTH)


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
