"""What a stream proves about a place in it: that it is the same stream, and lacks nothing since.

Each way in which a stream gives up messages by itself takes the oldest first: by age and by size
those of the whole stream, by count those of one subject. So a message that is still there after a
reading shows that the reading has all that followed it. What was taken out by hand (a purge by a
tool of NATS, a limit that was lowered for a while) shows when the reader's own message is gone and
nothing else explains it.
"""

import datetime
import enum
from typing import (
    Final,
    NamedTuple,
)

from eventbus.drivers.base import (
    Delivery,
    Page,
    Position,
)
from eventbus.drivers.marks import (
    ANY_CHANNEL,
    end_of,
    mark_of,
    nanoseconds,
    timestamp,
)
from eventbus.drivers.nats.classes import (
    ClassStreams,
    Copy,
)
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.jetstream import (
    Stored,
    StoredSubject,
)
from eventbus.drivers.nats.stream import (
    EventStream,
    SubjectState,
)
from eventbus.errors import InvalidChannel
from eventbus.retention import RetentionClass

__all__ = [
    "FilterPage",
    "Place",
    "StreamReader",
    "Verdict",
    "judge_copy",
    "judge_message",
    "judge_stream",
    "keeps_all_after",
]


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


_SUBJECT: Final = "Nats-Subject"
_NO_END: Final = 2**63 - 1


class _Asked(NamedTuple):
    """One subject as it stood when the stream of events was asked."""

    subject: StoredSubject
    state: SubjectState
    kept: RetentionClass | None
    """What is to be given of it at most; None for whatever there is."""

    @property
    def end(self) -> int:
        return self.state.stream.last


class FilterPage(NamedTuple):
    """Messages of several subjects, in the order in which they were stored."""

    messages: list[Delivery]
    state: SubjectState
    """As it was after the messages were read."""
    stored: StoredSubject

    async def has_all_after(self, offset: int) -> bool:
        """Whether it is proved that nothing after an offset went by age, by size, or by a purge.

        What went because its own subject has too many is not to be seen here. Raises
        ConnectionFailed.
        """
        return await keeps_all_after(self.stored, self.state, offset)


class StreamReader:
    """Reads through a connection."""

    def __init__(
        self, connection: NatsConnection, stream: EventStream, classes: ClassStreams
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._classes = classes

    async def read(
        self,
        live: str,
        *,
        after: Place | None,
        limit: int,
        epoch: str | None = None,
        whole: bool = False,
        known: int = 0,
    ) -> Page:
        """The first `limit` messages of a live subject after a place; without one, the last.

        A place of another `epoch` than the stream's must be proved by its time. With `whole`, what
        the streams still have of a class that keeps less is given too. Up to the offset `known`
        nothing is missing, whatever the stream has of it. The first message's `previous` is None:
        the stream does not tell it. Raises InvalidChannel for a subject of another root,
        ConnectionFailed and StreamMismatch.
        """
        subject = self._stream.event_of(live)
        if subject is None:
            raise InvalidChannel(
                f"{live[:80]!r} is not a live subject of {self._stream.name}", name=live
            )
        asked = await self._ask(subject)
        present = asked.state.stream.epoch
        if after is None:
            found, complete = await self._last(asked, limit), True
        else:
            found, complete = await self._after(asked, after, limit, whole=whole, known=known)
            if epoch is not None and epoch != present:
                is_marked = after.time is not None and _creation(epoch) == _creation(present)
                complete = complete and is_marked
        previous: int | None = None
        deliveries = []
        for one in found:
            position = Position(one.offset, present)
            deliveries.append(
                Delivery(live, one.payload, one.headers, position, previous, one.time)
            )
            previous = one.offset
        end = end_of(asked.end, present, asked.state.stream.time)
        return Page(tuple(deliveries), end, complete)

    async def read_filter(self, live: str, *, after: int, limit: int) -> FilterPage:
        """The first `limit` messages after an offset, of all subjects that a live filter matches.

        Only the stream of events is read. Raises ConnectionFailed.
        """
        event = self._stream.event_of(live)
        assert event is not None, "filters that are read are of live subjects"
        state = await self._stream.of_subject(event)
        # Also what came since: a subject that is full by now has given up some, as its count tells.
        found = await self._stored(event, state).after(after, _NO_END, limit)
        deliveries = [
            Delivery(
                # What the publisher's own headers claim stands before what the server appends.
                self._stream.live_of(one.headers.get(_SUBJECT, "")),
                one.payload,
                one.headers,
                Position(one.offset, state.stream.epoch),
                None,
                one.time,
            )
            for one in found
        ]
        now = await self._stream.of_subject(event)
        # Up to where it was read; how far back the stream goes by now.
        state = now._replace(stream=state.stream) if now.stream.epoch == state.stream.epoch else now
        return FilterPage(deliveries, state, self._stored(event, state))

    async def _ask(self, subject: str) -> _Asked:
        state = await self._stream.of_subject(subject)
        return _Asked(self._stored(subject, state), state, self._classes.of(subject))

    def _stored(self, subject: str, state: SubjectState) -> StoredSubject:
        return StoredSubject(
            self._connection, self._stream.name, subject,
            first=state.first, last=state.stream.last, messages=state.messages,
            is_replicated=state.replicas > 1,
        )  # fmt: skip

    async def _last(self, asked: _Asked, limit: int) -> list[Stored]:
        kept = asked.kept
        most = self._given(asked.state) if kept is None else kept.messages
        count = min(limit, most) if most > 0 else limit
        found = _due(asked, await asked.subject.last(count, asked.end))
        if kept is None or len(found) >= count:
            return found
        copy = await self._classes.copy(kept, asked.subject.subject)
        if copy is None:
            return found
        # The copy may be a little behind, and the stream of events has what it lacks.
        begin = found[0].offset if found else asked.end + 1
        older = _due(asked, await copy.subject.last(count, begin - 1))
        return [*older, *found][-count:]

    def _given(self, state: SubjectState) -> int:
        return self._stream.given_of(state.limit)

    async def _after(
        self, asked: _Asked, after: Place, limit: int, *, whole: bool, known: int
    ) -> tuple[list[Stored], bool]:
        """The messages, and whether it is proved that none after that place is missing.

        It is judged when they have been read: what is there by then was there before.
        """
        offset, kept = after.offset, asked.kept
        found = await asked.subject.after(offset, asked.end, limit)
        now, verdict = await self._judge(asked, after, known)
        if kept is None:
            most = self._given(now.state)
            if found and 0 < most < len(found) + found[-1].left:
                # The first is the one beyond what is given, and there may have been others.
                beyond = found[len(found) + found[-1].left - most - 1]
                return await asked.subject.after(beyond.offset, asked.end, limit), False
            return found, verdict is Verdict.WHOLE
        if verdict is Verdict.UNPROVEN and offset >= now.state.purged:
            copied = await self._from_copy(asked, kept, after, limit)
            if copied is not None:
                return copied
        complete = verdict is Verdict.WHOLE
        if whole or not found:
            return found, complete
        too_many = len(found) + found[-1].left > kept.messages
        if too_many or len(_due(asked, found)) < len(found):
            held = await self._last(asked, kept.messages)
            return [one for one in held if one.offset > offset][:limit], False
        return found, complete

    async def _judge(self, asked: _Asked, after: Place, known: int) -> tuple[_Asked, Verdict]:
        """What is proved by now, and how the stream stands as far as it was asked for that."""
        events = self._stored(self._stream.events, asked.state)
        if after.offset < asked.end:
            verdict = await judge_message(after, events, asked.subject.subject)
            if verdict is not None:
                return asked, verdict
            epoch = asked.state.stream.epoch
            asked = await self._ask(asked.subject.subject)
            if asked.state.stream.epoch != epoch:
                return asked, Verdict.ANOTHER
        return asked, await judge_stream(
            after, asked.subject, asked.state,
            events=events, watched_since=self._stream.watched_since, known=known,
        )  # fmt: skip

    async def _from_copy(
        self, asked: _Asked, kept: RetentionClass, after: Place, limit: int
    ) -> tuple[list[Stored], bool] | None:
        """What the stream of a class has, and the stream of events after that; None without one."""
        subject = asked.subject.subject
        copy = await self._classes.copy(kept, subject)
        if copy is None:
            return None
        found = await copy.subject.after(after.offset, asked.end, limit)
        reached = found[-1].offset if found else after.offset
        found += await asked.subject.after(reached, asked.end, limit - len(found))
        trimmed = found if len(found) >= limit else found[-kept.messages :]
        copy, now = await self._classes.copy(kept, subject), await self._ask(subject)
        complete = (
            len(trimmed) == len(found)
            and copy is not None
            and await judge_copy(after, copy) is Verdict.WHOLE
            and (
                len(found) >= limit
                or reached == after.offset
                or await keeps_all_after(now.subject, now.state, reached)
            )
        )
        return trimmed, complete


def _creation(epoch: str) -> str:
    """Which creation of the stream an epoch names, of whatever generation."""
    return epoch.partition(".")[0]


def _due(asked: _Asked, found: list[Stored]) -> list[Stored]:
    """Without what was purged, or is older than its class keeps it."""
    if asked.kept is None:
        return found
    begin = asked.state.time - datetime.timedelta(seconds=asked.kept.seconds)
    return [
        one
        for one in found
        if one.offset > asked.state.purged and datetime.datetime.fromisoformat(one.time) > begin
    ]
