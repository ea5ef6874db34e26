"""The event stream: created or checked at start, and watched for being replaced or going back.

The stream is replaced when it is created again, which its creation time shows. It goes back in time
when its store is restored from a copy, or a power cut loses its end; the lost sequences are then
assigned again. No process need be running when that happens, so the stream may be far past its old
end when it is looked at next. But its message at a known sequence then has a different time.

A process that notices gives the stream a new generation, which is part of the epoch, and writes it
to the stream's metadata if its NATS user may. Otherwise the epoch is known to this process alone;
positions are recognized by their marks, whatever generation they name.
"""

import asyncio
import contextlib
import datetime
import logging
import secrets
from collections.abc import (
    AsyncIterator,
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.channels import Pattern, Subjects
from eventbus.config import Settings
from eventbus.drivers.marks import (
    nanoseconds,
    timestamp,
)
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.direct import StoredSubject
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.jetstream import (
    NANO,
    Stream,
    StreamInfo,
)
from eventbus.drivers.state import StateStore
from eventbus.errors import (
    ConnectionFailed,
    EventBusError,
    PublishDenied,
)

__all__ = [
    "EventStream",
    "SeenMessage",
    "StreamState",
    "SubjectCounts",
    "SubjectState",
    "epoch_of",
    "event_stream",
    "purged_of",
]

_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
SPARE: Final = 1
"""How many messages of a channel the stream keeps beyond those that readers get.

A reader whose position is the message before those has missed all that readers get. As long as that
message exists, it proves that nothing is missing in front of them.
"""
MAX_PURGE_RECORDS: Final = 200
"""Subjects with a purge record of their own; beyond, the oldest become one for all subjects."""
_PURGED: Final = "eventbus.purged"
_PURGED_OF: Final = "eventbus.purged."
_PURGE_LOCK: Final = "purging"
_PURGE_LOCK_S: Final = 30.0
_PURGE_LOCK_PAUSE_S: Final = 0.05
_GENERATION: Final = "eventbus.generation"
_MAX_GENERATION: Final = 16
_CATCH_UPS: Final = 20
_CATCH_UP_S: Final = 0.25
_UNIX: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MUST_MATCH: Final = (
    "subjects", "retention", "discard", "republish", "allow_direct", "no_ack", "sealed",
    "mirror", "sources", "subject_transform",
)  # fmt: skip
"""Settings without which history or delivery cannot work."""
_MAY_DIFFER: Final = (
    "max_msgs_per_subject", "max_age", "max_bytes", "num_replicas", "storage", "duplicate_window",
)  # fmt: skip


def event_stream(connection: NatsConnection, settings: Settings) -> Stream:
    """The event stream as the settings define it; not created yet."""
    namespace = settings.namespace
    age = int(settings.history_seconds * NANO)
    # Retries of one publish must fall into the window; the server allows none above the age.
    window = int(max(DUPLICATE_WINDOW_S, 2 * settings.publish_timeout) * NANO)
    config = {
        "name": f"{namespace.upper()}_EVENTS",
        "subjects": [f"{namespace}.event.>"],
        "republish": {"src": f"{namespace}.event.>", "dest": f"{namespace}.live.>"},
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "allow_direct": True,
        "max_msgs": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": settings.retention_classes().max_count + SPARE,
        "max_age": age,
        "max_bytes": settings.history_bytes,
        "num_replicas": settings.history_replicas,
        "duplicate_window": min(window, age),
    }
    return Stream(
        connection, config, settings.connect_timeout,
        must_match=_MUST_MATCH, may_differ=_MAY_DIFFER,
    )  # fmt: skip


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


class SubjectState(NamedTuple):
    """The state of a stream and one of its subjects."""

    stream: StreamState
    first: int
    """The offset of the oldest message in the stream, on any subject."""
    first_time: str
    """When that was stored, RFC 3339."""
    messages: int
    """How many the subject has."""
    limit: int
    """How many it may have; not above 0 for no limit."""
    purged: int
    """The offset of the last message that was purged, 0 for none."""
    time: datetime.datetime
    """When this was so, by the server's clock."""
    replicas: int
    """How many servers hold the stream."""


class SubjectCounts(NamedTuple):
    """A stream's ends, and how many messages some of its subjects have."""

    first: int
    last: int
    limit: int
    """How many messages a subject may have; not above 0 for no limit."""
    subjects: Mapping[str, int]


class _Snapshot(NamedTuple):
    """What was known when a query was sent; its answer may be older than what is known now."""

    invalidations: int
    acked: int
    known: SeenMessage
    epoch: str


class EventStream:
    """`<NAMESPACE>_EVENTS`, which captures the event subjects and republishes to the live ones."""

    def __init__(
        self,
        connection: NatsConnection,
        subjects: Subjects,
        settings: Settings,
        on_new_epoch: Callable[[int], None],
        *,
        seen: Callable[[], SeenMessage | None] = lambda: None,
        has_subscribers: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_new_epoch` is called when the stream has been replaced or has gone back.

        Its argument is the offset up to which the history is unchanged, 0 for a new stream. `seen`
        returns the last message of the stream that any subscriber got.
        """
        self.stream = event_stream(connection, settings)
        """The stream as JetStream has it."""
        self.name = self.stream.name
        self.epoch = ""
        self.base = ""
        """The epoch without its generation; identifies one creation of the stream."""
        self.watched_since = 0
        """Since when it is known not to have gone back; nanoseconds of the server's time."""
        self.acked = 0
        """The highest offset that was acknowledged to a publisher of this process."""
        self.events = f"{subjects.namespace}.event.>"
        """The filter of all its subjects."""
        self._namespace = subjects.namespace
        self._settings = settings
        self._on_new_epoch = on_new_epoch
        self._seen = seen
        self._has_subscribers = has_subscribers
        self._known = SeenMessage(0, "")
        self._shared_generation = ""
        self._leader = ""
        self._may_read = True
        self._invalidations = 0
        self._verified = 0
        self._verifying = asyncio.Lock()
        self._querying = asyncio.Lock()
        self._next: asyncio.Task[StreamState] | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the stream is to be verified; see `invalidate`."""
        return self._verified < self._invalidations

    def invalidate(self) -> None:
        """The stream may have gone back: verify it with the next answer."""
        self._invalidations += 1

    def live_of(self, event: str) -> str:
        """The live subject of an event subject."""
        return f"{self._namespace}.live.{event[len(self._namespace) + len('.event.') :]}"

    def event_of(self, live: str) -> str | None:
        """The event subject of a live subject; None for other subjects."""
        root = f"{self._namespace}.live."
        return f"{self._namespace}.event.{live[len(root) :]}" if live.startswith(root) else None

    def readable(self, limit: int) -> int:
        """How many messages of a channel readers get, of the `limit` that the stream keeps.

        All of them when somebody else has set the limit.
        """
        is_ours = 0 < limit == self.stream.config["max_msgs_per_subject"]
        return limit - SPARE if is_ours else limit

    async def ensure(self) -> StreamState:
        """Create the stream if it does not exist, and check the existing one.

        Raises StreamMismatch, listing the differences, when history or delivery cannot work, and
        ConnectionFailed. Different limits are logged. Nothing is changed, except that the limit per
        channel is raised to that of the largest retention class.
        """
        before = self._snapshot
        info = await self.stream.ensure()
        state = await self._accept(info, before)
        found = await self._with_room(info)
        if limits := self.stream.require_match(found):
            _log.warning("stream %s has different limits, which apply: %s",
                         self.name, "; ".join(limits))  # fmt: skip
        return state

    async def state(self) -> StreamState:
        """The stream's state, queried after this call; concurrent calls share one query.

        Raises ConnectionFailed.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._state(), name="eventbus-stream-state")
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def of_subject(self, subject: str) -> SubjectState:
        """The state of one event subject. Raises ConnectionFailed.

        Messages of a filter are not counted: the answer would list all of its subjects.
        """
        request = {} if "*" in subject or ">" in subject else {"subjects_filter": subject}
        before = self._snapshot
        info = await self._info(request)
        stream = await self._accept(info, before)
        return SubjectState(
            stream,
            info.state.first_seq,
            info.state.first_ts,
            (info.state.subjects or {}).get(subject, 0),
            info.max_per_subject,
            purged_of(info.config, subject),
            info.ts,
            int(info.config.get("num_replicas", 1)),
        )

    async def counts(self, event_filter: str) -> SubjectCounts:
        """How many messages the matching subjects have. Raises ConnectionFailed."""
        info = await self._info({"subjects_filter": event_filter})
        state = info.state
        return SubjectCounts(
            state.first_seq, state.last_seq, info.max_per_subject, state.subjects or {}
        )

    async def first(self) -> int:
        """The offset of the oldest message, on any subject. Raises ConnectionFailed."""
        return (await self._info()).state.first_seq

    async def record_purge(self, event: str, offset: int, state: StateStore) -> None:
        """Record in the metadata that a subject is purged up to an offset.

        `state` has the lock that serializes such updates. Raises ConnectionFailed.
        """
        seconds = self._settings.connect_timeout
        async with asyncio.timeout(seconds), _purge_lock(state, seconds):
            info = await self._info()
            metadata = _with_purge(info.metadata, event, offset, first=info.state.first_seq)
            updated = await self.stream.update({**info.config, "metadata": metadata})
            if updated.error is not None:
                raise self.stream.failure(updated.error)

    async def purge(self, event: str, offset: int) -> int:
        """Delete a subject's messages up to an offset; how many. Raises ConnectionFailed."""
        return await self.stream.purge({"filter": event, "seq": offset + 1})

    async def aclose(self) -> None:
        """Stop a query that is under way."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def _state(self) -> StreamState:
        async with self._querying:
            self._next = None  # later callers need a newer answer
            before = self._snapshot
            info = await self._info()
        return await self._accept(info, before)

    @property
    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self._invalidations, self.acked, self._known, self.epoch)

    async def _info(self, request: Mapping[str, Any] | None = None) -> StreamInfo:
        return await self.stream.require_info(request)

    async def _accept(self, info: StreamInfo, before: _Snapshot) -> StreamState:
        """The state in an answer, once it is known which stream it is from; see the module.

        `before` is what was known when the query was sent. Raises ConnectionFailed.
        """
        if not self._is_same(info):
            async with self._verifying:
                await self._recognize(info, before)
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
            and (state.last_seq > known.offset or (state.last_seq, state.last_ts) == known)
        )

    async def _recognize(self, info: StreamInfo, before: _Snapshot) -> None:
        base = epoch_of(info.created)
        is_behind = info.state.last_seq < max(self._known.offset, before.acked)
        if before.epoch != self.epoch or (self.base == base and is_behind):
            info, before = await self._fresh(info, before)
            base = epoch_of(info.created)
        is_first, is_new = not self.base, self.base != base
        shared = generation = _generation_of(info)
        gone_back = None if is_new else await self._gone_back(info, before)
        if gone_back is not None:
            shared, generation = await self._renew(info)
        last = SeenMessage(info.state.last_seq, info.state.last_ts)
        if is_new or gone_back is not None or last.offset > self._known.offset:
            self._known = last
        self._leader = info.cluster.leader
        self._verified = max(self._verified, before.invalidations)
        if is_new or gone_back is not None:
            self.acked = 0
            self.watched_since = _nanoseconds(info.ts)
        elif shared == self._shared_generation or self._has_subscribers():
            # Another process noticed first; subscribers here cannot have missed anything.
            self._shared_generation = shared
            return
        self.base, self._shared_generation = base, shared
        self.epoch = f"{base}.{generation}" if generation else base
        if gone_back is not None:
            _log.warning(
                "stream %s has gone back: it has lost everything after offset %d, and continues "
                "from there with epoch %s", self.name, gone_back, self.epoch,
            )  # fmt: skip
        elif not is_first:
            _log.warning("stream %s was replaced, its epoch is now %s", self.name, self.epoch)
        if not is_first:
            same = 0 if is_new else info.state.last_seq
            self._on_new_epoch(same if gone_back is None else gone_back)

    async def _fresh(self, info: StreamInfo, before: _Snapshot) -> tuple[StreamInfo, _Snapshot]:
        """A newer answer, for one that is behind what is known.

        Concurrent answers may arrive out of order, and a leader that has just been elected may not
        have applied all that it was given.
        """
        for _ in range(_CATCH_UPS if info.is_replicated else 1):
            asked = self._snapshot
            newer = await self.stream.info()
            if newer.error is not None:
                break
            info, before = newer, asked
            if info.state.last_seq >= max(before.known.offset, before.acked):
                break
            await asyncio.sleep(_CATCH_UP_S)
        return info, before

    async def _gone_back(self, info: StreamInfo, before: _Snapshot) -> int | None:
        """The offset to which the stream has gone back; None when nothing shows that it has."""
        known, last = before.known, info.state.last_seq
        events = StoredSubject(
            self.stream, self.events,
            first=info.state.first_seq, last=info.state.last_seq, is_replicated=info.is_replicated,
        )  # fmt: skip
        # Anyone can publish what looks like a message that was seen: a later one has to prove it.
        for seen in (known, self._seen()):
            if seen and (same := await self._same_up_to(events, info, seen)) is not None:
                return same
        if known.offset > last:
            return last  # nothing has been stored since
        # The times of acknowledged messages are not known: some after the known one may be new.
        return known.offset if before.acked > last else None

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
            if not isinstance(exc, PublishDenied) and not isinstance(exc.__cause__, PublishDenied):
                raise
            # The offsets alone show less.
            _log.info("stream %s: cannot check whether it has gone back: %s", self.name, exc)
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

    async def _renew(self, info: StreamInfo) -> tuple[str, str]:
        """A generation for a stream that has gone back: that in the metadata, and the current one.

        They are equal when the NATS user may change the stream, or another process has done so.
        """
        found = _generation_of(info)
        if found and int(found, 36) * 1000 > self.watched_since:
            return found, found  # another process noticed after this one began to watch
        generation = _base36(_nanoseconds(info.ts) // 1000)
        metadata = {**info.metadata, _GENERATION: generation}
        why: object
        try:
            update = await self.stream.update({**info.config, "metadata": metadata})
        except EventBusError as exc:
            why = exc
        else:
            if update.error is None:
                return generation, generation
            why = update.error
        # Most NATS users may not change streams; the marks of positions prove the same.
        _log.info(
            "cannot store the generation of stream %s, only this process knows it: %s",
            self.name,
            why,
        )
        return found, generation

    async def _with_room(self, info: StreamInfo) -> dict[str, Any]:
        """Raise the limit per channel to that of the largest class: classes copy from here."""
        wanted, actual = self.stream.config["max_msgs_per_subject"], info.max_per_subject
        if not self._settings.retention or not 0 < actual < wanted:
            return info.config
        updated = await self.stream.update({**info.config, "max_msgs_per_subject": wanted})
        if updated.error is not None:
            _log.warning("stream %s cannot keep %d messages per channel: %s",
                         self.name, wanted, updated.error)  # fmt: skip
            return info.config
        _log.info("stream %s now keeps %d messages per channel", self.name, wanted)
        return updated.config


def purged_of(config: Mapping[str, Any], subject: str) -> int:
    """The offset up to which a subject was purged, according to the stream's configuration.

    For a filter, the highest of the matching subjects.
    """
    metadata = config.get("metadata") or {}
    offsets = [int(metadata.get(_PURGED, 0)), int(metadata.get(_PURGED_OF + subject, 0))]
    if "*" in subject or ">" in subject:
        pattern = Pattern(subject)
        offsets += [
            int(offset)
            for name, offset in metadata.items()
            if name.startswith(_PURGED_OF) and pattern.match(name[len(_PURGED_OF) :]) is not None
        ]
    return max(offsets)


def _with_purge(
    metadata: Mapping[str, str], event: str, offset: int, *, first: int
) -> dict[str, str]:
    """Metadata with one more purge record; `first` is the stream's oldest offset."""
    purges = {key: int(value) for key, value in metadata.items() if key.startswith(_PURGED_OF)}
    purges[_PURGED_OF + event] = max(offset, purges.get(_PURGED_OF + event, 0))
    # A purge of what the stream has given up anyway needs no record.
    purges = {key: value for key, value in purges.items() if value >= first}
    of_all = int(metadata.get(_PURGED, 0))
    while len(purges) > MAX_PURGE_RECORDS:
        oldest = min(purges, key=purges.__getitem__)
        of_all = max(of_all, purges.pop(oldest))
    if of_all >= max(first, 1):
        purges[_PURGED] = of_all
    others = {key: value for key, value in metadata.items() if not key.startswith(_PURGED)}
    return others | {key: str(value) for key, value in purges.items()}


@contextlib.asynccontextmanager
async def _purge_lock(state: StateStore, seconds: float) -> AsyncIterator[None]:
    """Exclude other purges: the metadata are read, and then written as a whole.

    Waits at most `seconds`. Raises ConnectionFailed.
    """
    token = secrets.token_hex(8).encode()
    deadline = asyncio.get_running_loop().time() + seconds
    while not await state.claim(_PURGE_LOCK, token, ttl_s=_PURGE_LOCK_S):
        if asyncio.get_running_loop().time() > deadline:
            raise ConnectionFailed("another purge has been running for too long", driver=DRIVER)
        await asyncio.sleep(_PURGE_LOCK_PAUSE_S)
    try:
        yield
    finally:
        await state.delete(_PURGE_LOCK)


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


def _retrieve(task: "asyncio.Task[StreamState]") -> None:
    """Mark the exception as retrieved: all callers, who raise it, may have been cancelled."""
    if not task.cancelled():
        task.exception()
