"""What a WebSocket handshake agrees on: permessage-deflate (RFC 7692), and no other extension."""

import re
from typing import Final, NamedTuple

__all__ = ["Deflate", "InvalidExtensions", "agree"]

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_SPACE: Final = r"[ \t]*"
_NAME: Final = re.compile(rf"{_SPACE}({_TOKEN}){_SPACE}")
_PARAMETER: Final = re.compile(
    rf';{_SPACE}({_TOKEN}){_SPACE}(?:={_SPACE}(?:({_TOKEN})|"((?:[^"\\]|\\.)*)"){_SPACE})?'
)
_NOTHING: Final = re.compile(rf"{_SPACE}(?=,|\Z)")
_BITS: Final = re.compile("[89]|1[0-5]")  # RFC 7692, 7.1.2: without leading zeros

_DEFLATE: Final = "permessage-deflate"
_FLAGS: Final = frozenset({"server_no_context_takeover", "client_no_context_takeover"})
_SERVER_BITS: Final = "server_max_window_bits"
_CLIENT_BITS: Final = "client_max_window_bits"
MAX_BITS: Final = 15
_MIN_BITS: Final = 9
"""zlib makes no raw stream for a window of 2**8 bytes: who asks for that gets plain frames."""

_Parameters = list[tuple[str, str | None]]


class InvalidExtensions(ValueError):
    """A header that is not what RFC 6455, section 9.1, allows: the handshake must fail."""


class Deflate(NamedTuple):
    """The agreement: what the server sends is deflated from an empty window, each message alone."""

    window_bits: int
    """The window of what the server sends is at most 2 to the power of this, in bytes."""
    answer: str
    """The header `Sec-WebSocket-Extensions` of the answer."""


def agree(header: str) -> Deflate | None:
    """The first offer of permessage-deflate that can be kept; None where none can, or none is made.

    Several headers are given as one, joined with commas. Whatever window and context the client
    uses for its own messages can be read, so that its hints about them want no answer (7.1.1.2,
    7.1.2.2). Raises InvalidExtensions.
    """
    for name, parameters in _offers(header):
        if name == _DEFLATE and (agreed := _accept(parameters)) is not None:
            return agreed
    return None


def _offers(header: str) -> list[tuple[str, _Parameters]]:
    offers = []
    at = 0
    while at <= len(header):
        if (match := _NOTHING.match(header, at)) is None:  # RFC 9110, 5.6.1: lists may have gaps
            name, parameters, at = _offer(header, at)
            offers.append((name, parameters))
        else:
            at = match.end()
        if at < len(header) and header[at] != ",":
            raise InvalidExtensions(f"a comma or the end is needed at position {at}")
        at += 1
    return offers


def _offer(header: str, at: int) -> tuple[str, _Parameters, int]:
    match = _NAME.match(header, at)
    if match is None:
        raise InvalidExtensions(f"an extension's name is needed at position {at}")
    name, at = match[1], match.end()
    parameters: _Parameters = []
    while (match := _PARAMETER.match(header, at)) is not None:
        value = match[2]
        if match[3] is not None:
            value = re.sub(r"\\(.)", r"\1", match[3])
            if re.fullmatch(_TOKEN, value) is None:
                raise InvalidExtensions(f"the value of {match[1][:40]} is no token")
        parameters.append((match[1], value))
        at = match.end()
    return name, parameters, at


def _accept(parameters: _Parameters) -> Deflate | None:
    """An offer with a parameter that is unknown, doubled or wrong is declined (7.1)."""
    given = dict(parameters)
    if len(given) != len(parameters):
        return None
    for name, value in parameters:
        if name in _FLAGS:
            is_right = value is None
        elif name == _SERVER_BITS:
            is_right = value is not None and _BITS.fullmatch(value) is not None
        elif name == _CLIENT_BITS:
            is_right = value is None or _BITS.fullmatch(value) is not None
        else:
            is_right = False
        if not is_right:
            return None
    answer = f"{_DEFLATE}; server_no_context_takeover"
    asked = given.get(_SERVER_BITS)
    if asked is None:
        return Deflate(MAX_BITS, answer)
    if int(asked) < _MIN_BITS:
        return None
    return Deflate(int(asked), f"{answer}; {_SERVER_BITS}={asked}")
