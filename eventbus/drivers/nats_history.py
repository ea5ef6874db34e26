"""Reading what is stored of a channel: from the stream of events, and from its class's stream."""

import datetime
from typing import Final, NamedTuple

from eventbus.drivers.base import Delivery, Page, Position
from eventbus.drivers.nats_classes import ClassStreams
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_direct import Stored, StoredSubject
from eventbus.drivers.nats_stream import EventStream, SubjectState
from eventbus.errors import InvalidChannel
from eventbus.retention import RetentionClass

__all__ = ["FilterPage", "StreamReader"]

_SUBJECT: Final = "Nats-Subject"


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
    stored: StoredSubject

    async def has_all_after(self, offset: int) -> bool:
        """Whether it is proved that nothing after an offset went by age, by size, or by a purge.

        What went because its own subject has too many is not to be seen here. Raises
        ConnectionFailed.
        """
        return await _is_complete(self.stored, self.state, offset)


class StreamReader:
    """Reads through a connection."""

    def __init__(
        self, connection: NatsConnection, stream: EventStream, classes: ClassStreams
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._classes = classes

    async def read(
        self, live: str, *, after: int | None, limit: int, whole: bool = False, known: int = 0
    ) -> Page:
        """The first `limit` messages of a live subject after an offset; without one, the last.

        With `whole`, what the streams still have of a class that keeps less is given too. Up to the
        offset `known` nothing is missing, whatever the stream has of it. The first message's
        `previous` is None: the stream does not tell it. Raises InvalidChannel for a
        subject of another root, ConnectionFailed and StreamMismatch.
        """
        subject = self._stream.event_of(live)
        if subject is None:
            raise InvalidChannel(
                f"{live[:80]!r} is not a live subject of {self._stream.name}", name=live
            )
        state = await self._stream.of_subject(subject)
        stored = StoredSubject(
            self._connection, self._stream.name, subject,
            first=state.first, last=state.stream.last, messages=state.messages,
            is_replicated=state.replicas > 1,
        )  # fmt: skip
        asked = _Asked(stored, state, self._classes.of(subject))
        if after is None:
            found, complete = await self._last(asked, limit), True
        else:
            found, complete = await self._after(asked, after, limit, whole=whole, known=known)
        previous: int | None = None
        deliveries = []
        for one in found:
            position = Position(one.offset, state.stream.epoch)
            deliveries.append(
                Delivery(live, one.payload, one.headers, position, previous, one.time)
            )
            previous = one.offset
        return Page(tuple(deliveries), Position(asked.end, state.stream.epoch), complete)

    async def read_filter(self, live: str, *, after: int, limit: int) -> FilterPage:
        """The first `limit` messages after an offset, of all subjects that a live filter matches.

        Only the stream of events is read. Raises ConnectionFailed.
        """
        event = self._stream.event_of(live)
        assert event is not None, "filters that are read are of live subjects"
        state = await self._stream.of_subject(event)
        stored = StoredSubject(
            self._connection, self._stream.name, event,
            first=state.first, last=state.stream.last, messages=0,
            is_replicated=state.replicas > 1,
        )  # fmt: skip
        found = await stored.after(after, state.stream.last, limit)
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
        return FilterPage(deliveries, state, stored)

    async def _last(self, asked: _Asked, limit: int) -> list[Stored]:
        kept = asked.kept
        count = limit if kept is None else min(limit, kept.messages)
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

    async def _after(
        self, asked: _Asked, after: int, limit: int, *, whole: bool, known: int
    ) -> tuple[list[Stored], bool]:
        """The messages, and whether it is proved that none after that offset is missing."""
        complete = await _is_complete(asked.subject, asked.state, max(after, known))
        if asked.kept is None:
            return await asked.subject.after(after, asked.end, limit), complete
        if not complete and after >= asked.state.purged:
            copy = await self._classes.copy(asked.kept, asked.subject.subject)
            if copy is not None:
                complete = await copy.has_all_after(after)
                found = await copy.subject.after(after, asked.end, limit)
                reached = found[-1].offset if found else after
                found += await asked.subject.after(reached, asked.end, limit - len(found))
                trimmed = found if len(found) >= limit else found[-asked.kept.messages :]
                return trimmed, complete and len(trimmed) == len(found)
        found = await asked.subject.after(after, asked.end, limit)
        if whole or not found:
            return found, complete
        if len(found) + found[-1].left > asked.kept.messages:
            held = await self._last(asked, asked.kept.messages)
            found, complete = [one for one in held if one.offset > after][:limit], False
        if len(_due(asked, found)) < len(found):
            held = await self._last(asked, asked.kept.messages)
            return [one for one in held if one.offset > after][:limit], False
        return found, complete


async def _is_complete(stored: StoredSubject, state: SubjectState, after: int) -> bool:
    """Whether the stream of events has all of the subject after that offset, as is proved.

    The messages of a filter are not counted: that one of its subjects gave up some does not show.
    """
    if after >= state.stream.last:
        return True
    if after < state.purged:
        return False
    if state.first <= after + 1 and (state.limit <= 0 or state.messages < state.limit):
        # Nothing after it went by age or size, which take the stream's oldest; nor by count:
        # a subject that had to give up messages is full, until some go by age.
        return True
    # Each way of eviction takes a subject's oldest message first.
    oldest = await stored.oldest()
    return oldest is not None and oldest.offset <= after


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
