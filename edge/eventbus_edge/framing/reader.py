"""Reads the frames that a client sends over a WebSocket (RFC 6455, section 5). Pure."""

import codecs
import zlib
from typing import (
    Final,
    NamedTuple,
)

__all__ = ["BINARY", "CLOSE", "FRAGMENT", "PING", "PONG", "TEXT", "Fault", "Frame", "FrameReader"]


FRAGMENT: Final = 0x0
"""Continues a message; in `Frame.opcode`: any frame that does not complete its message."""
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_PROTOCOL_ERROR: Final = 1002
_INVALID_TEXT: Final = 1007
_TOO_LARGE: Final = 1009

_FIN: Final = 0x80
_RSV1: Final = 0x40
_RSV2_OR_RSV3: Final = 0x30
_OPCODE: Final = 0xF
_WHOLE_TEXT: Final = _FIN | TEXT
_MASKED: Final = 0x80
_SIZE: Final = 0x7F
_SHORTEST_HEAD: Final = 2
_MASK_BYTES: Final = 4
_MAX_SHORT: Final = 125
_MEDIUM: Final = 126
_MAX_MEDIUM: Final = 0xFFFF
_MAX_LONG: Final = 2**63 - 1

_DEFLATED_END: Final = b"\x00\x00\xff\xff"
_MAX_STREAMS: Final = 8
"""Deflate streams that may follow one another in a message; mostly there is one."""


class Fault(Exception):
    """The client broke the protocol or a limit; `code` and the text are for the close frame."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frame(NamedTuple):
    """A control frame, a fragment, or a message with its last frame."""

    opcode: int
    """TEXT and BINARY are complete messages, FRAGMENT is a part before the last one."""
    payload: bytes
    """The whole message, inflated; of a close frame the code, if it has one; of a fragment b""."""
    text: str
    """The message, if it is TEXT."""


class FrameReader:
    """The frames of one client: `feed` it data in pieces of any size, then `read` until None.

    It is strict: a frame that breaks the protocol raises Fault as soon as its head has arrived. It
    keeps at most the message under way, the frame under way, and the data fed after it.
    """

    __slots__ = (
        "_at", "_begun", "_data", "_deflates", "_inflate", "_is_deflated", "_limit", "_parts",
        "_utf8",
    )  # fmt: skip

    def __init__(self, limit: int, *, deflates: bool) -> None:
        """`limit`: bytes of a message, inflated. `deflates`: permessage-deflate is agreed on."""
        self._limit = limit
        self._deflates = deflates
        self._data: bytes | bytearray = b""
        self._at = 0
        self._begun = 0
        """The opcode of the message under way; 0 between messages."""
        self._is_deflated = False
        """Whether that message is deflated."""
        self._parts = bytearray()
        """The payloads of its fragments so far."""
        self._inflate: _Inflater | None = None
        self._utf8: codecs.IncrementalDecoder | None = None
        """Checks the fragments of a text; None before the first one."""

    def feed(self, data: bytes) -> None:
        """Add data from the socket."""
        if self._at == len(self._data):
            self._data = data
        elif isinstance(self._data, bytearray):  # grows in place: a frame may come in many pieces
            del self._data[: self._at]
            self._data += data
        else:
            self._data = bytearray(self._data[self._at :]) + data
        self._at = 0

    @property
    def has_more(self) -> bool:
        """Whether unread data is left, such as part of a frame."""
        return self._at < len(self._data)

    def read(self, *, drop: bool = False) -> Frame | None:
        """The next frame; None if there is no whole one. Raises Fault; do not call it after that.

        With `drop`, messages are empty: they are neither assembled nor inflated.
        """
        data, at = self._data, self._at
        there = len(data) - at
        if there < _SHORTEST_HEAD:
            if not there:
                self._data, self._at = b"", 0
            return None
        first, second = data[at], data[at + 1]
        if first != _WHOLE_TEXT or self._begun or not second & _MASKED:
            self._check_head(first, second)
        size = second & _SIZE
        begin = at + _SHORTEST_HEAD + _MASK_BYTES
        if size > _MAX_SHORT:
            begin += 2 if size == _MEDIUM else 8
            if len(data) < begin - _MASK_BYTES:
                return None
            size = _extended(size, data[at + _SHORTEST_HEAD : begin - _MASK_BYTES])
        if size > self._limit or self._parts:
            self._check_size(first, size)
        end = begin + size
        if len(data) < end:
            return None
        self._at = end
        opcode = first & _OPCODE
        payload = b"" if drop and opcode < CLOSE else _unmasked(data, begin, end)
        if first == _WHOLE_TEXT:
            return Frame(TEXT, payload, _text(payload))
        if opcode >= CLOSE:
            return Frame(opcode, _close_code(payload) if opcode == CLOSE else payload, "")
        return self._part(first, payload, drop=drop)

    def _part(self, first: int, payload: bytes, *, drop: bool) -> Frame:
        """Add a frame to the message under way, or complete the message."""
        opcode = first & _OPCODE
        if opcode:
            self._begun, self._is_deflated = opcode, bool(first & _RSV1)
        if not first & _FIN:
            if self._begun == TEXT and not self._is_deflated and not drop:
                self._check_text(payload, is_first=bool(opcode))
            self._parts += payload
            return Frame(FRAGMENT, b"", "")
        if self._parts:
            payload = bytes(self._parts + payload)
            self._parts = bytearray()
        opcode, self._begun = self._begun, 0
        if self._is_deflated and not drop:
            if self._inflate is None:
                self._inflate = _Inflater(self._limit)
            payload = self._inflate(payload)
        return Frame(opcode, payload, _text(payload) if opcode == TEXT else "")

    def _check_text(self, payload: bytes, *, is_first: bool) -> None:
        """Check a fragment of a text, so that an invalid text fails before its end (8.1)."""
        if self._utf8 is None:
            self._utf8 = _new_decoder()
        elif is_first:
            self._utf8.reset()
        try:
            self._utf8.decode(payload)
        except UnicodeDecodeError:
            raise _not_utf8() from None

    def _check_head(self, first: int, second: int) -> None:
        """Check the first two bytes of a frame."""
        if not second & _MASKED:
            raise Fault(_PROTOCOL_ERROR, "a client must mask its frames")  # 5.1
        opcode = first & _OPCODE
        if first & _RSV2_OR_RSV3:
            raise Fault(_PROTOCOL_ERROR, "a reserved bit is set")
        if first & _RSV1 and not (self._deflates and opcode in (TEXT, BINARY)):
            # Only the first frame of a message may be marked as deflated (RFC 7692, 6).
            raise Fault(_PROTOCOL_ERROR, "the bit RSV1 is set where it means nothing")
        match opcode:
            case 0x8 | 0x9 | 0xA:
                if not first & _FIN or second & _SIZE > _MAX_SHORT:
                    raise Fault(_PROTOCOL_ERROR, "a control frame is fragmented or too long")
            case 0x1 | 0x2:
                if self._begun:
                    raise Fault(_PROTOCOL_ERROR, "a message begins within another one")
            case 0x0:
                if not self._begun:
                    raise Fault(_PROTOCOL_ERROR, "a fragment continues no message")
            case _:
                raise Fault(_PROTOCOL_ERROR, "the opcode is unknown")

    def _check_size(self, first: int, size: int) -> None:
        """Check the size of a frame's payload before it is received."""
        opcode = first & _OPCODE
        if opcode >= CLOSE:
            return
        most = self._limit
        if self._is_deflated if opcode == FRAGMENT else first & _RSV1:
            most = _most_deflated(most)
        if len(self._parts) + size > most:
            raise _too_large(self._limit)


class _Inflater:
    """Inflates messages, each of which may refer to those before it (RFC 7692, section 7.2.2)."""

    __slots__ = ("_inflate", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inflate = _new_inflater()

    def __call__(self, payload: bytes) -> bytes:
        """The message, of at most `limit` bytes. Raises Fault."""
        inflated = b""
        left = payload + _DEFLATED_END
        for _ in range(_MAX_STREAMS):
            try:
                # One byte more than is allowed shows that there is too much.
                inflated += self._inflate.decompress(left, self._limit + 1 - len(inflated))
            except zlib.error:
                break
            if len(inflated) > self._limit:
                raise _too_large(self._limit)
            if not self._inflate.eof:
                return inflated
            # The client has ended its stream: a new one follows, here or in its next message.
            left = self._inflate.unused_data
            self._inflate = _new_inflater()
            if left == _DEFLATED_END:
                return inflated
        raise Fault(_PROTOCOL_ERROR, "a message cannot be inflated")


_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


def _new_inflater() -> "zlib._Decompress":
    return zlib.decompressobj(-zlib.MAX_WBITS)


def _most_deflated(limit: int) -> int:
    """What deflating may make of `limit` bytes that cannot be compressed (zlib, deflateBound)."""
    return limit + limit // 8 + 1024


def _too_large(limit: int) -> Fault:
    return Fault(_TOO_LARGE, f"a message has more than {limit} bytes")


def _extended(short: int, field: bytes | bytearray) -> int:
    """The size in the extended field, which must not be longer than needed (section 5.2)."""
    size = int.from_bytes(field)
    if not (_MAX_SHORT if short == _MEDIUM else _MAX_MEDIUM) < size <= _MAX_LONG:
        raise Fault(_PROTOCOL_ERROR, "the size of a frame is not encoded as it must be")
    return size


def _unmasked(data: bytes | bytearray, begin: int, end: int) -> bytes:
    """The payload between `begin` and `end`; its mask stands before it (section 5.3)."""
    size = end - begin
    mask = data[begin - _MASK_BYTES : begin] * (size // _MASK_BYTES + 1)
    return (int.from_bytes(data[begin:end]) ^ int.from_bytes(mask[:size])).to_bytes(size)


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> Fault:
    return Fault(_INVALID_TEXT, "a text is not UTF-8")


def _close_code(payload: bytes) -> bytes:
    """The code of a close frame, which a client may send; b"" if it gives none (section 7.4)."""
    if not payload:
        return b""
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or not (
        1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    ):
        raise Fault(_PROTOCOL_ERROR, "the code of a close frame is not valid")
    _text(payload[2:])
    return payload[:2]
