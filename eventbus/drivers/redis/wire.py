r"""The bytes of messages on Redis: a line with their position, then headers and payload.

    \0eb1 <epoch> <offset> <previous> <µs> <n>\n<n bytes of headers><payload>      stored
    \0eb0 <n>\n<n bytes of headers><payload>                                       others

A cluster repeats a message to filters on all nodes, as `\0ebn <run> ` and the above, with the run
id of the sending server.

The headers are a JSON object. What follows `<µs> ` is the body: publishers encode it, the stream
stores it, and the script prepends the position. No JSON begins with a zero byte: anything else that
is published (`redis-cli PUBLISH eb.live.general '{"hello":1}'`) is a bare payload.
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from eventbus.channels import Pattern, validate_channel
from eventbus.drivers.base import NO_HEADERS, Delivery, Headers, Position
from eventbus.messages import json_decoder

__all__ = [
    "MAX_MESSAGE",
    "REPEATED_PREFIX",
    "STORED_PREFIX",
    "VOLATILE_PREFIX",
    "decode",
    "decode_stored",
    "encode_body",
    "glob_of",
    "validate_filter",
    "validate_subject",
]


STORED_PREFIX: Final = b"\0eb1 "
VOLATILE_PREFIX: Final = b"\0eb0 "
REPEATED_PREFIX: Final = b"\0ebn "
MAX_MESSAGE: Final = 8 * 1024**2
"""Bytes, including headers. Redis disconnects a subscriber at 32 MiB of unsent output by default
(client-output-buffer-limit), so a message near that would disconnect all of them."""

_GLOB: Final = re.compile(r"[*?\[\]\\]")
_ROOT: Final = re.compile(r"[a-z0-9_-]{1,32}\.[a-z]+\.", re.ASCII)
_PLACE: Final = re.compile(rb"([0-9a-z-]{1,64}) (\d{1,16}) (\d{1,16}) (\d{1,18}) ")
_MAX_OFFSET: Final = 2**53 - 1
_headers: Final = json_decoder(dict[str, str])


def validate_subject(subject: str) -> None:
    """Raises InvalidChannel for a subject with an invalid token."""
    root = _ROOT.match(subject)
    validate_channel(subject[root.end() :] if root else subject)


def validate_filter(subject: str) -> Pattern:
    """Parse a subject or filter. Raises InvalidPattern."""
    return Pattern(subject)


def glob_of(pattern: Pattern) -> bytes:
    """The narrowest PSUBSCRIBE glob of a filter. It matches more: a `*` of Redis includes dots.

    Tokens cannot contain special characters of globs; they are escaped all the same.
    """
    tokens = pattern.filter.split(".")
    return ".".join(
        "*" if token in {"*", ">"} else _GLOB.sub(r"\\\g<0>", token) for token in tokens
    ).encode()


def encode_body(payload: bytes, headers: Headers) -> bytes:
    """Headers and payload, ready to be stored and published."""
    if not headers:
        return b"0\n" + payload
    packed = msgspec.json.encode(dict(headers))
    return b"%d\n%b%b" % (len(packed), packed, payload)


def decode(subject: str, data: bytes) -> Delivery:
    """Decode a message; data that is not a valid frame of ours is a bare payload."""
    try:
        if data.startswith(STORED_PREFIX):
            if place := _PLACE.match(data, len(STORED_PREFIX)):
                offset, previous, micros = (int(number) for number in place.groups()[1:])
                position = Position(offset, place[1].decode("ascii"))
                if offset <= _MAX_OFFSET:
                    return decode_stored(subject, data[place.end() :], position, previous, micros)
        elif data.startswith(VOLATILE_PREFIX):
            headers, payload = _decode_body(data[len(VOLATILE_PREFIX) :])
            return Delivery(subject, payload, headers)
    except (ValueError, OverflowError, OSError, msgspec.MsgspecError):
        pass  # foreign bytes are delivered too: subscribers check them
    return Delivery(subject, data)


def decode_stored(
    subject: str, body: bytes, position: Position, previous: int, micros: int
) -> Delivery:
    """Decode a stored message. Raises ValueError or MsgspecError for a malformed body."""
    headers, payload = _decode_body(body)
    stamp = datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
    time = stamp.isoformat().replace("+00:00", "Z")
    return Delivery(subject, payload, headers, position, previous, time)


def _decode_body(body: bytes) -> tuple[Headers, bytes]:
    end = body.index(b"\n", 0, 12)
    size = int(body[:end])
    if not size:
        return NO_HEADERS, body[end + 1 :]
    start = end + 1
    return _headers(body[start : start + size]), body[start + size :]
