"""From an event to its messages: validated, its channels and data asked for, encoded once."""

import functools
from collections.abc import Sequence

import msgspec

from eventbus.channels import validate_channel
from eventbus.errors import EventDefinitionError, EventFieldError
from eventbus.events import Event, ShouldBroadcast, event_definition, qualified_name
from eventbus.headers import encode_metadata
from eventbus.message import (
    HEADER_EXCEPT,
    HEADER_METADATA,
    HEADER_TAGS,
    HEADER_VERSION,
    Message,
    encode_data,
    validate_event_name,
)

__all__ = ["headers_of", "messages_of"]


def messages_of(event: Event) -> tuple[Message, ...]:
    """The messages that dispatching `event` publishes: one for each channel, the data encoded once.

    None for an event that is not broadcast. The event is validated against its type first, since
    Python code can construct a struct with anything in its fields. Raises EventFieldError,
    EventDefinitionError, EncodingError, InvalidChannel and InvalidEventName.
    """
    definition = event_definition(type(event))
    if definition.abstract:
        raise EventDefinitionError(
            f"{qualified_name(type(event))} is abstract: dispatch a subclass of it"
        )
    if not isinstance(event, ShouldBroadcast):
        return ()
    encoded = _validate(event, definition.name)
    if not event.broadcast_when():
        return ()
    channels = _channels(event)
    data = event.broadcast_with()
    meta = event.event_meta
    shared = msgspec.Raw(
        encoded
        if data is event
        else encode_data(data, f"{qualified_name(type(event))}.broadcast_with()")
    )
    name = validate_event_name(event.broadcast_as())
    return tuple(
        Message(channel=channel, event=name, data=shared, timestamp=meta.timestamp, id=meta.id)
        for channel in channels
    )


def headers_of(event: Event) -> dict[str, str]:
    """What travels with the event's messages, beside the envelope. Raises EncodingError."""
    meta = event.event_meta
    headers: dict[str, str] = {}
    if (version := event_definition(type(event)).version) != 1:
        headers[HEADER_VERSION] = str(version)
    if meta.except_connection is not None:
        headers[HEADER_EXCEPT] = meta.except_connection
    if meta.metadata:
        headers[HEADER_METADATA] = encode_metadata(meta.metadata)
    if meta.tags:
        headers[HEADER_TAGS] = ",".join(meta.tags)
    return headers


@functools.lru_cache(maxsize=1024)
def _decoder(cls: type[Event]) -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(cls)


def _validate(event: Event, name: str) -> bytes:
    """The event as JSON, which its own type accepts.

    Decoding what was encoded anyway is the cheapest check (0.5 µs for six fields; to_builtins and
    convert take 0.7), and it is the very one that a consumer makes.
    """
    encoded = encode_data(event, f"event {name!r}")
    try:
        _decoder(type(event)).decode(encoded)
    except msgspec.ValidationError as exc:
        path = str(exc).rpartition("`$")[2].rstrip("`").lstrip(".")
        field = path.partition(".")[0].partition("[")[0]
        raise EventFieldError(
            f"event {name!r} does not fit its type {qualified_name(type(event))}: {exc}",
            event=name,
            field=field,
        ) from None
    return encoded


def _channels(event: ShouldBroadcast) -> tuple[str, ...]:
    given = event.broadcast_on()
    if isinstance(given, str):
        return (validate_channel(given),)
    if not isinstance(given, Sequence):
        raise EventDefinitionError(
            f"{qualified_name(type(event))}.broadcast_on() returned a {type(given).__name__}: "
            "a channel or a sequence of channels is allowed"
        )
    return tuple(dict.fromkeys(map(validate_channel, given)))
