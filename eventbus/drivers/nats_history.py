"""Reading what is stored of a channel: from the stream of events, and from its class's stream."""

import datetime
from typing import Final, NamedTuple

from eventbus.drivers.base import Delivery, Page, Position
from eventbus.drivers.base_marks import end_of
from eventbus.drivers.nats_classes import ClassStreams
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_direct import Stored, StoredSubject
from eventbus.drivers.nats_evidence import (
    Place,
    Verdict,
    judge_copy,
    judge_message,
    judge_stream,
    keeps_all_after,
)
from eventbus.drivers.nats_stream import EventStream, SubjectState
from eventbus.errors import InvalidChannel
from eventbus.retention import RetentionClass

__all__ = ["FilterPage", "StreamReader"]

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
