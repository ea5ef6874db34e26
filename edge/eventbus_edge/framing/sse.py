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
import struct
import zlib
from collections.abc import (
    Iterable,
    Mapping,
    Sequence,
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
    that from a time that none exceeds, and 1 if the message is the channel's own. None, or an empty
    epoch, if nothing is known.
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
_OFFSETS_AHEAD: Final = 2**31
_NANOS_AHEAD: Final = 3600 * 10**9
_MAX_OFFSET: Final = 2**64 - 1


def encode_cursor(channels: Iterable[str], positions: Mapping[str, Position]) -> bytes:
    """The cursor of a request for `channels`, those without a position included."""
    known = [positions.get(name) for name in sorted(channels)]
    cursor = _base(channels, known, 0, 0)
    entries = [None if at is None else _entry(cursor, at) for at in known]
    return _text(_pack(msgspec.structs.replace(cursor, entries=entries))).rstrip(b"=")


def _base(
    channels: Iterable[str], known: Sequence[Position | None], offsets_ahead: int, nanos_ahead: int
) -> _Cursor:
    """A cursor without entries, whose distances are counted from ahead of all positions."""
    epochs = dict.fromkeys(position.epoch for position in known if position)
    highest = max((position.offset for position in known if position), default=0)
    times = [time for position in known if (time := _time_of(position)) is not None]
    return _Cursor(
        _checksum(sorted(channels)),
        list(epochs),
        min(highest + offsets_ahead, _MAX_OFFSET),
        min(max(times) + nanos_ahead, _MAX_TIME) if times else 0,
        [],
    )


def _entry(cursor: _Cursor, position: Position) -> tuple[int, ...]:
    place = cursor.epochs.index(position.epoch), cursor.highest - position.offset
    if (time := _time_of(position)) is None:
        return place
    is_own = not (mark_of(position) or "").startswith(ANY_CHANNEL)
    return *place, cursor.latest - time, int(is_own)


def _text(packed: bytes) -> bytes:
    return binascii.b2a_base64(packed, newline=False).translate(_URL_SAFE)


_PLAIN: Final = struct.Struct(">BBBBQ").pack
"""The entry of a position without a mark: an array of 2, uint 8, uint 64; 12 bytes."""
_MARKED: Final = struct.Struct(">BBBBIBQB").pack
"""An array of 4, uint 8, uint 32, uint 64, fixint; 18 bytes."""
_MARKED_FAR: Final = struct.Struct(">BBHBQBQBB").pack
"""An array of 4, uint 16, uint 64, uint 64, uint 8; 24 bytes."""
_UINT8, _UINT16, _UINT32, _UINT64 = 0xCC, 0xCD, 0xCE, 0xCF
_ARRAY16: Final = b"\xdc"
_ARRAY32: Final = b"\xdd"


class _MovingCursor:
    """The line with the cursor of a stream, of which a message changes one place.

    Integers have fixed widths (MessagePack allows them to be longer than needed), so that each part
    has a multiple of 3 bytes: in base64, it can be replaced alone. Distances are counted from far
    ahead of all positions, so that they hardly ever have to be computed again. A channel without a
    position stands at NOWHERE, since None would be a single byte.
    """

    def __init__(self, channels: Iterable[str], positions: Mapping[str, Position]) -> None:
        names = sorted(channels)
        self._known = {name: positions.get(name) or NOWHERE for name in names}
        self._index = {name: index for index, name in enumerate(names)}
        self._compute()

    def move(self, channel: str, position: Position | None) -> None:
        """Note the position of a channel after a message, or None where it is not known."""
        index = self._index.get(channel)
        if index is None:
            return
        position = self._known[channel] = position or NOWHERE
        part = self._part(position)
        start, end = self._starts[index], self._starts[index + 1]
        if part is not None and len(part) == end - start:
            self.line[start:end] = part
        else:
            self._compute()

    def _part(self, position: Position) -> bytes | None:
        """The text of an entry; None if a position has passed the base."""
        cursor = self._cursor
        offset, epoch = position
        distance, number = cursor.highest - offset, self._epochs.get(epoch)
        if number is None or distance < 0:
            return None
        mark = position.mark if type(position) is MarkedPosition else None
        time = None if mark is None else nanoseconds(mark)
        is_own = time is not None  # a message of another channel has a prefix before its time
        if time is None:
            time = _time_of(position)
        if time is None or time > _MAX_TIME:
            return _text(_PLAIN(0x92, _UINT8, number, _UINT64, distance))
        earlier = cursor.latest - time
        if earlier < 0:
            return None
        if distance < 2**32:
            packed = _MARKED(0x94, _UINT8, number, _UINT32, distance, _UINT64, earlier, is_own)
        else:
            packed = _MARKED_FAR(
                0x94, _UINT16, number, _UINT64, distance, _UINT64, earlier, _UINT8, is_own
            )
        return _text(packed)

    def _compute(self) -> None:
        known = list(self._known.values())
        self._cursor = _base(self._known, known, _OFFSETS_AHEAD, _NANOS_AHEAD)
        self._epochs = {epoch: number for number, epoch in enumerate(self._cursor.epochs)}
        self.line = bytearray(b"id: " + _text(_head(self._cursor, len(known))))
        """The whole line."""
        self._starts = [len(self.line)]
        for position in known:
            part = self._part(position)
            assert part is not None, "the base is ahead of all positions"
            self.line += part
            self._starts.append(len(self.line))
        self.line += b"\n"


def _head(cursor: _Cursor, entries: int) -> bytes:
    """A packed cursor up to its entries (MessagePack, arrays); a multiple of 3 bytes."""
    fields = _pack(cursor)[1:-1]  # between the byte of its own array and that of the empty one
    surplus = len(fields) % 3
    outer = b"\x95" if surplus == 2 else _ARRAY16 + (5).to_bytes(2)
    inner = _ARRAY32 + entries.to_bytes(4) if surplus == 1 else _ARRAY16 + entries.to_bytes(2)
    return outer + fields + inner


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
            if not cursor.epochs[epoch]:
                continue  # NOWHERE: nothing is known
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
        return b"id: %b\n%b" % (encode_cursor((start.channel,), {start.channel: position}), data)


class ManyChannels:
    """The framing of one stream of several channels: its cursor is its own, the rest is shared."""

    def __init__(self, channels: Iterable[str], positions: Mapping[str, Position]) -> None:
        """`positions` are the client's current ones."""
        self._cursor = _MovingCursor(channels, positions)

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """An event; a message without a position leaves the cursor as it is."""
        data = _shared_data(payload)
        if (position := about.marked) is None:
            return data
        self._cursor.move(about.channel, position)
        return b"".join((self._cursor.line, data))

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """An event; the answer to a subscription sets the channel's position in the cursor."""
        data = _data(payload)
        if start is None:
            return data
        self._cursor.move(start.channel, start.marked)
        return b"".join((self._cursor.line, data))


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


@functools.lru_cache(maxsize=1)
def _shared_data(payload: bytes) -> bytes:
    """The data of the last message: its streams ask for it one after another."""
    return _data(payload)


def _data(body: bytes) -> bytes:
    # An envelope is forwarded as received, and may have line breaks between its tokens.
    if b"\n" in body or b"\r" in body:
        body = b"\ndata: ".join(body.splitlines())
    return b"data: %b\n\n" % body
