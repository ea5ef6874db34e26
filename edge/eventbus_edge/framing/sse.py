"""Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Pure.

Each event is a whole payload in `data:`, without an `event:` field, so that `onmessage` receives
all of them. `id:` is a cursor over all channels of the request; the browser returns it in
Last-Event-ID when it reconnects, by itself, to the same URL. A stream requested by POST has no
cursor: its client says in the body where each channel continues.
"""

import base64
import binascii
import functools
import string
import zlib
from collections.abc import (
    Iterable,
    Mapping,
)
from typing import Final

import msgspec

from eventbus.drivers import ANY_CHANNEL, MarkedPosition, Position, mark_of, nanoseconds, timestamp
from eventbus_edge.framing.base import Located

__all__ = [
    "COMMENT",
    "MAX_CURSOR",
    "NOWHERE",
    "ONE_CHANNEL",
    "WITHOUT_CURSOR",
    "ManyChannels",
    "OneChannel",
    "WithoutCursor",
    "closing",
    "decode_cursor",
    "encode_cursor",
]


COMMENT: Final = b":\n\n"
MAX_CURSOR: Final = 8192
"""The longest cursor that is read, in characters: about 30 for each of 200 channels."""
NOWHERE: Final = Position(0, "")
"""The position of a client whose cursor cannot be used: no stream has this epoch."""
_MAX_TIME: Final = 2**63 - 1
_RETRY_AT_ONCE_MS: Final = 1000
_RETRY_LATER_MS: Final = 30_000


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Positions in the alphabetical order of the request's channels, which are not named.

    All channels mostly have one epoch, and offsets and times that are not far apart: each one has
    the index of its epoch, and its distance from an offset that none exceeds; with a mark, also
    that from a time that none exceeds, and 1 if the message is the channel's own. None if nothing
    is known.
    """

    channels: int
    """A checksum of their names, which reveals a cursor of other channels."""
    epochs: list[str]
    highest: int
    latest: int
    """Nanoseconds since 1970."""
    entries: list[tuple[int, ...] | None]


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(_Cursor).decode


_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_OFFSETS_AHEAD: Final = 4096
_NANOS_AHEAD: Final = 1_000_000_000
_MAX_OFFSET: Final = 2**64 - 1


def encode_cursor(channels: Iterable[str], positions: Mapping[str, Position]) -> bytes:
    """The cursor of a request for `channels`, those without a position included."""
    return _CursorEntries(channels, positions).encode()


class _CursorEntries:
    """The cursor of a stream, of which a message changes one place.

    Distances are counted from a base that may be ahead of all positions. All places are computed
    again only when a position passes the base.
    """

    def __init__(
        self, channels: Iterable[str], positions: Mapping[str, Position], *, is_ahead: bool = False
    ) -> None:
        names = sorted(channels)
        self._known = {name: positions.get(name) for name in names}
        self._index = {name: index for index, name in enumerate(names)}
        self._checksum = _checksum(names)
        self._ahead = (_OFFSETS_AHEAD, _NANOS_AHEAD) if is_ahead else (0, 0)
        self._cursor = self._compute()

    def move(self, channel: str, position: Position | None) -> None:
        """Note the position of a channel after a message, or None where it is not known."""
        if channel not in self._known:
            return
        self._known[channel] = position
        cursor = self._cursor
        time = _time_of(position)
        if position is not None and (
            position.offset > cursor.highest
            or position.epoch not in cursor.epochs
            or (time is not None and time > cursor.latest)
        ):
            self._cursor = self._compute()
        else:
            self._places[self._index[channel]] = _pack(_place(cursor, position, time))

    def encode(self) -> bytes:
        """The cursor as text."""
        packed = b"".join((self._head, *self._places))
        return binascii.b2a_base64(packed, newline=False).rstrip(b"=").translate(_URL_SAFE)

    def _compute(self) -> _Cursor:
        known = list(self._known.values())
        epochs = list(dict.fromkeys(position.epoch for position in known if position))
        highest = max((position.offset for position in known if position), default=0)
        times = [_time_of(position) for position in known]
        latest = max((time for time in times if time is not None), default=None)
        cursor = _Cursor(
            self._checksum,
            epochs,
            min(highest + self._ahead[0], _MAX_OFFSET),
            0 if latest is None else min(latest + self._ahead[1], _MAX_TIME),
            [],
        )
        pairs = zip(known, times, strict=True)
        self._places = [_pack(_place(cursor, position, time)) for position, time in pairs]
        self._head = _head(cursor, len(self._places))
        return cursor


def _head(cursor: _Cursor, entries: int) -> bytes:
    """A packed cursor up to its entries, which follow it (MessagePack, arrays)."""
    packed = _pack(cursor)[:-1]  # the last byte is its empty array
    if entries < 16:
        return packed + bytes((0x90 | entries,))
    return packed + b"\xdc" + entries.to_bytes(2)


def _place(cursor: _Cursor, position: Position | None, time: int | None) -> tuple[int, ...] | None:
    if position is None:
        return None
    place = cursor.epochs.index(position.epoch), cursor.highest - position.offset
    if time is None:
        return place
    is_own = not (mark_of(position) or "").startswith(ANY_CHANNEL)
    return *place, cursor.latest - time, int(is_own)


_BASE64URL: Final = frozenset(string.ascii_letters + string.digits + "-_")
"""RFC 4648, 5; up to Python 3.14, b64decode takes `+` and `/` as well."""


def _time_of(position: Position | None) -> int | None:
    mark = mark_of(position)
    time = nanoseconds(mark.removeprefix(ANY_CHANNEL)) if mark else None
    return None if time is None or time > _MAX_TIME else time


def decode_cursor(text: str, channels: Iterable[str]) -> dict[str, Position] | None:
    """The positions of `channels` in a cursor; None for a cursor that cannot be read."""
    names = sorted(channels)
    if len(text) > MAX_CURSOR or not _BASE64URL.issuperset(text):
        return None
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = _unpack(packed)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        return None
    if cursor.channels != _checksum(names) or len(cursor.entries) != len(names):
        return None
    positions: dict[str, Position] = {}
    for name, entry in zip(names, cursor.entries, strict=True):
        if entry is not None:
            if len(entry) not in (2, 4):
                return None
            epoch, distance, *marked = entry
            if not (0 <= epoch < len(cursor.epochs) and 0 <= distance <= cursor.highest):
                return None
            position = Position(cursor.highest - distance, cursor.epochs[epoch])
            if marked:
                earlier, is_own = marked
                if not 0 <= earlier <= cursor.latest <= _MAX_TIME:
                    return None
                mark = ("" if is_own else ANY_CHANNEL) + timestamp(cursor.latest - earlier)
                position = MarkedPosition(*position, mark)
            positions[name] = position
    return positions


def _checksum(names: list[str]) -> int:
    return zlib.crc32(",".join(names).encode())


class OneChannel:
    """The framing of all streams of a single channel: a message is one event for all of them."""

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """An event; a message without a position leaves the cursor as it is."""
        return self.reply(payload, about)

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """An event, with a cursor where the client's position is known."""
        data = _data(payload)
        if start is None or (position := start.marked) is None:
            return data
        return _id(encode_cursor((start.channel,), {start.channel: position})) + data


class ManyChannels:
    """The framing of one stream of several channels: its cursor is its own, the rest is shared."""

    def __init__(self, channels: Iterable[str], positions: Mapping[str, Position]) -> None:
        """`positions` are the client's current ones."""
        self._entries = _CursorEntries(channels, positions, is_ahead=True)

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """An event; a message without a position leaves the cursor as it is."""
        data = _shared_data(payload)
        if (position := about.marked) is None:
            return data
        self._entries.move(about.channel, position)
        return _id(self._entries.encode()) + data

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """An event; the answer to a subscription sets the channel's position in the cursor."""
        data = _data(payload)
        if start is None:
            return data
        self._entries.move(start.channel, start.marked)
        return _id(self._entries.encode()) + data


class WithoutCursor:
    """The framing of all streams by POST: a message is one event for all of them."""

    def message(self, payload: bytes, _about: Located, /) -> bytes:
        """An event."""
        return _shared_data(payload)

    def reply(self, payload: bytes, _start: Located | None = None, /) -> bytes:
        """An event."""
        return _data(payload)


ONE_CHANNEL: Final = OneChannel()
WITHOUT_CURSOR: Final = WithoutCursor()


def closing(payload: bytes, *, returns_at_once: bool) -> bytes:
    """The last event of a stream, and when the browser is to return.

    A browser returns by itself whatever the payload says: `retry:` sets how soon.
    """
    retry = _RETRY_AT_ONCE_MS if returns_at_once else _RETRY_LATER_MS
    return b"retry: %d\n%b" % (retry, _data(payload))


def _id(cursor: bytes) -> bytes:
    return b"id: %b\n" % cursor


@functools.lru_cache(maxsize=1)
def _shared_data(payload: bytes) -> bytes:
    """The data of the last message: its streams ask for it one after another."""
    return _data(payload)


def _data(body: bytes) -> bytes:
    # An envelope is forwarded as received, and may have line breaks between its tokens.
    if b"\n" in body or b"\r" in body:
        body = b"\ndata: ".join(body.splitlines())
    return b"data: %b\n\n" % body
