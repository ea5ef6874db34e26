"""WebSocket frames from a server: never masked, never fragmented (RFC 6455, section 5.2)."""

import struct
from typing import Final

from eventbus_edge.framing.base import Located

__all__ = [
    "MAX_CLOSE_REASON",
    "PING_FRAME",
    "TEXT_FRAMES",
    "TextFrames",
    "close_frame",
    "close_reason",
    "deflated_text_frame",
    "pong_frame",
    "text_frame",
]


_FIN: Final = 0x80
_RSV1: Final = 0x40
_TEXT: Final = 0x1
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA
_MAX_SHORT: Final = 125
_MAX_MEDIUM: Final = 0xFFFF

MAX_CLOSE_REASON: Final = 123
"""Bytes of UTF-8; a control frame's payload is at most 125, two of them the code (section 5.5)."""


def text_frame(payload: bytes) -> bytes:
    """One whole text message; `payload` is UTF-8."""
    return _frame(_TEXT, payload)


def deflated_text_frame(data: bytes) -> bytes:
    """One whole text message, deflated: RFC 7692, section 6."""
    return _frame(_RSV1 | _TEXT, data)


def close_frame(payload: bytes) -> bytes:
    """A close frame: its payload is empty, or a code and a `close_reason`."""
    return _frame(_CLOSE, payload)


def close_reason(text: str) -> bytes:
    """A reason as a close frame holds it; a longer one is cut between two characters."""
    return text.encode()[:MAX_CLOSE_REASON].decode(errors="ignore").encode()


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping, with its payload (section 5.5.3)."""
    return _frame(_PONG, payload)


_medium: Final = struct.Struct("!BBH").pack
_long: Final = struct.Struct("!BBQ").pack


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size <= _MAX_SHORT:
        return bytes((_FIN | opcode, size)) + payload
    if size <= _MAX_MEDIUM:
        return _medium(_FIN | opcode, 126, size) + payload
    return _long(_FIN | opcode, 127, size) + payload


PING_FRAME: Final = _frame(_PING, b"")
"""The heartbeat: the same bytes for every connection."""


class TextFrames:
    """The framing of one plain text frame for each payload."""

    def message(self, payload: bytes, _about: Located, /) -> bytes:
        """A text frame."""
        return _frame(_TEXT, payload)

    def reply(self, payload: bytes, _start: Located | None = None, /) -> bytes:
        """A text frame."""
        return _frame(_TEXT, payload)


TEXT_FRAMES: Final = TextFrames()
