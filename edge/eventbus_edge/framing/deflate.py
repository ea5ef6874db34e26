"""Messages deflated once for all clients that have agreed on permessage-deflate (RFC 7692)."""

import collections
import zlib
from collections.abc import Callable
from typing import Final

from eventbus_edge.framing.base import (
    Framing,
    Located,
)
from eventbus_edge.framing.frames import (
    deflated_text_frame,
    text_frame,
)

__all__ = ["DeflatedFramings"]


MAX_KEPT_BYTES: Final = 4 * 1024 * 1024
_END: Final = b"\x00\x00\xff\xff"

OnDeflated = Callable[[int, int], object]


class DeflatedFramings:
    """Deflated text frames: one framing for each size of window in use."""

    def __init__(self, *, min_bytes: int, level: int, on_deflated: OnDeflated) -> None:
        """Messages of `min_bytes` or more are deflated, at zlib's `level`.

        `on_deflated` is called for each with its size before and after.
        """
        self._min_bytes = min_bytes
        self._level = level
        self._on_deflated = on_deflated
        self._framings: dict[int, Framing] = {}

    def framing(self, window_bits: int) -> Framing:
        """The framing for a window of 2**9 to 2**15 bytes."""
        found = self._framings.get(window_bits)
        if found is None:
            deflate = _Deflater(self._level, window_bits, self._on_deflated)
            found = self._framings[window_bits] = _Deflated(deflate, self._min_bytes)
        return found


class _Deflater:
    """Deflates each message as if it were the first one, so that any client can inflate it."""

    def __init__(self, level: int, window_bits: int, on_deflated: OnDeflated) -> None:
        self._on_deflated = on_deflated
        # A full flush empties the window, as a new compressor would have it (zlib.h). It takes a
        # tenth of the time of a new one for 1 KiB.
        self._compressor = zlib.compressobj(level, zlib.DEFLATED, -window_bits)

    def __call__(self, payload: bytes) -> bytes:
        """The data of a frame (RFC 7692, 7.2.1)."""
        data = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_FULL_FLUSH)
        self._on_deflated(len(payload), len(data))
        return data.removesuffix(_END)


class _Deflated:
    """Deflates messages. Answers, each made for one client, stay plain, as RFC 7692, 6 allows.

    Frames are kept for a while, up to MAX_KEPT_BYTES: clients that subscribe to a pattern, or that
    read missed messages, get the frame that was made for the others.
    """

    def __init__(self, deflate: _Deflater, min_bytes: int) -> None:
        self._deflate = deflate
        self._min_bytes = min_bytes
        self._frames: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._room = MAX_KEPT_BYTES

    def message(self, payload: bytes, _about: Located, /) -> bytes:
        """A text frame, deflated where that makes it smaller."""
        if len(payload) < self._min_bytes:
            return text_frame(payload)
        frame = self._frames.get(payload)
        if frame is None:
            frame = self._frame(payload)
            self._keep(payload, frame)
        else:
            self._frames.move_to_end(payload)
        return frame

    def reply(self, payload: bytes, _start: Located | None = None, /) -> bytes:
        """A plain text frame."""
        return text_frame(payload)

    def _frame(self, payload: bytes) -> bytes:
        data = self._deflate(payload)
        return deflated_text_frame(data) if len(data) < len(payload) else text_frame(payload)

    def _keep(self, payload: bytes, frame: bytes) -> None:
        self._frames[payload] = frame
        self._room -= len(payload) + len(frame)
        while self._room < 0:
            oldest, its_frame = self._frames.popitem(last=False)
            self._room += len(oldest) + len(its_frame)
