"""What a stream proves about a place in it: that it is the same stream, and lacks nothing since.

Each way in which a stream gives up messages by itself takes the oldest first: by age and by size
those of the whole stream, by count those of one subject. So a message that is still there after a
reading shows that the reading has all that followed it. What was taken out by hand (a purge by a
tool of NATS, a limit that was lowered for a while) shows when the reader's own message is gone and
nothing else explains it.
"""

import enum
from typing import Final, NamedTuple

from eventbus.drivers.base import Position
from eventbus.drivers.base_marks import ANY_CHANNEL, mark_of, nanoseconds, timestamp
from eventbus.drivers.nats_classes import Copy
from eventbus.drivers.nats_direct import StoredSubject
from eventbus.drivers.nats_stream import SubjectState

__all__ = ["Place", "Verdict", "judge_copy", "judge_message", "judge_stream", "keeps_all_after"]

_COPY_NANOS: Final = 1_000_000_000
"""How much later than its original a class's stream may have stored a message."""


class Verdict(enum.Enum):
    """What is known of a reader's place."""

    WHOLE = enum.auto()
    """Nothing after it is missing."""
    UNPROVEN = enum.auto()
    """Something may be missing."""
    ANOTHER = enum.auto()
    """The stream has gone back, and the place is not one of its present history."""


class Place(NamedTuple):
    """Up to where a reader has all of a subject."""

    offset: int
    time: int | None = None
    """When that message was stored, in nanoseconds since 1970; None where it is not known."""
    is_own: bool | None = None
    """Whether it is one of the subject; None where that is not known."""

    @classmethod
    def of(cls, position: Position) -> "Place":
        """The place of a position, with what its mark says."""
        mark = mark_of(position)
        if not mark:
            return cls(position.offset)
        time = nanoseconds(mark.removeprefix(ANY_CHANNEL))
        return cls(position.offset, time, not mark.startswith(ANY_CHANNEL))


async def judge_message(place: Place, events: StoredSubject, subject: str) -> Verdict | None:
    """Judge a place by its message, looked for after the reading; None where that does not tell.

    `events` is of all subjects. Raises ConnectionFailed.
    """
    there = await events.at(place.offset) if place.offset > 0 else None
    if there is None:
        return None
    if place.time is not None and nanoseconds(there.time) != place.time:
        return Verdict.ANOTHER
    if there.subject == subject:
        return Verdict.WHOLE
    # Another channel's, and the very one where the mark says so: the rest is to be looked at.
    return None


async def judge_stream(
    place: Place,
    stored: StoredSubject,
    state: SubjectState,
    *,
    events: StoredSubject,
    watched_since: int,
    known: int = 0,
) -> Verdict:
    """Judge a place by the stream of events, where its message does not tell.

    `state` and `stored` are of the subject, `events` of all subjects; they are of after the
    reading. Since `watched_since` (nanoseconds) the stream has not gone back. Up to the offset
    `known` nothing is missing, whatever the stream has of it. Raises ConnectionFailed.
    """
    offset, last = place.offset, state.stream.last
    if offset > last:
        return Verdict.WHOLE if place.time is None else Verdict.ANOTHER
    if offset == last:
        ended = nanoseconds(state.stream.time)
        is_end = None in (ended, place.time) or ended == place.time
        return Verdict.WHOLE if is_end else Verdict.ANOTHER
    there = await events.at(offset) if offset > 0 else None
    if there is None:
        is_removed = offset >= max(state.first, 1) and place.is_own is not False
        if is_removed and offset > known and offset != state.purged:
            return Verdict.UNPROVEN  # by count, and others with it; or by hand
        if place.time is not None:
            later = await events.since(timestamp(place.time + 1))
            if later is not None and later.offset <= offset:
                return Verdict.ANOTHER
            first = nanoseconds(state.first_time)
            if place.time < watched_since and (first is None or first > place.time):
                return Verdict.UNPROVEN  # what would show another history may be gone as well
    if await keeps_all_after(stored, state, max(offset, known)):
        return Verdict.WHOLE
    return Verdict.UNPROVEN


async def keeps_all_after(stored: StoredSubject, state: SubjectState, offset: int) -> bool:
    """Whether the stream has all of a subject after an offset, but for what was taken by hand."""
    if offset >= state.stream.last:
        return True
    if offset < state.purged:
        return False
    if state.first <= offset + 1 and (state.limit <= 0 or state.messages < state.limit):
        # Nothing after it went by age or size, which take the stream's oldest; nor by count:
        # a subject that had to give up messages is full, until some go by age.
        return True
    oldest = await stored.oldest()
    return oldest is not None and oldest.offset <= offset


async def judge_copy(place: Place, copy: Copy) -> Verdict:
    """Judge a place by the stream of a class, whose messages have times of their own.

    `copy` is of after the reading. Raises ConnectionFailed.
    """
    offset, time = place.offset, place.time
    if time is not None:
        later = await copy.subject.since(timestamp(time + _COPY_NANOS))
        if later is not None and later.offset <= offset:
            return Verdict.ANOTHER
    if await copy.subject.after(offset - 1, offset, 1):
        return Verdict.WHOLE if copy.is_fresh else Verdict.UNPROVEN
    if place.is_own and offset >= copy.since:
        oldest = await copy.all_of_class.oldest()
        if oldest is not None and oldest.offset <= offset:
            return Verdict.UNPROVEN  # taken out by hand, or by count with others
    return Verdict.WHOLE if await copy.has_all_after(offset) else Verdict.UNPROVEN
