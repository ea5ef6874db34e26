"""Positions that identify their message, so that a stream can verify them when a reader resumes.

A stream can go back in time: its store is restored from a copy, or a power cut loses its end. It
keeps its epoch and assigns the lost offsets again. Worked example: a reader stands at offset 100,
the store comes back at 80, and after 30 more messages the stream is at 110. Offset 100 exists
again, but it is a different message, and the reader has missed 20 below it. The time at which the
stream stored a message distinguishes the two.
"""

import datetime
import functools
import re
from typing import (
    Final,
    Protocol,
    Self,
    runtime_checkable,
)

from eventbus.drivers.base import (
    HistoryDriver,
    Page,
    Position,
)

__all__ = [
    "ANY_CHANNEL",
    "FollowedReads",
    "FollowingSubscription",
    "MarkedPosition",
    "ResumingDriver",
    "end_of",
    "mark_of",
    "nanoseconds",
    "read_from",
    "timestamp",
]


ANY_CHANNEL: Final = "~"
"""Prefix of a mark whose message may belong to a different channel."""
_NANO: Final = 1_000_000_000
_WHOLE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
_TIME: Final = re.compile(rf"({_WHOLE.pattern})(?:\.(\d{{1,9}}))?(?:Z|\+00:00)", re.ASCII)
_EXACT: Final = len("2026-01-01T00:00:00.123456789Z")
_UNIX: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class MarkedPosition(Position):
    """A position with a mark that identifies its message; equal to the position without the mark.

    The mark is the time at which the stream stored the message (RFC 3339). `ANY_CHANNEL` precedes
    it when the position is the end of a stream of all channels. Clients treat it as opaque.
    """

    mark: str

    def __new__(cls, offset: int, epoch: str, mark: str) -> Self:
        """Create a position with its mark."""
        self = tuple.__new__(cls, (offset, epoch))  # without a NamedTuple's function of Python
        self.mark = mark
        return self


def end_of(offset: int, epoch: str, time: str) -> Position:
    """The end of a stream of all channels; `time` is when its last message was stored, or empty."""
    if nanoseconds(time) is None:
        return Position(offset, epoch)
    return MarkedPosition(offset, epoch, ANY_CHANNEL + time)


def mark_of(position: Position | None) -> str | None:
    """A position's mark, or None."""
    return position.mark if isinstance(position, MarkedPosition) else None


@runtime_checkable
class ResumingDriver(Protocol):
    """A driver that verifies a reader's position itself."""

    async def resume(self, subject: str, position: Position, limit: int) -> Page:
        """Like `HistoryDriver.read` after the position.

        `complete` is False when the stream is or may be a different one now. Raises like `read`.
        """


@runtime_checkable
class FollowedReads(Protocol):
    """A driver that reads for its own subscribers without asking again where the stream ends."""

    async def read_last(self, subject: str, limit: int, followed: Position) -> Page:
        """Like `HistoryDriver.read` without an offset, for a caller who follows the subject.

        `followed` is the position of the caller's own subscription, which delivers whatever comes
        after it. So the page may be as of any moment since then, and ends at or after `followed`.
        Raises like `read`.
        """


@runtime_checkable
class FollowingSubscription(Protocol):
    """A subscription to a subject or a filter that can rule out messages after a position."""

    def has_nothing_after(self, position: Position) -> bool:
        """Whether it is certain that nothing it listens to was stored after a position.

        The subscription has followed the stream since then, so expired messages are included.
        """


async def read_from(driver: HistoryDriver, subject: str, position: Position, limit: int) -> Page:
    """The first `limit` messages after a reader's position; see `ResumingDriver.resume`."""
    if isinstance(driver, ResumingDriver):
        return await driver.resume(subject, position, limit)
    mark = mark_of(position)
    if mark and not mark.startswith(ANY_CHANNEL) and position.offset > 0:
        page = await driver.read(subject, after=position.offset - 1, limit=1)
        found = page.messages[0] if page.messages else None
        is_there = found is not None and found.position == (position.offset, page.position.epoch)
        if found is not None and is_there and _differ(found.time, mark):
            return Page((), page.position, complete=False)
    page = await driver.read(subject, after=position.offset, limit=limit)
    return page if page.position.epoch == position.epoch else page._replace(complete=False)


def _differ(time: str | None, mark: str) -> bool:
    return time is not None and nanoseconds(time) != nanoseconds(mark)


def nanoseconds(text: str) -> int | None:
    """An RFC 3339 time in UTC as nanoseconds since 1970; None for anything else or earlier."""
    if len(text) == _EXACT and text[19] == "." and text[29] == "Z":  # as most are
        fraction = text[20:29]
        if fraction.isdecimal() and fraction.isascii():
            whole = _seconds(text[:19])
            return None if whole is None else whole * _NANO + int(fraction)
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    whole = _seconds(match[1])
    if whole is None:
        return None
    return whole * _NANO + int((match[2] or "0").ljust(9, "0"))


@functools.lru_cache(maxsize=64)  # the messages of a second have it in common
def _seconds(text: str) -> int | None:
    if not _WHOLE.fullmatch(text):
        return None
    try:
        since = datetime.datetime.fromisoformat(f"{text}+00:00") - _UNIX
    except ValueError:  # no such day
        return None
    whole = since.days * 86_400 + since.seconds
    return whole if whole >= 0 else None


def timestamp(nanos: int) -> str:
    """The inverse of `nanoseconds`, without trailing zeros in the fraction."""
    seconds, fraction = divmod(nanos, _NANO)
    return f"{_text(seconds)}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


@functools.lru_cache(maxsize=64)
def _text(seconds: int) -> str:
    return (_UNIX + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
