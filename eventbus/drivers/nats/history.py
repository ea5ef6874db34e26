"""Reads history, and judges whether a reader's position proves that nothing after it is missing.

A stream evicts its oldest messages first: by age and size the oldest of the whole stream, by count
the oldest of one subject. So a message that still exists after a read proves that the read has
everything after it. Messages that were deleted by hand (purged by a NATS tool, or by a limit that
was lowered for a while) show when the reader's own message is gone and nothing else explains it.
"""

import collections
import datetime
import enum
from collections.abc import Awaitable, Callable
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
from eventbus.drivers.nats.client import PROBE
from eventbus.drivers.nats.direct import (
    StoredMessage,
    StoredSubject,
)
from eventbus.drivers.nats.stream import (
    EventStream,
    SubjectState,
)
from eventbus.errors import InvalidChannel, InvalidPattern
from eventbus.retention import RetentionClass

__all__ = [
    "FilterPage",
    "ReaderPosition",
    "StreamReader",
    "Verdict",
    "judge_copy",
    "judge_message",
    "judge_stream",
    "keeps_all_after",
]


_COPY_NANOS: Final = 1_000_000_000
"""How much later than the event stream a class's stream may have stored a message."""


class Verdict(enum.Enum):
    """What is known about a reader's position."""

    WHOLE = enum.auto()
    """Nothing after it is missing."""
    UNPROVEN = enum.auto()
    """Something after it may be missing."""
    ANOTHER = enum.auto()
    """The stream has gone back, and its current history does not have the position."""


class ReaderPosition(NamedTuple):
    """The message up to which a reader has everything of a subject."""

    offset: int
    time: int | None = None
    """When the message was stored, in nanoseconds since 1970; None when that is not known."""
    is_own: bool | None = None
    """Whether it is a message of the subject; None when that is not known."""

    @classmethod
    def of(cls, position: Position) -> "ReaderPosition":
        """Read a position and its mark."""
        mark = mark_of(position)
        if not mark:
            return cls(position.offset)
        time = nanoseconds(mark.removeprefix(ANY_CHANNEL))
        return cls(position.offset, time, not mark.startswith(ANY_CHANNEL))


async def judge_message(
    reader: ReaderPosition, events: StoredSubject, subject: str
) -> Verdict | None:
    """Judge a position by its message, looked up after the read; None when that is not enough.

    `events` has all subjects. Raises ConnectionFailed.
    """
    there = await events.at(reader.offset) if reader.offset > 0 else None
    if there is None:
        return None
    if reader.time is not None and nanoseconds(there.time) != reader.time:
        return Verdict.ANOTHER
    if there.subject == subject:
        return Verdict.WHOLE
    # A message of another channel: the rest of the stream has to show it.
    return None


async def judge_stream(
    reader: ReaderPosition,
    stored: StoredSubject,
    state: SubjectState,
    *,
    events: StoredSubject,
    watched_since: int,
    known: int = 0,
) -> Verdict:
    """Judge a position by the event stream, when its message is not enough.

    `state` and `stored` are those of the subject, `events` has all subjects; all were queried after
    the read. Since `watched_since` (nanoseconds) the stream has not gone back. The reader has
    everything up to the offset `known`, whatever the stream has. Raises ConnectionFailed.
    """
    offset, last = reader.offset, state.stream.last
    if offset > last:
        return Verdict.WHOLE if reader.time is None else Verdict.ANOTHER
    if offset == last:
        ended = nanoseconds(state.stream.time)
        is_end = None in (ended, reader.time) or ended == reader.time
        return Verdict.WHOLE if is_end else Verdict.ANOTHER
    there = await events.at(offset) if offset > 0 else None
    if there is None:
        is_removed = offset >= max(state.first, 1) and reader.is_own is not False
        if is_removed and offset > known and offset != state.purged:
            return Verdict.UNPROVEN  # evicted by count, perhaps with others, or by hand
        if reader.time is not None:
            later = await events.since(timestamp(reader.time + 1))
            if later is not None and later.offset <= offset:
                return Verdict.ANOTHER
            first = nanoseconds(state.first_time)
            if reader.time < watched_since and (first is None or first > reader.time):
                return Verdict.UNPROVEN  # the proof of a different history may be gone, too
    if await keeps_all_after(stored, state, max(offset, known)):
        return Verdict.WHOLE
    return Verdict.UNPROVEN


async def keeps_all_after(stored: StoredSubject, state: SubjectState, offset: int) -> bool:
    """Whether the stream has all of a subject after an offset, unless deleted by hand."""
    if offset >= state.stream.last:
        return True
    if offset < state.purged:
        return False
    has_room = state.limit <= 0 or (state.messages is not None and state.messages < state.limit)
    if state.first <= offset + 1 and has_room:
        # Nothing after it was evicted by age or size, which remove the stream's oldest; nor by
        # count: a subject that had evictions is full until some of its messages expire.
        return True
    oldest = await stored.oldest()
    return oldest is not None and oldest.offset <= offset


async def judge_copy(reader: ReaderPosition, copy: Copy) -> Verdict:
    """Judge a position by the stream of a class, whose messages have times of their own.

    `copy` was queried after the read. Raises ConnectionFailed.
    """
    offset, time = reader.offset, reader.time
    if time is not None:
        later = await copy.subject.since(timestamp(time + _COPY_NANOS))
        if later is not None and later.offset <= offset:
            return Verdict.ANOTHER
    if await copy.subject.after(offset - 1, offset, 1):
        return Verdict.WHOLE if copy.is_fresh else Verdict.UNPROVEN
    if reader.is_own and offset >= copy.since:
        oldest = await copy.all_of_class.oldest()
        if oldest is not None and oldest.offset <= offset:
            return Verdict.UNPROVEN  # deleted by hand, or evicted by count with others
    return Verdict.WHOLE if await copy.has_all_after(offset) else Verdict.UNPROVEN


_NO_END: Final = 2**63 - 1
_PROBE_END: Final = f".{PROBE}"
_PATTERN_PAGE: Final = 100
"""Messages of a pattern that are read at once: they may be large."""
_READS: Final = 3
"""How many times a page is read, if its stream is replaced or goes back meanwhile."""


class _Asked(NamedTuple):
    """One subject as of a query of the event stream."""

    subject: StoredSubject
    state: SubjectState
    kept: RetentionClass | None
    """The class that limits what readers get; None without a class."""

    @property
    def end(self) -> int:
        return self.state.stream.last


class FilterPage(NamedTuple):
    """Messages of several subjects, in the order of the stream."""

    messages: list[Delivery]
    state: SubjectState
    """Queried after the messages were read; of another epoch when they may be of two histories."""
    stored: StoredSubject

    async def has_all_after(self, offset: int) -> bool:
        """Whether it is proved that age, size or a purge removed nothing after an offset.

        Eviction by a subject's own count does not show here. Raises ConnectionFailed.
        """
        return await keeps_all_after(self.stored, self.state, offset)


class StreamReader:
    """Reads the history of channels from the event stream and the streams of classes."""

    def __init__(self, stream: EventStream, classes: ClassStreams) -> None:
        self._stream = stream
        self._classes = classes

    async def read(
        self,
        live: str,
        *,
        after: ReaderPosition | None,
        limit: int,
        epoch: str | None = None,
        whole: bool = False,
        known: int = 0,
        followed: Position | None = None,
    ) -> Page:
        """The first `limit` messages of a live subject after a position; without one, the last.

        A position of a different `epoch` must be proved by its time. With `whole`, messages beyond
        the limits of their class are included as long as a stream has them. The reader has
        everything up to the offset `known`, whatever the stream has. Who reads the last messages,
        and has a subscription whose position is `followed`, may get them as of a moment since then.
        The first message's `previous` is None: the stream does not know it. Raises InvalidChannel
        for a subject that is not live, ConnectionFailed and StreamMismatch.
        """
        subject = self._stream.event_of(live)
        if subject is None:
            raise InvalidChannel(
                f"{live[:80]!r} is not a live subject of {self._stream.name}", name=live
            )
        return await self._of_one_history(
            lambda: self._page(
                live,
                subject,
                after=after,
                limit=limit,
                epoch=epoch,
                whole=whole,
                known=known,
                followed=followed,
            )
        )

    async def _of_one_history(self, read: Callable[[], Awaitable[Page]]) -> Page:
        """Read a page, and read it again if the stream was replaced or went back meanwhile.

        Otherwise its messages could be of another history than its epoch says.
        """
        identity = self._stream.identity
        for _ in range(_READS):
            before = identity.snapshot().invalidations
            page = await read()
            if identity.snapshot().invalidations != before:
                await self._stream.state()
            if page.position.epoch == identity.epoch:
                return page
        raise self._stream.stream.failure("it was replaced or went back while it was read")

    async def _page(
        self,
        live: str,
        subject: str,
        *,
        after: ReaderPosition | None,
        limit: int,
        epoch: str | None,
        whole: bool,
        known: int,
        followed: Position | None,
    ) -> Page:
        recent = None if followed is None else self._stream.followed(subject, followed)
        asked = await self._ask(subject) if recent is None else self._asked(subject, recent)
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
        """The first `limit` messages after an offset, of all subjects that match a live filter.

        Reads the event stream only. Raises ConnectionFailed.
        """
        event = self._stream.event_of(live)
        assert event is not None, "only filters of live subjects are read"
        state = await self._stream.of_subject(event)
        # Includes newer messages: the count of a subject shows whether it is full by now.
        found = await self._stored(event, state).after(after, _NO_END, limit)
        self._suspect(found, state)
        deliveries = [
            Delivery(
                self._stream.live_of(_subject_of(one)),
                one.payload,
                one.headers,
                Position(one.offset, state.stream.epoch),
                None,
                one.time,
            )
            for one in found
        ]
        now = await self._stream.of_subject(event)
        # The end as of the read, the beginning as of now.
        state = now._replace(stream=state.stream) if now.stream.epoch == state.stream.epoch else now
        return FilterPage(deliveries, state, self._stored(event, state))

    async def read_pattern(
        self,
        live: str,
        *,
        after: ReaderPosition,
        epoch: str,
        limit: int,
        max_bytes: int,
    ) -> Page:
        """All messages after a position of the live subjects that a filter matches.

        See `PatternHistoryDriver.read_pattern`. All streams have the offsets of the event stream,
        so one position is enough for all of them. Where the event stream has given up messages, the
        stream of a class proves that none is missing only if all channels of the filter belong to
        that class. Raises InvalidPattern for a filter of other subjects, ConnectionFailed and
        StreamMismatch.
        """
        subject = self._stream.event_of(live)
        if subject is None:
            raise InvalidPattern(
                f"{live[:80]!r} is not a filter of live subjects of {self._stream.name}", name=live
            )
        room = _Room(limit, max_bytes)
        return await self._of_one_history(lambda: self._pattern_page(subject, after, epoch, room))

    async def _pattern_page(
        self, subject: str, after: ReaderPosition, epoch: str, room: "_Room"
    ) -> Page:
        asked = await self._ask(subject)
        present = asked.state.stream.epoch
        found = await self._all_after(asked.state, subject, after.offset, room)
        now, verdict = await self._judge(asked, after, 0)
        complete = verdict is Verdict.WHOLE
        if verdict is Verdict.UNPROVEN and after.offset >= now.state.purged:
            found, complete = await self._all_from_copy(now.state, subject, after, room)
        complete = complete and room.holds(found) and self._is_within_limits(found, now.state)
        if epoch != present:
            is_marked = after.time is not None and _creation(epoch) == _creation(present)
            complete = complete and is_marked
        end = end_of(asked.end, present, asked.state.stream.time)
        if not complete or now.state.stream.epoch != present:
            return Page((), end, complete=False)
        if found and found[-1].offset > asked.end:
            end = end_of(found[-1].offset, present, found[-1].time)
        deliveries = [
            Delivery(
                self._stream.live_of(_subject_of(one)),
                one.payload,
                one.headers,
                Position(one.offset, present),
                None,
                one.time,
            )
            for one in found
        ]
        return Page(tuple(deliveries), end, complete=True)

    async def _all_after(
        self, state: SubjectState, subject: str, offset: int, room: "_Room"
    ) -> list[StoredMessage]:
        """All messages after an offset, newer ones included, or slightly more than `room` holds.

        The newer ones are needed: the count of a subject shows whether it is full by now, so that
        others of it may have been evicted before they were read.
        """
        stored = StoredSubject(
            self._stream.stream, subject,
            first=state.first, last=_NO_END, is_replicated=state.replicas > 1,
        )  # fmt: skip
        found = await _read_all(stored, offset, room)
        self._suspect(found, state)
        return found

    async def _all_from_copy(
        self, state: SubjectState, subject: str, after: ReaderPosition, room: "_Room"
    ) -> tuple[list[StoredMessage], bool]:
        """From the stream of the class of all channels, continued by the event stream.

        And whether it is proved that age, size and purges removed nothing after the position.
        """
        kept = self._classes.of_all(subject)
        copy = None if kept is None else await self._classes.copy(kept, subject)
        if kept is None or copy is None:
            return [], False
        found = await _read_all(copy.subject, after.offset, room)
        reached = found[-1].offset if found else after.offset
        found += await self._all_after(state, subject, reached, room)
        now, copy = await self._ask(subject), await self._classes.copy(kept, subject)
        complete = (
            copy is not None
            and copy.since <= after.offset + 1
            and await judge_copy(after, copy) is Verdict.WHOLE
            and await keeps_all_after(now.subject, now.state, reached)
        )
        return found, complete

    def _is_within_limits(self, found: list[StoredMessage], state: SubjectState) -> bool:
        """Whether no channel has more, or older, messages than its readers get.

        A channel with evictions is full, and its oldest messages go first. So if one was evicted
        that the reader has not got, all that the channel has are new to the reader.
        """
        counts = collections.Counter(map(_subject_of, found))
        classes = {subject: self._classes.of(subject) for subject in counts}
        for subject, count in counts.items():
            kept = classes[subject]
            most = self._stream.readable(state.limit) if kept is None else kept.messages
            if 0 < most < count or 0 < state.limit <= count:
                return False
        for one in found:
            kept = classes[_subject_of(one)]
            if kept is not None:
                begin = state.time - datetime.timedelta(seconds=kept.seconds)
                if datetime.datetime.fromisoformat(one.time) <= begin:
                    return False
        return True

    def _suspect(self, found: list[StoredMessage], state: SubjectState) -> None:
        """Verify the stream if a message is newer than one that came after it.

        `found` was read from the event stream after the query of `state`. So the stream has gone
        back in between, also if it is stored by a server whose loss does not show here.
        """
        ended = nanoseconds(state.stream.time)
        within = next((one for one in reversed(found) if one.offset <= state.stream.last), None)
        if within is not None and ended is not None:
            stored = nanoseconds(within.time)
            if stored is not None and stored > ended:
                self._stream.identity.invalidate()

    async def _ask(self, subject: str) -> _Asked:
        return self._asked(subject, await self._stream.of_subject(subject))

    def _asked(self, subject: str, state: SubjectState) -> _Asked:
        return _Asked(self._stored(subject, state), state, self._classes.of(subject))

    def _stored(self, subject: str, state: SubjectState) -> StoredSubject:
        return StoredSubject(
            self._stream.stream, subject,
            first=state.first, last=state.stream.last, messages=state.messages,
            is_replicated=state.replicas > 1,
        )  # fmt: skip

    async def _last(self, asked: _Asked, limit: int) -> list[StoredMessage]:
        kept = asked.kept
        most = self._stream.readable(asked.state.limit) if kept is None else kept.messages
        count = min(limit, most) if most > 0 else limit
        last = await asked.subject.last(count, asked.end)
        self._suspect(last, asked.state)
        found = _unexpired(asked, last)
        if kept is None or len(found) >= count:
            return found
        copy = await self._classes.copy(kept, asked.subject.subject)
        if copy is None:
            return found
        # The copy may be a little behind; the event stream has what it lacks.
        begin = found[0].offset if found else asked.end + 1
        older = _unexpired(asked, await copy.subject.last(count, begin - 1))
        return [*older, *found][-count:]

    async def _after(
        self, asked: _Asked, after: ReaderPosition, limit: int, *, whole: bool, known: int
    ) -> tuple[list[StoredMessage], bool]:
        """The messages, and whether it is proved that none after that position is missing.

        It is judged after the read: what exists by then existed before.
        """
        offset, kept = after.offset, asked.kept
        found = await asked.subject.after(offset, asked.end, limit)
        self._suspect(found, asked.state)
        now, verdict = await self._judge(asked, after, known)
        if kept is None:
            most = self._stream.readable(now.state.limit)
            if found and 0 < most < len(found) + found[-1].pending:
                # The first is beyond what readers get, and others before it may have been evicted.
                beyond = found[len(found) + found[-1].pending - most - 1]
                return await asked.subject.after(beyond.offset, asked.end, limit), False
            return found, verdict is Verdict.WHOLE
        if verdict is Verdict.UNPROVEN and offset >= now.state.purged:
            copied = await self._from_copy(asked, kept, after, limit)
            if copied is not None:
                return copied
        complete = verdict is Verdict.WHOLE
        if whole or not found:
            return found, complete
        too_many = len(found) + found[-1].pending > kept.messages
        if too_many or len(_unexpired(asked, found)) < len(found):
            newest = await self._last(asked, kept.messages)
            return [one for one in newest if one.offset > offset][:limit], False
        return found, complete

    async def _judge(
        self, asked: _Asked, after: ReaderPosition, known: int
    ) -> tuple[_Asked, Verdict]:
        """What is proved now, and the state of the stream that the proof needed."""
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
            events=events, watched_since=self._stream.identity.watched_since, known=known,
        )  # fmt: skip

    async def _from_copy(
        self, asked: _Asked, kept: RetentionClass, after: ReaderPosition, limit: int
    ) -> tuple[list[StoredMessage], bool] | None:
        """From the stream of a class, continued by the event stream; None without such a stream."""
        subject = asked.subject.subject
        copy = await self._classes.copy(kept, subject)
        if copy is None:
            return None
        found = await copy.subject.after(after.offset, asked.end, limit)
        reached = found[-1].offset if found else after.offset
        newer = await asked.subject.after(reached, asked.end, limit - len(found))
        self._suspect(newer, asked.state)
        found += newer
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


class _Room(NamedTuple):
    """How much a reader takes at most."""

    limit: int
    max_bytes: int

    def holds(self, found: list[StoredMessage]) -> bool:
        return len(found) <= self.limit and sum(len(one.payload) for one in found) <= self.max_bytes


async def _read_all(stored: StoredSubject, offset: int, room: _Room) -> list[StoredMessage]:
    """All messages after an offset, or slightly more than `room` holds."""
    found: list[StoredMessage] = []
    while room.holds(found):
        page = await stored.after(offset, _NO_END, _PATTERN_PAGE)
        found += [one for one in page if not _subject_of(one).endswith(_PROBE_END)]
        if len(page) < _PATTERN_PAGE:
            break
        offset = page[-1].offset
    return found


def _subject_of(message: StoredMessage) -> str:
    return message.headers.get("Nats-Subject", "")


def _creation(epoch: str) -> str:
    """The creation of the stream that an epoch names, without its generation."""
    return epoch.partition(".")[0]


def _unexpired(asked: _Asked, found: list[StoredMessage]) -> list[StoredMessage]:
    """Without messages that were purged, or have outlived their class."""
    if asked.kept is None:
        return found
    begin = asked.state.time - datetime.timedelta(seconds=asked.kept.seconds)
    return [
        one
        for one in found
        if one.offset > asked.state.purged and datetime.datetime.fromisoformat(one.time) > begin
    ]
