"""The headers of a message, checked on the way out and on the way in.

Clients never see them. Names that begin with Nats- or Eb- are reserved for the broker and for us.
"""

import json
import re
from collections.abc import (
    Iterable,
    Mapping,
)
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.errors import (
    EncodingError,
    InvalidName,
    InvalidPayload,
)
from eventbus.messages.json_depth import MAX_DATA_DEPTH, TooDeep, decode_json, json_decoder
from eventbus.messages.message import (
    HEADER_METADATA,
    HEADER_TAGS,
    encode_data,
)

__all__ = [
    "MAX_METADATA",
    "MAX_TAGS",
    "check_headers",
    "check_id",
    "check_tags",
    "decode_metadata",
    "decode_tags",
    "encode_metadata",
]


MAX_ID: Final = 200
MAX_METADATA: Final = 4000
"""Bytes of an event's metadata as ASCII JSON."""
MAX_TAGS: Final = 16
_ID: Final = re.compile(r"[\x21-\x7e]+", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_VALUE: Final = re.compile(r"[\x20-\x7e]{0,4000}", re.ASCII)
_TAG: Final = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,64}", re.ASCII)
_OWN: Final = ("nats-", "eb-")
_decode_metadata: Final = json_decoder(dict[str, Any], MAX_DATA_DEPTH)


def check_id(what: str, value: object) -> str:
    """Return `value` if it is a valid id. Raises InvalidName, which calls it `what`."""
    if isinstance(value, str) and len(value) <= MAX_ID and _ID.fullmatch(value):
        return value
    shown = repr(value)[:80]
    raise InvalidName(
        f"{shown} is not {what}: 1 to {MAX_ID} visible ASCII characters are", name=shown
    )


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of a publisher's own headers. Raises InvalidName for one that it may not set."""
    for name, value in headers.items():
        shown = repr(name)[:80]
        if not _NAME.fullmatch(name) or name.lower().startswith(_OWN):
            raise InvalidName(
                f"{shown} is not a header's name: 1 to 100 letters, digits and !#$%&'*+.^_`|~- "
                "are, that do not begin with Nats- or Eb-",
                name=shown,
            )
        if not _VALUE.fullmatch(value):
            raise InvalidName(
                f"the value of header {shown} is not up to 4000 printable ASCII characters",
                name=shown,
            )
    return dict(headers)


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags in order, without duplicates. Raises InvalidName for a bad tag, or too many."""
    given = (tags,) if isinstance(tags, str) else tags
    unique = tuple(dict.fromkeys(given))
    for tag in unique:
        if type(tag) is not str or not _TAG.fullmatch(tag):
            shown = repr(tag)[:80]
            raise InvalidName(
                f"{shown} is not a tag: 1 to 64 visible ASCII characters without a comma are "
                "allowed",
                name=shown,
            )
    if len(unique) > MAX_TAGS:
        raise InvalidName(
            f"{len(unique)} tags are too many: at most {MAX_TAGS} are allowed", name=unique[-1]
        )
    return unique


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as a header's value: a JSON object in ASCII. Raises EncodingError."""
    try:
        plain = decode_json(encode_data(metadata, "an event's metadata"))
    except TooDeep as exc:
        raise EncodingError(f"an event's metadata cannot be sent: {exc}") from None
    if not isinstance(plain, dict):
        raise EncodingError(
            f"an event's metadata is a mapping, not of type {type(metadata).__name__}"
        )
    text = json.dumps(plain, separators=(",", ":"))  # msgspec does not escape to ASCII
    if len(text) > MAX_METADATA:
        raise EncodingError(
            f"an event's metadata is {len(text)} bytes as JSON; {MAX_METADATA} are allowed"
        )
    return text


def decode_metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    """The metadata in a message's headers. Raises InvalidPayload (`bad_metadata`)."""
    text = headers.get(HEADER_METADATA)
    if not text:
        return {}
    try:
        return _decode_metadata(text)
    except msgspec.DecodeError as exc:
        raise InvalidPayload(
            "bad_metadata", f"the header {HEADER_METADATA} is not a JSON object: {exc}"
        ) from None


def decode_tags(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The tags in a message's headers."""
    text = headers.get(HEADER_TAGS, "")
    return tuple(tag for tag in text.split(",") if tag)
