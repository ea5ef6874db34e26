"""Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Pure.

Each event is a whole payload in `data:`, without an `event:` field, so that `onmessage` hears all
of them. `id:` is a cursor over all channels of the request; the browser gives it back in
Last-Event-ID when it comes again, by itself, to the same URL. A stream that was asked for by POST
has no cursor: its client says in the body where each channel goes on.
"""

import base64
import binascii
import functools
import zlib
from collections.abc import (
    Iterable,
    Mapping,
)
from typing import Final

import msgspec

from eventbus.drivers.base import Position
from eventbus.drivers.marks import (
    ANY_CHANNEL,
    MarkedPosition,
    mark_of,
    nanoseconds,
    timestamp,
)
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
"""Characters of a cursor that is read: some thirty for each of two hundred channels."""
NOWHERE: Final = Position(0, "")
"""The position of a client whose cursor cannot be used: no stream has this epoch."""
_MAX_TIME: Final = 2**63 - 1
_RETRY_AT_ONCE_MS: Final = 1000
_RETRY_LATER_MS: Final = 30_000


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Positions in the alphabetical order of the request's channels, which are not named.

    All channels mostly have one epoch, and offsets and times that are not far apart: each one has
    the place of its epoch, and its distance from the highest offset; with a mark, also that from
    the latest time, and 1 where the message is the channel's own. None where nothing is known.
    """

    channels: int
    """A checksum of their names: a cursor of other channels is none of these."""
    epochs: list[str]
    highest: int
    latest: int
    """Nanoseconds since 1970."""
    places: list[tuple[int, ...] | None]


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(_Cursor).decode


def encode_cursor(channels: Iterable[str], positions: Mapping[str, Position]) -> bytes:
    """The cursor of a request for `channels`, those without a position included."""
    names = sorted(channels)
    known = [positions.get(name) for name in names]
    epochs = list(dict.fromkeys(position.epoch for position in known if position))
    highest = max((position.offset for position in known if position), default=0)
    times = [_time_of(position) for position in known]
    latest = max((time for time in times if time is not None), default=0)
    places: list[tuple[int, ...] | None] = []
    for position, time in zip(known, times, strict=True):
        if position is None:
            places.append(None)
            continue
        place = epochs.index(position.epoch), highest - position.offset
        is_own = int(not (mark_of(position) or "").startswith(ANY_CHANNEL))
        places.append(place if time is None else (*place, latest - time, is_own))
    packed = _pack(_Cursor(_checksum(names), epochs, highest, latest, places))
    return base64.urlsafe_b64encode(packed).rstrip(b"=")


def _time_of(position: Position | None) -> int | None:
    mark = mark_of(position)
    return nanoseconds(mark.removeprefix(ANY_CHANNEL)) if mark else None


def decode_cursor(text: str, channels: Iterable[str]) -> dict[str, Position] | None:
    """The positions of `channels` in a cursor; None for a cursor that cannot be read."""
    names = sorted(channels)
    if len(text) > MAX_CURSOR or not text.isascii() or "=" in text:
        return None
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = _unpack(packed)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        return None
    if cursor.channels != _checksum(names) or len(cursor.places) != len(names):
        return None
    positions: dict[str, Position] = {}
    for name, place in zip(names, cursor.places, strict=True):
        if place is not None:
            if len(place) not in (2, 4):
                return None
            epoch, distance, *marked = place
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
        """`positions` are those that the client stands at already."""
        self._channels = sorted(channels)
        self._positions = dict(positions)

    def message(self, payload: bytes, about: Located, /) -> bytes:
        """An event; a message without a position leaves the cursor as it is."""
        data = _shared_data(payload)
        if (position := about.marked) is None:
            return data
        self._positions[about.channel] = position
        return self._id() + data

    def reply(self, payload: bytes, start: Located | None = None, /) -> bytes:
        """An event; the answer to a subscription sets the channel's position in the cursor."""
        data = _data(payload)
        if start is None:
            return data
        if (position := start.marked) is None:
            self._positions.pop(start.channel, None)
        else:
            self._positions[start.channel] = position
        return self._id() + data

    def _id(self) -> bytes:
        return _id(encode_cursor(self._channels, self._positions))


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
    # An envelope is forwarded as it came, and may have line ends between its tokens.
    if b"\n" in body or b"\r" in body:
        body = b"\ndata: ".join(body.splitlines())
    return b"data: %b\n\n" % body
