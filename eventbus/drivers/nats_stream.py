"""The stream of events: made or checked at the start, and watched for being another one."""

import asyncio
import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.nats_api import NAME_IN_USE, STREAM_NOT_FOUND, ask
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER, ApiError
from eventbus.drivers.nats_marks import purged_of
from eventbus.errors import ConnectionFailed, StreamMismatch

__all__ = [
    "EventStream",
    "StreamState",
    "SubjectState",
    "differences",
    "epoch_of",
    "stream_config",
]

_log = logging.getLogger(__name__)

DUPLICATE_WINDOW_S: Final = 120.0
_NANO: Final = 1_000_000_000
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


class StreamState(NamedTuple):
    """What a stream says of itself."""

    epoch: str
    last: int
    """The offset of its last message, 0 in an empty stream that is new."""


class SubjectState(NamedTuple):
    """What a stream says of one subject."""

    stream: StreamState
    first: int
    """The offset of the oldest message in the stream, on whatever subject."""
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
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _Answer(msgspec.Struct):
    config: dict[str, Any] = {}
    created: str = ""
    ts: datetime.datetime = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    state: _State = msgspec.field(default_factory=_State)
    error: ApiError | None = None


class EventStream:
    """`<NAMESPACE>_EVENTS`, which captures the event subjects and republishes to the live ones."""

    def __init__(
        self,
        connection: NatsConnection,
        subjects: Subjects,
        settings: Settings,
        on_new_epoch: Callable[[], None],
    ) -> None:
        """`on_new_epoch` is called when the stream has become another one."""
        self.name = f"{subjects.namespace.upper()}_EVENTS"
        self.epoch = ""
        self.last = 0
        self._connection = connection
        self._settings = settings
        self._on_new_epoch = on_new_epoch
        self._namespace = subjects.namespace
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
        state = self._take(answer)
        self._check(await self._with_room(answer.config))
        return state

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
        answer = await self._ask("INFO", counted)
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        stream = self._take(answer)
        return SubjectState(
            stream,
            answer.state.first_seq,
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
            answer = await self._ask("INFO")
        if answer.error is not None:
            raise ConnectionFailed(f"stream {self.name}: {answer.error}", driver=DRIVER)
        return self._take(answer)

    def _take(self, answer: _Answer) -> StreamState:
        state = StreamState(epoch_of(answer.created), answer.state.last_seq)
        known, self.epoch, self.last = self.epoch, state.epoch, state.last
        if known and known != state.epoch:
            _log.warning("stream %s is another one now; its offsets begin again", self.name)
            self._on_new_epoch()
        return state

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
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    number = since // datetime.timedelta(microseconds=1)
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
        "max_msgs_per_subject": settings.retention_classes().max_count,
        "max_age": age,
        "max_bytes": settings.history_bytes,
        "num_replicas": settings.history_replicas,
        "duplicate_window": min(window, age),
    }


def _retrieve(task: "asyncio.Task[StreamState]") -> None:
    """Mark the exception as seen: those who wait raise it, and there may be none left."""
    if not task.cancelled():
        task.exception()
