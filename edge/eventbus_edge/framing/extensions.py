"""What a WebSocket handshake agrees on: permessage-deflate (RFC 7692), and no other extension."""

import functools
from typing import (
    Final,
    NamedTuple,
)

from websockets.exceptions import (
    InvalidHeaderFormat,
    NegotiationError,
)
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import (
    build_extension,
    parse_extension,
)

__all__ = ["Deflate", "InvalidExtensions", "negotiate_extensions"]


_DEFLATE: Final = ServerPerMessageDeflateFactory(server_no_context_takeover=True)


_MAX_KEPT: Final = 200
"""Characters of a header whose agreement is kept; anybody may send longer ones."""


class InvalidExtensions(ValueError):
    """A header that RFC 6455, section 9.1, does not allow: the handshake must fail."""


class Deflate(NamedTuple):
    """The agreement: what the server sends is deflated from an empty window, each message alone."""

    window_bits: int
    """The window of what the server sends is at most 2 to the power of this, in bytes."""
    answer: str
    """The header `Sec-WebSocket-Extensions` of the answer."""


def negotiate_extensions(header: str) -> Deflate | None:
    """The first offer of permessage-deflate that can be accepted; None if there is none.

    Several headers are given as one, joined with commas. Raises InvalidExtensions.
    """
    offers = header.strip(" \t,")
    if not offers:
        return None
    return _negotiate(offers) if len(offers) <= _MAX_KEPT else _negotiate.__wrapped__(offers)


@functools.lru_cache(maxsize=256)  # each kind of browser sends the same with every connection
def _negotiate(offers: str) -> Deflate | None:
    try:
        parsed = parse_extension(offers)
    except InvalidHeaderFormat as exc:
        raise InvalidExtensions(str(exc.value)[:100]) from None  # it quotes the header
    for name, parameters in parsed:
        if name != _DEFLATE.name:
            continue
        try:
            answer, agreed = _DEFLATE.process_request_params(parameters, [])
        except NegotiationError:
            continue
        # Whatever window and context the client uses for its own messages can be read, so its
        # hints about them need no answer (7.1.1.2, 7.1.2.2).
        ours = [parameter for parameter in answer if parameter[0].startswith("server_")]
        return Deflate(agreed.local_max_window_bits, build_extension([(name, ours)]))
    return None
