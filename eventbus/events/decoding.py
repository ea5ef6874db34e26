"""From a delivery to a typed event, for payloads that anyone may have published.

The reverse of `eventbus.events.encoding`.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from eventbus.channels import Pattern
from eventbus.drivers import Delivery
from eventbus.errors import EventDefinitionError, InvalidPayload
from eventbus.events.event import (
    Event,
    EventMeta,
    ShouldBroadcast,
    event_decoder,
    event_definition,
    qualified_name,
    with_event_meta,
)
from eventbus.messages import (
    HEADER_EVENT,
    HEADER_ID,
    HEADER_VERSION,
    Envelope,
    TooDeep,
    decode_json,
    decode_metadata,
    decode_model,
    decode_tags,
    explained,
    json_decoder,
    new_id,
    read_payload,
    read_whole,
    utc_now,
)
from eventbus.user_code import guarded, text_of

__all__ = ["EventContext", "EventReader", "parse_time", "read_delivery"]


E = TypeVar("E", bound=Event)


class EventContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a received event has besides its fields."""

    channel: str
    id: str | None
    """None for a volatile message that was published without an id."""
    offset: int | None
    epoch: str | None
    """Its position in the stream; None for a volatile message, or a driver without history."""
    timestamp: datetime.datetime
    """The publisher's time of dispatch, or else the time at which it was stored."""
    metadata: Mapping[str, Any] = {}
    tags: tuple[str, ...] = ()
    version: int = 1
    """The publisher's version of the event type."""
    attempt: int = 1
    """The delivery attempt, starting at 1."""


class _Body(msgspec.Struct):
    data: msgspec.Raw
    timestamp: str


_decode_body: Final = json_decoder(_Body)


def read_delivery(channel: str, delivery: Delivery) -> Envelope:
    """Check a delivery's payload; missing fields come from its headers and position.

    Raises InvalidPayload: see `read_payload`.
    """
    envelope = read_whole(channel, delivery.payload)
    if envelope is not None:
        return envelope
    headers, position = delivery.headers, delivery.position
    message_id = headers.get(HEADER_ID)
    if message_id is None and position is not None:
        message_id = f"{position.epoch}-{position.offset}"
    return read_payload(
        channel,
        delivery.payload,
        event=headers.get(HEADER_EVENT),
        id=message_id,
        timestamp=delivery.time,
    )


class EventReader(Generic[E]):
    """Reads the events of one type."""

    def __init__(self, cls: type[E], channel: str | None = None, name: str | None = None) -> None:
        """`channel` is a pattern of channels, and `name` an event name, if `cls` has none.

        Raises EventDefinitionError for a type whose events are not broadcast, or cannot be decoded,
        and InvalidPattern.
        """
        definition = event_definition(cls)
        where = qualified_name(cls)
        if definition.abstract:
            raise EventDefinitionError(f"{where} is abstract: subscribe to its subclasses")
        if not (definition.broadcasts or definition.from_clients):
            raise EventDefinitionError(
                f"{where} is not broadcast and never leaves its process: mix in ShouldBroadcast, "
                "or listen with `bus.listen`"
            )
        overridden = {
            method
            for method in ("broadcast_on", "broadcast_as", "broadcast_with")
            if definition.broadcasts
            and getattr(cls, method) is not getattr(ShouldBroadcast, method)
        }
        if channel is None and ("broadcast_on" in overridden or definition.channel is None):
            raise EventDefinitionError(
                f"{where} overrides broadcast_on(), so its channels are unknown: "
                'subscribe with `channel="..."`, a pattern of them'
            )
        if name is None and "broadcast_as" in overridden:
            raise EventDefinitionError(
                f"{where} overrides broadcast_as(), so its name is unknown: "
                'subscribe with `name="..."`'
            )
        make: Callable[[Any], E] | None = getattr(cls, "from_broadcast", None)
        if make is None and "broadcast_with" in overridden:
            raise EventDefinitionError(
                f"{where} overrides broadcast_with(), so its data is not its fields: give it a "
                "classmethod `from_broadcast(data)` that makes an event of the data"
            )
        self.cls = cls
        self.name = definition.wire_name if name is None else name
        template = definition.channel
        self.pattern = template if channel is None and template else Pattern(channel or "")
        self._make = make
        self._decode: Callable[[bytes], E] = event_decoder(cls)
        wanted = set(self.pattern.names)
        self._routing = [f for f in msgspec.structs.fields(cls) if f.name in wanted]
        # Else decoding would use a field's default in place of the channel's token.
        self._fill_first = make is not None or any(not f.required for f in self._routing)

    def read(
        self, channel: str, delivery: Delivery, attempt: int = 1
    ) -> tuple[E, EventContext] | None:
        """The event and its context; None for another event of the same channel.

        Raises InvalidPayload: with the reasons of `read_payload`, `bad_data` and `bad_metadata`.
        """
        headers, position = delivery.headers, delivery.position
        envelope = read_delivery(channel, delivery)
        if envelope.event != self.name:
            return None
        try:
            body = _decode_body(envelope.body)
        except TooDeep as exc:
            raise InvalidPayload("too_deep", f"the payload cannot be read: {exc}") from None
        context = EventContext(
            channel=channel,
            id=envelope.id,
            offset=position.offset if position is not None else None,
            epoch=position.epoch if position is not None else None,
            timestamp=parse_time(body.timestamp) or parse_time(delivery.time) or utc_now(),
            metadata=decode_metadata(headers),
            tags=decode_tags(headers),
            version=_version(headers.get(HEADER_VERSION)),
            attempt=attempt,
        )
        event = self._event(envelope, bytes(body.data), channel)
        meta = EventMeta(
            id=envelope.id or new_id(),
            timestamp=context.timestamp,
            metadata=context.metadata,
            tags=context.tags,
        )
        return with_event_meta(event, meta), context

    def _event(self, envelope: Envelope, data: bytes, channel: str) -> E:
        try:
            with guarded():
                return self._decoded(data, channel)
        except Exception as exc:  # the type's own code may raise anything
            cls = qualified_name(self.cls)
            raise InvalidPayload(
                "bad_data", f"the data of {envelope.event!r} does not fit {cls}: {text_of(exc)}"
            ) from exc

    def _decoded(self, data: bytes, channel: str) -> E:
        if not self._fill_first:
            try:
                return self._decode(data)
            except msgspec.ValidationError:
                if not self._routing:
                    raise
        return self._from_parts(data, channel)

    def _from_parts(self, data: bytes, channel: str) -> E:
        """The event from its data, with missing fields from the channel."""
        parts = decode_json(data)
        captured = self.pattern.match(channel)
        if isinstance(parts, dict) and captured is not None:
            for field in self._routing:
                if field.encode_name not in parts:
                    value = msgspec.convert(captured[field.name], field.type, strict=False)
                    parts[field.encode_name] = msgspec.to_builtins(value)
        if self._make is None:
            try:
                return msgspec.convert(parts, self.cls, str_keys=True, dec_hook=decode_model)
            except msgspec.ValidationError as exc:
                raise explained(exc) from None
        event = self._make(parts)
        if not isinstance(event, self.cls):
            raise TypeError(f"from_broadcast() returned a {type(event).__name__}")
        return event


def parse_time(text: str | None) -> datetime.datetime | None:
    """Parse a publisher's time, UTC if it has no time zone; None for anything else."""
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _version(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 1
