"""Finds the frames in what a client sends, to count them before their messages are read. Pure."""

from typing import (
    Final,
    NamedTuple,
)

__all__ = ["FrameScanner", "Scanned"]


_FIN: Final = 0x80
_RSV1: Final = 0x40
_OPCODE: Final = 0xF
_CONTROL: Final = 0x8
"""Opcodes from here on are those of control frames."""
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA
_MASKED: Final = 0x80
_SIZE: Final = 0x7F
_SHORTEST_HEAD: Final = 2
_MASK_SIZE: Final = 4
_EXTENDED: Final = {126: 2, 127: 8}
"""Bytes of an extended length, by the length in the second byte."""
_MAX_CONTROL: Final = 125


class Scanned(NamedTuple):
    """One portion of a client's frames."""

    data: bytes
    """What is left for the reader of messages: all but pings and pongs."""
    frames: int
    """Frames that complete no message: pings, pongs, and fragments before the last one."""
    messages: int
    """Messages that end in `data`."""
    ping: bytes | None
    """The payload of the newest ping."""
    more: bool
    """Whether whole frames may be left: ask again."""


class _Head(NamedTuple):
    first: int
    """FIN, the reserved bits and the opcode."""
    begin: int
    """Where the payload begins, from the frame's first byte."""
    size: int
    """Of the payload."""
    is_masked: bool


class FrameScanner:
    """Reads the heads of frames (RFC 6455, 5.2), and of pings and pongs the payload.

    A frame that breaks the protocol is left to the reader of messages, which knows its close code.
    """

    __slots__ = ("_at", "_data", "_drops", "_left", "_pings", "_pongs")

    def __init__(self, *, deflates: bool) -> None:
        """`deflates`: the bit RSV1 is agreed on; it means nothing on pings and pongs."""
        self._data = b""
        self._at = 0
        self._left = 0
        """Bytes to come of the payload of the frame that was begun."""
        self._drops = False
        """Whether that frame is dropped."""
        bits = (_FIN, _FIN | _RSV1) if deflates else (_FIN,)
        self._pings = {each | _PING for each in bits}
        self._pongs = {each | _PONG for each in bits}

    def feed(self, data: bytes) -> None:
        """Take what came from the socket."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def take(self, most_frames: int, most_messages: int, *, drop: bool = False) -> Scanned:
        """The next frames, at most so many, with at most so many messages.

        With `drop`, frames of messages are counted and dropped, but for one that has begun; a close
        frame never is.
        """
        kept: list[bytes] = []
        frames = messages = 0
        ping: bytes | None = None
        more = False
        while not self._left or self._go_on(kept):
            head = self._head()
            if head is None:
                break
            if frames + messages >= most_frames or messages >= most_messages:
                more = True
                break
            if self._is_whole(head):
                if head.first in self._pings:
                    ping = self._payload(head)
                self._at += head.begin + head.size
                frames += 1
                continue
            self._drops = drop and head.first & _OPCODE != _CLOSE
            self._left = head.begin + head.size
            if head.first & _FIN and head.first & _OPCODE < _CONTROL and not self._drops:
                messages += 1
            else:
                frames += 1
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        return Scanned(b"".join(kept), frames, messages, ping, more)

    def _go_on(self, kept: list[bytes]) -> bool:
        """Go through what is there of the frame that was begun; whether that is all of it."""
        step = min(self._left, len(self._data) - self._at)
        if not self._drops:
            kept.append(self._data[self._at : self._at + step])
        self._at += step
        self._left -= step
        return not self._left

    def _head(self) -> _Head | None:
        """The head of the next frame; of a ping or pong only with its payload."""
        data, at = self._data, self._at
        there = len(data) - at
        if there < _SHORTEST_HEAD:
            return None
        first, second = data[at], data[at + 1]
        size, is_masked = second & _SIZE, bool(second & _MASKED)
        extended = _EXTENDED.get(size, 0)
        begin = _SHORTEST_HEAD + extended + (_MASK_SIZE if is_masked else 0)
        if there < begin:
            return None
        if extended:
            size = int.from_bytes(data[at + 2 : at + 2 + extended])
        head = _Head(first, begin, size, is_masked)
        return None if self._is_whole(head) and there < begin + size else head

    def _is_whole(self, head: _Head) -> bool:
        """Whether it is a ping or a pong, which are not left to the reader."""
        return head.size <= _MAX_CONTROL and (
            head.first in self._pings or head.first in self._pongs
        )

    def _payload(self, head: _Head) -> bytes:
        at = self._at + head.begin
        payload = self._data[at : at + head.size]
        if not head.is_masked:
            return payload
        mask = self._data[at - _MASK_SIZE : at] * (head.size // _MASK_SIZE + 1)
        key = int.from_bytes(mask[: head.size])
        return (int.from_bytes(payload) ^ key).to_bytes(head.size)
