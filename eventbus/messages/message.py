"""A message and its bytes: the published bytes are the envelope that clients receive."""

import datetime
import re
from typing import (
    Any,
    Final,
)

import msgspec
import uuid_utils

from eventbus.errors import (
    EncodingError,
    InvalidEventName,
)
from eventbus.messages.json_depth import MAX_DATA_DEPTH, TooDeep, check_depth
from eventbus.messages.models import encode_model

__all__ = [
    "CLIENT_EVENT_PREFIX",
    "HEADER_EVENT",
    "HEADER_EXCEPT",
    "HEADER_ID",
    "HEADER_METADATA",
    "HEADER_REASON",
    "HEADER_TAGS",
    "HEADER_VERSION",
    "MAX_EVENT_NAME",
    "Message",
    "Receipt",
    "client_event_name",
    "encode_data",
    "is_reserved_event",
    "new_id",
    "validate_event_name",
]


HEADER_ID: Final = "Nats-Msg-Id"
"""The message's id, by which a stream drops a second copy (NATS docs, "Message deduplication")."""
HEADER_EXCEPT: Final = "Eb-Except"
"""The id of the connection that must not receive the message: its sender."""
HEADER_EVENT: Final = "Eb-Event"
"""The event name of a payload that is not an envelope."""
HEADER_REASON: Final = "Eb-Reason"
"""Why a payload was put on a quarantine subject."""
HEADER_VERSION: Final = "Eb-Version"
"""The version of the event type that the data follows; 1 when the header is absent."""
HEADER_METADATA: Final = "Eb-Meta"
"""The event's metadata: a JSON object."""
HEADER_TAGS: Final = "Eb-Tags"
"""The event's tags, separated by commas."""

CLIENT_EVENT_PREFIX: Final = "client-"
"""The prefix that the edge adds to the name of every client event."""

MAX_EVENT_NAME: Final = 200
_RESERVED_PREFIXES: Final = ("eb:", "pusher:", "pusher_internal:")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_encoder: Final = msgspec.json.Encoder(enc_hook=encode_model)


def is_reserved_event(name: str) -> bool:
    """Whether applications may not publish this name: it is empty or reserved for the system."""
    return not name or name == "pong" or name.startswith(_RESERVED_PREFIXES)


def validate_event_name(name: object) -> str:
    """Return `name` if applications may publish it. Raises InvalidEventName otherwise."""
    if (
        isinstance(name, str)
        and len(name) <= MAX_EVENT_NAME
        and not is_reserved_event(name)
        and not _CONTROL.search(name)
    ):
        return name
    shown = repr(name)[:80]
    raise InvalidEventName(
        f"{shown} is not an event name; allowed: 1 to {MAX_EVENT_NAME} characters, without "
        "control characters, that do not begin with eb:, pusher: or pusher_internal:, and not "
        "'pong'",
        name=shown,
    )


def client_event_name(name: str) -> str:
    """The wire name of a client event: with the prefix, whether `name` has it or not.

    Raises InvalidEventName.
    """
    bare = validate_event_name(name).removeprefix(CLIENT_EVENT_PREFIX)
    if not bare:
        raise InvalidEventName(f"{name!r} is only the prefix of an event name", name=name)
    # Checked again with the prefix: edges would put a longer name into quarantine.
    return validate_event_name(CLIENT_EVENT_PREFIX + bare)


def new_id() -> str:
    """A new message id: a UUIDv7 (RFC 9562, section 5.7), so that ids sort by time."""
    return str(uuid_utils.uuid7())


def utc_now() -> datetime.datetime:
    """The current time, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def encode_data(data: Any, what: str) -> bytes:
    """`data` as JSON. Raises EncodingError, which begins with `what`, the name of the data."""
    try:
        encoded = _encoder.encode(data)
        if len(encoded) > 2 * MAX_DATA_DEPTH:  # no call for short data: this runs for each message
            check_depth(encoded, MAX_DATA_DEPTH)
    except RecursionError:
        raise EncodingError(
            f"{what} cannot be encoded as JSON: it is nested too deeply, or contains itself; "
            f"at most {MAX_DATA_DEPTH} levels are allowed"
        ) from None
    except TooDeep as exc:
        raise EncodingError(f"{what} cannot be sent: {exc}") from None
    except (TypeError, ValueError, OverflowError) as exc:
        raise EncodingError(
            f"{what} cannot be encoded as JSON: {exc}. Allowed is what msgspec encodes: "
            "structs, Pydantic models, dataclasses, dicts with string keys, lists, str, numbers, "
            "dates, UUIDs, enums"
        ) from exc
    return encoded


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message, with its fields in wire order."""

    channel: str
    event: str
    data: msgspec.Raw
    timestamp: datetime.datetime
    id: str

    @classmethod
    def create(
        cls,
        channel: str,
        event: str,
        data: Any,
        *,
        id: str | None = None,  # noqa: A002 - the field's name on the wire
        timestamp: datetime.datetime | None = None,
    ) -> "Message":
        """A message with its data encoded; without `id` or `timestamp` it gets new ones.

        `channel` must be valid. Raises InvalidEventName and EncodingError.
        """
        validate_event_name(event)
        return cls(
            channel=channel,
            event=event,
            data=msgspec.Raw(encode_data(data, f"the data of event {event!r} on {channel!r}")),
            timestamp=timestamp or utc_now(),
            id=id or new_id(),
        )

    def encode(self) -> bytes:
        """The envelope, `{"channel":…,"event":…,"data":…,"timestamp":…,"id":…}`."""
        return _encoder.encode(self)


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The confirmation of a published message.

    `offset` and `epoch` are its position in the stream; both are None for a volatile message, and
    on a driver without history. `duplicate`: the stream already had this id and kept one copy. For
    a queued event, `queue` is the queue's name and `channel` is empty.
    """

    channel: str
    id: str
    offset: int | None
    epoch: str | None
    duplicate: bool = False
    queue: str | None = None
