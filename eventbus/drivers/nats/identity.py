"""Which stream an answer of the server is from: the event stream may be replaced or go back.

The stream is replaced when it is created again, which its creation time shows. It goes back in time
when its store is restored from a copy, or a power cut loses its end; the lost sequences are then
assigned again. No process need be running when that happens, so the stream may be far past its old
end when it is looked at next. But its message at a known sequence then has a different time.

A process that notices gives the stream a new generation, which is part of the epoch, and writes it
to the stream's metadata if its NATS user may. Otherwise the epoch is known to this process alone;
positions are recognized by their marks, whatever generation they name.
"""

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from eventbus.attempts import SharedAttempt
from eventbus.drivers.marks import nanoseconds, timestamp
from eventbus.drivers.nats.direct import StoredSubject
from eventbus.drivers.nats.errors import is_denied
from eventbus.drivers.nats.jetstream import Stream, StreamInfo
from eventbus.errors import EventBusError

__all__ = ["SeenMessage", "Snapshot", "StreamIdentity", "StreamState", "epoch_of"]

_log = logging.getLogger(__name__)

_GENERATION: Final = "eventbus.generation"
_MAX_GENERATION: Final = 16
_CATCH_UPS: Final = 20
_CATCH_UP_S: Final = 0.25
_UNIX: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class SeenMessage(NamedTuple):
    """A message that was seen in the stream; of offset 0 for none."""

    offset: int
    time: str
    """When the stream stored it, RFC 3339; empty when that is not known."""


class StreamState(NamedTuple):
    """The end of a stream."""

    epoch: str
    last: int
    """The offset of its last message, 0 in a new stream without messages."""
    time: str = ""
    """When that was stored, RFC 3339."""


class _GoneBack(NamedTuple):
    """What shows that the stream has gone back."""

    unchanged: int
    """The offset to which it has gone back."""
    after: int = 0
    """It went back after that time, in nanoseconds since 1970: the lost message was stored then."""


class Snapshot(NamedTuple):
    """What was known when a query was sent; its answer may be older than what is known now."""

    invalidations: int
    acked: int
    known: SeenMessage
    epoch: str


class StreamIdentity:
    """Recognizes the event stream in answers, and gives it a new epoch when it is another one."""

    def __init__(
        self,
        stream: Stream,
        events: str,
        on_new_epoch: Callable[[int], None],
        *,
        seen: Callable[[], SeenMessage | None],
        has_subscribers: Callable[[], bool],
    ) -> None:
        """`events` is the filter of all its subjects; for the others see `EventStream`."""
        self.epoch = ""
        self.base = ""
        """The epoch without its generation; identifies one creation of the stream."""
        self.watched_since = 0
        """Since when it is known not to have gone back; nanoseconds of the server's time."""
        self._stream = stream
        self._events = events
        self._on_new_epoch = on_new_epoch
        self._seen = seen
        self._has_subscribers = has_subscribers
        self._acked = 0
        """The highest offset that was acknowledged to a publisher of this process."""
        self._known = SeenMessage(0, "")
        self._unproven: SeenMessage | None = None
        """A message that was seen beyond the end of the stream, until a later one proves that the
        stream has gone back, or has not."""
        self._shared_generation = ""
        self._leader = ""
        self._may_read = True
        self._invalidations = 0
        self._verified = 0
        self._verifying = SharedAttempt()

    @property
    def is_stale(self) -> bool:
        """Whether the stream is to be verified; see `invalidate`."""
        return self._verified < self._invalidations

    def invalidate(self) -> None:
        """The stream may have gone back: verify it with the next answer."""
        self._invalidations += 1

    def is_doubtful(self, offset: int) -> bool:
        """Whether the stream is to be verified, now that a new message got this offset.

        An offset that went back shows that the stream may have.
        """
        if offset <= self._acked:
            self.invalidate()
        return self._verified < self._invalidations

    def acknowledge(self, offset: int) -> None:
        """A message of this process was stored at an offset."""
        self._acked = max(self._acked, offset)

    def snapshot(self) -> Snapshot:
        """What is known now, for the `accept` of an answer to a query that is sent now."""
        return Snapshot(self._invalidations, self._acked, self._known, self.epoch)

    async def accept(self, info: StreamInfo, before: Snapshot) -> StreamState:
        """The state in an answer, once it is known which stream it is from; see the module.

        `before` is what was known when the query was sent. The state is that of a newer answer if
        this one is behind what is known by now. Raises ConnectionFailed.
        """
        if not self._is_same(info):
            async with self._verifying.turn():
                info = await self._recognize(info, before)
        elif info.state.last_seq > self._known.offset:
            self._known = SeenMessage(info.state.last_seq, info.state.last_ts)
        return StreamState(self.epoch, info.state.last_seq, info.state.last_ts)

    def _is_same(self, info: StreamInfo) -> bool:
        """Whether the answer is from the known stream, and nothing has invalidated it."""
        known, state = self._known, info.state
        return (
            not self.is_stale
            and epoch_of(info.created) == self.base
            and _generation_of(info) == self._shared_generation
            and info.cluster.leader == self._leader
            and not self._is_provable(info)
            and (state.last_seq > known.offset or (state.last_seq, state.last_ts) == known)
        )

    def _is_provable(self, info: StreamInfo) -> bool:
        """Whether the stream has a message by now that is later than the unproven one."""
        if self._unproven is None:
            return False
        return (nanoseconds(info.state.last_ts) or 0) > (nanoseconds(self._unproven.time) or 0)

    async def _recognize(self, info: StreamInfo, before: Snapshot) -> StreamInfo:
        """Recognize the stream of an answer, or of a newer one, which is returned then."""
        base = epoch_of(info.created)
        is_behind = info.state.last_seq < max(self._known.offset, before.acked)
        if before.epoch != self.epoch or (self.base == base and is_behind):
            info, before = await self._fresh(info, before)
            base = epoch_of(info.created)
        is_first, is_new = not self.base, self.base != base
        shared = generation = _generation_of(info)
        gone_back = None if is_new else await self._gone_back(info, before)
        self._unproven = None if is_new or gone_back is not None else self._beyond(info)
        if gone_back is not None:
            shared, generation = await self._renew(info, gone_back.after)
        last = SeenMessage(info.state.last_seq, info.state.last_ts)
        if is_new or gone_back is not None or last.offset > self._known.offset:
            self._known = last
        self._leader = info.cluster.leader
        self._verified = max(self._verified, before.invalidations)
        if is_new or gone_back is not None:
            self._acked = 0
            self.watched_since = _nanoseconds(info.ts)
        elif shared == self._shared_generation or self._has_subscribers():
            # Another process noticed first; subscribers here cannot have missed anything.
            self._shared_generation = shared
            return info
        self.base, self._shared_generation = base, shared
        self.epoch = f"{base}.{generation}" if generation else base
        if gone_back is not None:
            _log.warning(
                "stream %s has gone back: it has lost everything after offset %d, and continues "
                "from there with epoch %s", self._stream.name, gone_back.unchanged, self.epoch,
            )  # fmt: skip
        elif not is_first:
            _log.warning(
                "stream %s was replaced, its epoch is now %s", self._stream.name, self.epoch
            )
        if not is_first:
            same = 0 if is_new else info.state.last_seq
            self._on_new_epoch(same if gone_back is None else gone_back.unchanged)
        return info

    def _beyond(self, info: StreamInfo) -> SeenMessage | None:
        """A message that was seen beyond the end of a stream that has none later."""
        if self._unproven is not None and not self._is_provable(info):
            return self._unproven
        seen = self._seen()
        return seen if seen is not None and seen.offset > info.state.last_seq else None

    async def _fresh(self, info: StreamInfo, before: Snapshot) -> tuple[StreamInfo, Snapshot]:
        """A newer answer, for one that is behind what is known.

        Concurrent answers may arrive out of order, and a leader that has just been elected may not
        have applied all that it was given.
        """
        for _ in range(_CATCH_UPS if info.is_replicated else 1):
            known = self.snapshot()
            newer = await self._stream.info()
            if newer.error is not None:
                break
            info, before = newer, known
            if info.state.last_seq >= max(before.known.offset, before.acked):
                break
            await asyncio.sleep(_CATCH_UP_S)
        return info, before

    async def _gone_back(self, info: StreamInfo, before: Snapshot) -> _GoneBack | None:
        """How far the stream has gone back; None when nothing shows that it has."""
        known, last = before.known, info.state.last_seq
        events = StoredSubject(
            self._stream, self._events,
            first=info.state.first_seq, last=info.state.last_seq, is_replicated=info.is_replicated,
        )  # fmt: skip
        # Anyone can publish what looks like a message that was seen: a later one has to prove it.
        for seen in (known, self._unproven, self._seen()):
            if seen and (same := await self._same_up_to(events, info, seen)) is not None:
                return _GoneBack(same, nanoseconds(seen.time) or 0)
        if known.offset > last:  # nothing has been stored since
            return _GoneBack(last, nanoseconds(known.time) or 0)
        # The times of acknowledged messages are not known: some after the known one may be new.
        return _GoneBack(known.offset) if before.acked > last else None

    async def _same_up_to(
        self, events: StoredSubject, info: StreamInfo, seen: SeenMessage
    ) -> int | None:
        """Where a different history begins, if a message stored after `seen` proves one."""
        stored = nanoseconds(seen.time)
        # A process that only publishes may lack the right to read.
        if not seen.offset or stored is None or not self._may_read or not self._has_subscribers():
            return None
        try:
            is_there = seen.offset <= info.state.last_seq
            if is_there and not await self._may_differ(events, info, seen):
                return None
            later = await events.since(timestamp(stored + 1))
        except EventBusError as exc:
            if not is_denied(exc):
                raise
            # The offsets alone show less.
            _log.info(
                "stream %s: cannot check whether it has gone back: %s", self._stream.name, exc
            )
            self._may_read = False
            return None
        return later.offset - 1 if later is not None and later.offset <= seen.offset else None

    async def _may_differ(self, events: StoredSubject, info: StreamInfo, seen: SeenMessage) -> bool:
        """Whether a message that was seen may be missing from where it was."""
        stored = nanoseconds(seen.time)
        there = await events.at(seen.offset)
        if there is not None:
            return nanoseconds(there.time) != stored
        # The stream keeps the time of its last message when the message is gone.
        is_last = seen.offset == info.state.last_seq
        return not is_last or nanoseconds(info.state.last_ts) != stored

    async def _renew(self, info: StreamInfo, after: int) -> tuple[str, str]:
        """A generation for a stream that has gone back: that in the metadata, and the current one.

        It went back `after` a time. They are equal when the NATS user may change the stream, or
        another process has done so.
        """
        found = _generation_of(info)
        if found and int(found, 36) * 1000 > max(self.watched_since, after):
            return found, found  # another process has noticed it first
        generation = _base36(_nanoseconds(info.ts) // 1000)
        metadata = {**info.metadata, _GENERATION: generation}
        why: object
        try:
            update = await self._stream.update({**info.config, "metadata": metadata})
        except EventBusError as exc:
            why = exc
        else:
            if update.error is None:
                return generation, generation
            why = update.error
        # Most NATS users may not change streams; the marks of positions prove the same.
        _log.info(
            "cannot store the generation of stream %s, only this process knows it: %s",
            self._stream.name,
            why,
        )
        return found, generation


def epoch_of(created: str) -> str:
    """A short identity of a stream, from its creation time (RFC 3339)."""
    moment = datetime.datetime.fromisoformat(created)
    return _base36(_nanoseconds(moment) // 1000)


def _generation_of(info: StreamInfo) -> str:
    """The generation in the metadata; empty when there is none or it is not valid."""
    found = str(info.metadata.get(_GENERATION, ""))
    return found if found.isascii() and found.isalnum() and len(found) <= _MAX_GENERATION else ""


def _nanoseconds(moment: datetime.datetime) -> int:
    return (moment - _UNIX) // datetime.timedelta(microseconds=1) * 1000


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
