"""Payloads from the bus, checked once: a publisher at the broker may publish anything.

A valid envelope is kept byte for byte; one that lacks fields is completed; any other JSON value
becomes the data of an envelope; everything else is refused with a reason.
"""

import contextlib
import datetime
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.errors import InvalidPayload
from eventbus.messages.json_depth import MAX_DATA_DEPTH, check_depth, is_deeper
from eventbus.messages.message import MAX_EVENT_NAME, is_reserved_event

__all__ = ["DEFAULT_EVENT", "Envelope", "read_payload", "read_whole"]


DEFAULT_EVENT: Final = "message"
"""The event name of a payload without one."""


class Envelope(NamedTuple):
    """A valid payload: its event name, and the JSON object that clients receive."""

    event: str
    body: bytes
    id: str | None
    timestamp: str | None = None
    """The publisher's own, unchanged."""


class _Wire(msgspec.Struct):
    event: str | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    channel: str | msgspec.UnsetType | None = msgspec.UNSET
    id: str | msgspec.UnsetType | None = msgspec.UNSET
    timestamp: str | msgspec.UnsetType | None = msgspec.UNSET
    offset: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    epoch: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    mark: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Whole(msgspec.Struct):
    event: str
    data: msgspec.Raw
    channel: str
    id: str
    timestamp: str
    offset: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    epoch: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    mark: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Shape(msgspec.Struct):
    """Which fields there are, of any type."""

    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_wire: Final = msgspec.json.Decoder(_Wire).decode
_decode_whole: Final = msgspec.json.Decoder(_Whole).decode
_TOO_DEEP: Final = (
    f"the payload's JSON is nested too deeply: at most {MAX_DATA_DEPTH} levels are allowed in data"
)
_decode_shape: Final = msgspec.json.Decoder(_Shape).decode
_decode_raw: Final = msgspec.json.Decoder(msgspec.Raw).decode
_encode: Final = msgspec.json.encode
_new: Final = tuple.__new__
"""Makes a NamedTuple in half the time of its own constructor, which is a function of Python."""


def read_whole(channel: str, payload: bytes) -> Envelope | None:
    """The envelope of a payload that is valid and lacks nothing, as every publisher of ours sends.

    None for any other payload: `read_payload` completes it, or says what is wrong. This is a part
    of an edge's hot path: it may not look for anything outside of the payload.
    """
    if not payload.isascii() or is_deeper(payload, MAX_DATA_DEPTH):
        return None
    try:
        whole = _decode_whole(payload)
    except (msgspec.DecodeError, RecursionError):
        return None
    event = whole.event
    if (
        whole.channel != channel
        or not (whole.id and whole.timestamp)
        or len(event) > MAX_EVENT_NAME
        or is_reserved_event(event)
        or not (whole.offset is whole.epoch is whole.mark is msgspec.UNSET)
    ):
        return None
    return _new(Envelope, (event, payload, whole.id, whole.timestamp))


def read_payload(
    channel: str,
    payload: bytes,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name on the wire
    timestamp: datetime.datetime | str | None = None,
) -> Envelope:
    """Check a payload that arrived on the subject of `channel`, and make it a complete envelope.

    `event`, `id` and `timestamp` (RFC 3339; now, if None) replace missing fields; without an `id`,
    none is added. Raises InvalidPayload with the reason `not_utf8`, `not_json`,
    `too_deep`, `bad_envelope`, `reserved_event` or `other_channel`. msgspec does not
    check the text inside a Raw value, so UTF-8 is checked first.
    """
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError as exc:
            raise InvalidPayload("not_utf8", f"the payload is not UTF-8: {exc.reason}") from None
    try:
        if is_deeper(payload, MAX_DATA_DEPTH):
            _require_shallow_data(payload)
        return _read(channel, payload, event, id, timestamp)
    except RecursionError:  # the caller's own stack is nearly exhausted
        raise InvalidPayload("too_deep", _TOO_DEEP) from None


def _require_shallow_data(payload: bytes) -> None:
    """Raises InvalidPayload unless it is an envelope, which has one level around its data."""
    if not is_deeper(payload, MAX_DATA_DEPTH + 1):
        with contextlib.suppress(msgspec.DecodeError):
            shape = _decode_shape(payload)
            is_envelope = shape.event is not msgspec.UNSET
            if is_envelope and isinstance(shape.data, msgspec.Raw):
                check_depth(shape.data, MAX_DATA_DEPTH)
                return
    raise InvalidPayload("too_deep", _TOO_DEEP)


def _read(
    channel: str,
    payload: bytes,
    event: str | None,
    id_: str | None,
    timestamp: datetime.datetime | str | None,
) -> Envelope:
    try:
        wire = _decode_wire(payload)
    except msgspec.DecodeError as exc:
        return _wrap(channel, payload, event, id_, timestamp, why_no_envelope=exc)
    if wire.event is msgspec.UNSET or wire.data is msgspec.UNSET:
        return _wrap(channel, payload, event, id_, timestamp, why_no_envelope=None)
    _check_event(wire.event)
    if wire.channel and wire.channel != channel:
        raise InvalidPayload(
            "other_channel",
            f"the envelope names channel {wire.channel[:80]!r} and arrived on {channel!r}",
        )
    if wire.channel == "":
        raise InvalidPayload("bad_envelope", "the envelope's channel is empty")
    own_id = wire.id or id_
    if (
        wire.offset is not msgspec.UNSET
        or wire.epoch is not msgspec.UNSET
        or wire.mark is not msgspec.UNSET
    ):
        # Only the stream gives positions: a publisher's own must not move a client's cursor.
        stamp = wire.timestamp or timestamp
        body = _build(channel, wire.event, bytes(wire.data), own_id, stamp)
        return Envelope(wire.event, body, own_id)
    if wire.channel and wire.id and wire.timestamp:
        return Envelope(wire.event, payload, own_id, wire.timestamp)
    missing: dict[str, Any] = {}
    if not wire.channel:
        missing["channel"] = channel
    if not wire.timestamp:
        missing["timestamp"] = timestamp or datetime.datetime.now(datetime.UTC)
    if not wire.id and id_:
        missing["id"] = id_
    if not missing:
        return Envelope(wire.event, payload, own_id, wire.timestamp or None)
    body = payload.rstrip()[:-1] + b"," + _encode(missing)[1:]
    return Envelope(wire.event, body, own_id, wire.timestamp or None)


def _wrap(
    channel: str,
    payload: bytes,
    event: str | None,
    id_: str | None,
    timestamp: datetime.datetime | str | None,
    *,
    why_no_envelope: Exception | None,
) -> Envelope:
    """Wrap a payload that is not an envelope. Raises InvalidPayload for a malformed envelope."""
    if why_no_envelope is not None:
        try:
            _decode_raw(payload)
        except msgspec.DecodeError as exc:
            raise InvalidPayload("not_json", f"the payload is not JSON: {exc}") from None
        try:
            shape = _decode_shape(payload)
        except msgspec.ValidationError:
            shape = _Shape()
        if shape.event is not msgspec.UNSET and shape.data is not msgspec.UNSET:
            raise InvalidPayload("bad_envelope", f"the envelope is not valid: {why_no_envelope}")
    name = event or DEFAULT_EVENT
    _check_event(name)
    return Envelope(name, _build(channel, name, payload.strip(), id_, timestamp), id_)


def _check_event(name: str) -> None:
    if is_reserved_event(name):
        raise InvalidPayload("reserved_event", f"the event name {name[:80]!r} is reserved")
    if len(name) > MAX_EVENT_NAME:
        raise InvalidPayload(
            "bad_envelope", f"the event name is longer than {MAX_EVENT_NAME} characters"
        )


def _build(
    channel: str,
    event: str,
    data: bytes,
    id_: str | None,
    timestamp: datetime.datetime | str | None,
) -> bytes:
    fields: dict[str, Any] = {
        "channel": channel,
        "event": event,
        "data": msgspec.Raw(data),
        "timestamp": timestamp or datetime.datetime.now(datetime.UTC),
    }
    if id_:
        fields["id"] = id_
    return _encode(fields)
