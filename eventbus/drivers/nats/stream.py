"""The stream of events: made or checked at the start, and watched for being another one.

It is another one when it was made anew, which its time of creation shows, and when it has gone back
in time: its store was restored from a copy, or a power cut took its end. Then the sequences that
were lost are given out again. Nobody need be running to see it go back, so that it may be far past
the old end when it is looked at; but what it has at a known sequence was stored at another time.
Who notices gives the stream a new generation, which is a part of the epoch, and writes it into the
stream's metadata where the NATS user may. Where it may not, the epoch is of this process alone;
positions are recognized by their marks, whatever generation they name.
"""

import asyncio
import datetime
import logging
from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.marks import (
    nanoseconds,
    timestamp,
)
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    ApiError,
)
from eventbus.drivers.nats.jetstream import (
    NAME_IN_USE,
    STREAM_NOT_FOUND,
    StoredSubject,
    ask,
    purged_of,
)
from eventbus.errors import (
    ConnectionFailed,
    EventBusError,
    PublishDenied,
    StreamMismatch,
)

__all__ = [
    "EventStream",
    "Point",
    "StreamState",
    "SubjectState",
    "differences",
    "epoch_of",
    "stream_config",
]


_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
SPARE: Final = 1
"""How many messages of a channel the stream keeps beyond those that are given to readers.

Who stands at the last message before those has missed as many as are given. That nothing is
missing in front of them can be seen as long as that one message is still there.
"""
_MAX_GENERATION: Final = 16
_CATCH_UPS: Final = 20
_CATCH_UP_S: Final = 0.25
_GENERATION: Final = "eventbus.generation"
_NANO: Final = 1_000_000_000
_UNIX: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_HINTS: Final = {
    10047: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10023: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10065: "another stream captures these subjects: set BROADCAST_CHANNELS_PREFIX to another "
    "namespace, or remove that stream",
    10074: "BROADCAST_HISTORY_REPLICAS needs a cluster of as many servers",
    10052: "see BROADCAST_HISTORY_SECONDS and its neighbours",
}
_MUST_FIT: Final = (
    "subjects", "retention", "discard", "republish", "allow_direct", "no_ack", "sealed",
    "mirror", "sources", "subject_transform",
)  # fmt: skip
"""Settings under which history or delivery cannot work when they are others."""
_MAY_DIFFER: Final = (
    "max_msgs_per_subject", "max_age", "max_bytes", "num_replicas", "storage", "duplicate_window",
)  # fmt: skip


class Point(NamedTuple):
    """A message that was seen in the stream."""

    offset: int
    time: str
    """When the stream stored it, RFC 3339; empty where that is not known."""


class StreamState(NamedTuple):
    """What a stream says of itself."""

    epoch: str
    last: int
    """The offset of its last message, 0 in an empty stream that is new."""
    time: str = ""
    """When that was stored, RFC 3339."""


class SubjectState(NamedTuple):
    """What a stream says of one subject."""

    stream: StreamState
    first: int
    """The offset of the oldest message in the stream, on whatever subject."""
    first_time: str
    """When that was stored, RFC 3339."""
    messages: int
    """How many the subject has."""
    limit: int
    """How many it may have; not above 0 for as many as there are."""
    purged: int
    """The offset of the last message that was purged, 0 where none was."""
    time: datetime.datetime
    """When it was so, by the server's clock."""
    replicas: int
    """How many servers hold the stream."""


class Counted(NamedTuple):
    """A stream's ends, and how many messages some of its subjects have."""

    first: int
    last: int
    limit: int
    """How many messages a subject may have; not above 0 for as many as there are."""
    subjects: Mapping[str, int]


class _State(msgspec.Struct):
    first_seq: int = 0
    first_ts: str = ""
    last_seq: int = 0
    last_ts: str = ""
    subjects: dict[str, int] | None = None


class _Cluster(msgspec.Struct):
    leader: str = ""


class _Answer(msgspec.Struct):
    config: dict[str, Any] = {}
    created: str = ""
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    ts: datetime.datetime = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    state: _State = msgspec.field(default_factory=_State)
    error: ApiError | None = None


class _Before(NamedTuple):
    """What was known when a question was asked: an answer may be older than what is known now."""

    doubts: int
    acked: int
    known: Point
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
        seen: Callable[[], Point | None] = lambda: None,
        is_heard: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_new_epoch` is called when the stream has become another one.

        It gets the offset up to which the new one is as the old one was, 0 for one that was made
        anew. `seen` gives the last message of the stream that any listener got.
        """
        self.name = f"{subjects.namespace.upper()}_EVENTS"
        self.epoch = ""
        self.base = ""
        """The epoch without its generation: which creation of the stream it is."""
        self.watched_since = 0
        """Since when it has been known not to have gone back; nanoseconds of the server's time."""
        self._connection = connection
        self._settings = settings
        self._on_new_epoch = on_new_epoch
        self._seen = seen
        self._is_heard = is_heard
        self.acked = 0
        """The highest offset that a publisher of this process was told."""
        self._known = Point(0, "")
        self._shared = ""
        self._leader = ""
        self._may_read = True
        self._doubts = 0
        self._settled = 0
        self._checking = asyncio.Lock()
        self._namespace = subjects.namespace
        self.events = f"{subjects.namespace}.event.>"
        """The filter of all that it has."""
        self._config = stream_config(subjects.namespace, settings)
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[StreamState] | None = None

    def live_of(self, event: str) -> str:
        """The live subject of an event's that the stream has."""
        return f"{self._namespace}.live.{event[len(self._namespace) + len('.event.') :]}"

    async def ensure(self) -> StreamState:
        """Make the stream where there is none, and check the one that there is.

        Raises StreamMismatch, listing what differs where history or delivery cannot work, and
        ConnectionFailed. Limits that differ are logged. Nothing is altered, but that the stream is
        given room for as many messages of a channel as a retention class has.
        """
        before = self._before
        answer = await self._ask("INFO")
        if answer.error is not None and answer.error.err_code == STREAM_NOT_FOUND:
            answer = await self._ask("CREATE", self._config)
            if answer.error is not None and answer.error.err_code == NAME_IN_USE:
                answer = await self._ask("INFO")  # another process was first
            elif answer.error is None:
                _log.info("stream %s was made", self.name)
        if answer.error is not None:
            hint = _HINTS.get(answer.error.err_code, "")
            raise StreamMismatch(
                f"stream {self.name} cannot be made: {answer.error}"
                + (f"; {hint}" if hint else ""),
                driver=DRIVER,
            )
        state = await self._take(answer, before)
        self._check(await self._with_room(answer.config))
        return state

    def doubt(self) -> None:
        """The stream may have gone back: the next answer about it is checked."""
        self._doubts += 1

    @property
    def is_doubted(self) -> bool:
        """Whether that is still to be done."""
        return self._settled < self._doubts

    def given_of(self, limit: int) -> int:
        """How many messages of a channel are given to readers, of those that the stream may have.

        All of a stream whose limit somebody else has set.
        """
        is_ours = 0 < limit == self._config["max_msgs_per_subject"]
        return limit - SPARE if is_ours else limit

    async def state(self) -> StreamState:
        """The stream's present state, asked for after this call; concurrent calls share one.

        Raises ConnectionFailed.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._state(), name="eventbus-stream-state")
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    def event_of(self, live: str) -> str | None:
        """The subject under which the messages of a live subject are stored; None for others."""
        root = f"{self._namespace}.live."
        return f"{self._namespace}.event.{live[len(root) :]}" if live.startswith(root) else None

    async def of_subject(self, subject: str) -> SubjectState:
        """The state of what is stored on one event subject. Raises ConnectionFailed.

        Of a filter, the messages are not counted: the answer would name each of its subjects.
        """
        counted = {} if "*" in subject or ">" in subject else {"subjects_filter": subject}
        before = self._before
        answer = await self._ask("INFO", counted)
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        stream = await self._take(answer, before)
        return SubjectState(
            stream,
            answer.state.first_seq,
            answer.state.first_ts,
            (answer.state.subjects or {}).get(subject, 0),
            answer.config.get("max_msgs_per_subject", -1),
            purged_of(answer.config, subject),
            answer.ts,
            answer.config.get("num_replicas", 1),
        )

    async def counted(self, event_filter: str) -> "Counted":
        """What the subjects that match have, and where the stream is. Raises ConnectionFailed."""
        answer = await self._ask("INFO", {"subjects_filter": event_filter})
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        state = answer.state
        limit = answer.config.get("max_msgs_per_subject", -1)
        return Counted(state.first_seq, state.last_seq, limit, state.subjects or {})

    async def first(self) -> int:
        """The offset of the oldest message, on whatever subject. Raises ConnectionFailed."""
        answer = await self._ask("INFO")
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return answer.state.first_seq

    async def counts(self, event_filter: str) -> dict[str, int]:
        """How many messages the subjects that match have. Raises ConnectionFailed."""
        answer = await self._ask("INFO", {"subjects_filter": event_filter})
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return answer.state.subjects or {}

    async def aclose(self) -> None:
        """Stop asking."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    async def _state(self) -> StreamState:
        async with self._asking:
            self._next = None  # from here on, the question may be older than who asks
            before = self._before
            answer = await self._ask("INFO")
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return await self._take(answer, before)

    @property
    def _before(self) -> _Before:
        """What is known when a question is asked."""
        return _Before(self._doubts, self.acked, self._known, self.epoch)

    async def _take(self, answer: _Answer, before: _Before) -> StreamState:
        """What an answer says, when it is known which stream says it; see the module.

        `before` is what was known when it was asked for. Raises ConnectionFailed.
        """
        if not self._is_same(answer):
            async with self._checking:
                await self._recognize(answer, before)
        elif answer.state.last_seq > self._known.offset:
            self._known = Point(answer.state.last_seq, answer.state.last_ts)
        return StreamState(self.epoch, answer.state.last_seq, answer.state.last_ts)

    def _is_same(self, answer: _Answer) -> bool:
        """Whether nothing speaks for another stream, and nobody doubts it."""
        known, state = self._known, answer.state
        return (
            not self.is_doubted
            and epoch_of(answer.created) == self.base
            and _generation_of(answer) == self._shared
            and answer.cluster.leader == self._leader
            and (state.last_seq > known.offset or (state.last_seq, state.last_ts) == known)
        )

    async def _recognize(self, answer: _Answer, before: _Before) -> None:
        base = epoch_of(answer.created)
        is_behind = answer.state.last_seq < max(self._known.offset, before.acked)
        if before.epoch != self.epoch or (self.base == base and is_behind):
            answer, before = await self._fresh(answer, before)
            base = epoch_of(answer.created)
        is_first, is_new = not self.base, self.base != base
        shared = generation = _generation_of(answer)
        gone_back = None if is_new else await self._gone_back(answer, before)
        if gone_back is not None:
            shared, generation = await self._renew(answer)
        last = Point(answer.state.last_seq, answer.state.last_ts)
        if is_new or gone_back is not None or last.offset > self._known.offset:
            self._known = last
        self._leader = answer.cluster.leader
        self._settled = max(self._settled, before.doubts)
        if is_new or gone_back is not None:
            self.acked = 0
            self.watched_since = _nanoseconds(answer.ts)
        elif shared == self._shared or self._is_heard():
            # Another has noticed what this process cannot have missed: its listeners go on.
            self._shared = shared
            return
        self.base, self._shared = base, shared
        self.epoch = f"{base}.{generation}" if generation else base
        if gone_back is not None:
            _log.warning(
                "stream %s has gone back: of what it had, nothing after offset %d is there; its "
                "offsets go on from there under the epoch %s", self.name, gone_back, self.epoch,
            )  # fmt: skip
        elif not is_first:
            _log.warning("stream %s is another one now, of the epoch %s", self.name, self.epoch)
        if not is_first:
            same = 0 if is_new else answer.state.last_seq
            self._on_new_epoch(same if gone_back is None else gone_back)

    async def _fresh(self, answer: _Answer, before: _Before) -> tuple[_Answer, _Before]:
        """A newer answer than one that is behind what is known.

        Of answers that were under way together, that may be the older one; and a leader that was
        elected a moment ago may not have applied all that it has been given.
        """
        for _ in range(_CATCH_UPS if answer.config.get("num_replicas", 1) > 1 else 1):
            asked = self._before
            newer = await self._ask("INFO")
            if newer.error is not None:
                break
            answer, before = newer, asked
            if answer.state.last_seq >= max(before.known.offset, before.acked):
                break
            await asyncio.sleep(_CATCH_UP_S)
        return answer, before

    async def _gone_back(self, answer: _Answer, before: _Before) -> int | None:
        """The offset to which the stream has gone back; None where nothing shows that it has."""
        known, last = before.known, answer.state.last_seq
        events = StoredSubject(
            self._connection, self.name, self.events,
            first=answer.state.first_seq, last=answer.state.last_seq, messages=0,
            is_replicated=answer.config.get("num_replicas", 1) > 1,
        )  # fmt: skip
        # Anyone may publish what looks like a message that was seen: a later one has to show it.
        for point in (known, self._seen()):
            if point and (same := await self._same_up_to(events, answer, point)) is not None:
                return same
        if known.offset > last:
            return last  # nothing has been stored since
        # Of what was acknowledged, the time is not known: some after the known may be new.
        return known.offset if before.acked > last else None

    async def _same_up_to(self, events: StoredSubject, answer: _Answer, point: Point) -> int | None:
        """Where another history begins, if a message shows it that was stored after the point."""
        stored = nanoseconds(point.time)
        # A process that only publishes need not have the right to read.
        if not point.offset or stored is None or not self._may_read or not self._is_heard():
            return None
        try:
            is_there = point.offset <= answer.state.last_seq
            if is_there and not await self._may_differ(events, answer, point):
                return None
            later = await events.since(timestamp(stored + 1))
        except EventBusError as exc:
            if not isinstance(exc, PublishDenied) and not isinstance(exc.__cause__, PublishDenied):
                raise
            # By the offsets alone, it notices less.
            _log.info("stream %s: whether it has gone back is not looked at: %s", self.name, exc)
            self._may_read = False
            return None
        return later.offset - 1 if later is not None and later.offset <= point.offset else None

    async def _may_differ(self, events: StoredSubject, answer: _Answer, point: Point) -> bool:
        """Whether a message that was seen is not, as far as can be seen, where it was."""
        stored = nanoseconds(point.time)
        there = await events.at(point.offset)
        if there is not None:
            return nanoseconds(there.time) != stored
        # The time of the last message stays when the message is gone.
        is_last = point.offset == answer.state.last_seq
        return not is_last or nanoseconds(answer.state.last_ts) != stored

    async def _renew(self, answer: _Answer) -> tuple[str, str]:
        """A generation for a stream that has gone back: as the metadata have it, and the present.

        They are the same where the NATS user may change the stream, or somebody else has done so.
        """
        found = _generation_of(answer)
        if found and int(found, 36) * 1000 > self.watched_since:
            return found, found  # made since this process watches: somebody has noticed before
        generation = _base36(_nanoseconds(answer.ts) // 1000)
        metadata = {**(answer.config.get("metadata") or {}), _GENERATION: generation}
        why: object
        try:
            update = await self._ask("UPDATE", {**answer.config, "metadata": metadata})
        except EventBusError as exc:
            why = exc
        else:
            if update.error is None:
                return generation, generation
            why = update.error
        # Most users of NATS may not change streams: the marks of positions tell the same.
        _log.info("the generation of stream %s stays with this process: %s", self.name, why)
        return found, generation

    async def _ask(self, what: str, question: Mapping[str, Any] | None = None) -> _Answer:
        """The API's answer, waited for as long as a start may take."""
        request = f"STREAM.{what}.{self.name}"
        answer = await ask(self._connection, request, question, self._settings.connect_timeout)
        return msgspec.convert(answer.body, _Answer)

    async def _with_room(self, found: dict[str, Any]) -> dict[str, Any]:
        """Let the stream keep as many messages of a channel as any class: there is the newest."""
        wanted, actual = self._config["max_msgs_per_subject"], found.get("max_msgs_per_subject", -1)
        if not self._settings.retention or not 0 < actual < wanted:
            return found
        answer = await self._ask("UPDATE", {**found, "max_msgs_per_subject": wanted})
        if answer.error is not None:
            _log.warning("stream %s cannot keep %d messages of a channel: %s",
                         self.name, wanted, answer.error)  # fmt: skip
            return found
        _log.info("stream %s keeps %d messages of a channel now", self.name, wanted)
        return answer.config

    def _check(self, found: dict[str, Any]) -> None:
        wrong, others = differences(self._config, found)
        if wrong:
            raise StreamMismatch(
                f"stream {self.name} exists with settings that cannot work: {'; '.join(wrong)}. "
                "Alter it, remove it, or set BROADCAST_CHANNELS_PREFIX to another namespace",
                driver=DRIVER,
            )
        if others:
            _log.warning(
                "stream %s exists with other limits, which hold: %s", self.name, "; ".join(others)
            )


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """What differs so that history or delivery cannot work, and what differs only in limits."""
    wrong = [line for name in _MUST_FIT if (line := _difference(name, wanted, found))]
    return wrong, [line for name in _MAY_DIFFER if (line := _difference(name, wanted, found))]


def _difference(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    expected, actual = wanted.get(name) or None, found.get(name) or None
    if name == "discard":
        actual = actual or "old"
    if expected == actual:
        return ""
    return f"{name} is {msgspec.json.encode(actual).decode()}, not " + (
        msgspec.json.encode(expected).decode()
    )


def epoch_of(created: str) -> str:
    """A short name of a stream's identity, from the time at which it was made (RFC 3339)."""
    moment = datetime.datetime.fromisoformat(created)
    return _base36(_nanoseconds(moment) // 1000)


def _generation_of(answer: _Answer) -> str:
    """The generation that the metadata have; empty for none, and for what is no generation."""
    found = str((answer.config.get("metadata") or {}).get(_GENERATION, ""))
    return found if found.isascii() and found.isalnum() and len(found) <= _MAX_GENERATION else ""


def _nanoseconds(moment: datetime.datetime) -> int:
    return (moment - _UNIX) // datetime.timedelta(microseconds=1) * 1000


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def stream_config(namespace: str, settings: Settings) -> dict[str, Any]:
    """The event stream as the settings want it: what JetStream's API is given to make it."""
    age = int(settings.history_seconds * _NANO)
    # Retries of one publish must fall into the window; the server allows none above the age.
    window = int(max(DUPLICATE_WINDOW_S, 2 * settings.publish_timeout) * _NANO)
    return {
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


def _retrieve(task: "asyncio.Task[StreamState]") -> None:
    """Mark the exception as seen: those who wait raise it, and there may be none left."""
    if not task.cancelled():
        task.exception()
