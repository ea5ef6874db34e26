"""The event stream: created or checked at start, queried, and purged."""

import asyncio
import datetime
import logging
from collections.abc import (
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.attempts import SharedAttempt
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import Position
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.identity import SeenMessage, StreamIdentity, StreamState
from eventbus.drivers.nats.jetstream import (
    NANO,
    Stream,
    StreamInfo,
    placement,
)
from eventbus.drivers.nats.purges import (
    purge_lease,
    purged_of,
    with_purge,
)
from eventbus.drivers.state import StateStore

__all__ = [
    "EventStream",
    "SubjectCounts",
    "SubjectState",
    "event_stream",
]

_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
SPARE: Final = 1
"""How many messages of a channel the stream keeps beyond those that readers get.

A reader whose position is the message before those has missed all that readers get. As long as that
message exists, it proves that nothing is missing in front of them.
"""
_LATEST_S: Final = 1.0
"""How long an answer about the stream also serves those who follow what they read."""
_ANSWERS: Final = 3
"""How many answers about a subject may be behind what is known of the stream."""
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
        # It acknowledges the messages of all classes, so the strictest one decides.
        **placement(settings.retention_classes().durability),
    }
    return Stream(
        connection, config, settings.connect_timeout,
        must_match=_MUST_MATCH, may_differ=_MAY_DIFFER,
    )  # fmt: skip


class SubjectState(NamedTuple):
    """The state of a stream and one of its subjects."""

    stream: StreamState
    first: int
    """The offset of the oldest message in the stream, on any subject."""
    first_time: str
    """When that was stored, RFC 3339."""
    messages: int | None
    """How many the subject has; None if they were not counted."""
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


class _Answer(NamedTuple):
    """An answer to `EventStream.state`, kept for reads of subjects that are followed."""

    info: StreamInfo
    state: StreamState
    invalidations: int
    """How often the stream had been in doubt when it was asked."""
    at: float
    """When that was, by the event loop's clock."""


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
        self.events = f"{subjects.namespace}.event.>"
        """The filter of all its subjects."""
        self._namespace = subjects.namespace
        self._settings = settings
        self.identity = StreamIdentity(
            self.stream, self.events, on_new_epoch, seen=seen, has_subscribers=has_subscribers
        )
        self._querying = SharedAttempt()
        self._next: asyncio.Task[StreamState] | None = None
        self._latest: _Answer | None = None

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
        before = self.identity.snapshot()
        info = await self.stream.ensure()
        state = await self.identity.accept(info, before)
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
        for _ in range(_ANSWERS):
            before = self.identity.snapshot()
            info = await self._info(request)
            stream = await self.identity.accept(info, before)
            if (stream.last, stream.time) == (info.state.last_seq, info.state.last_ts):
                break
        else:
            raise self.stream.failure("its answers are behind what is known of it")
        return _of_subject(info, stream, subject, (info.state.subjects or {}).get(subject, 0))

    def followed(self, subject: str, position: Position) -> SubjectState | None:
        """The state of one event subject as of the last query of the stream; None to ask again.

        It is for a reader whose subscription has delivered everything up to `position`, and will
        deliver the rest: the stream ended there or later. Messages are not counted.
        """
        latest = self._latest
        if (
            latest is None
            or latest.at < asyncio.get_running_loop().time() - _LATEST_S
            or self.identity.is_stale
            or latest.invalidations != self.identity.snapshot().invalidations
            or not latest.state.epoch == position.epoch == self.identity.epoch
            or latest.state.last < position.offset
        ):
            return None
        return _of_subject(latest.info, latest.state, subject, None)

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
        async with purge_lease(state, self._settings.connect_timeout):
            info = await self._info()
            metadata = with_purge(info.metadata, event, offset, first=info.state.first_seq)
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
        own = asyncio.current_task()
        try:
            async with self._querying.turn():
                self._next = None  # later callers need a newer answer
                before, at = self.identity.snapshot(), asyncio.get_running_loop().time()
                info = await self._info()
        finally:
            if self._next is own:  # it failed while it waited
                self._next = None
        state = await self.identity.accept(info, before)
        if (state.last, state.time) == (info.state.last_seq, info.state.last_ts):
            self._latest = _Answer(info, state, before.invalidations, at)
        return state

    async def _info(self, request: Mapping[str, Any] | None = None) -> StreamInfo:
        return await self.stream.require_info(request)

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


def _of_subject(
    info: StreamInfo, stream: StreamState, subject: str, messages: int | None
) -> SubjectState:
    return SubjectState(
        stream,
        info.state.first_seq,
        info.state.first_ts,
        messages,
        info.max_per_subject,
        purged_of(info.config, subject),
        info.ts,
        int(info.config.get("num_replicas", 1)),
    )


def _retrieve(task: "asyncio.Task[StreamState]") -> None:
    """Mark the exception as retrieved: all callers, who raise it, may have been cancelled."""
    if not task.cancelled():
        task.exception()
