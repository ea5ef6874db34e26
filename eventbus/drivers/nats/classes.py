"""Streams of retention classes: what the stream of events keeps of some channels, for longer.

Each copies the messages of its channels from the stream of events, by a source with a filter. It
is no mirror: the server lets every mirror answer direct gets in the place of its origin, whose
other channels a filtered one does not have. A copy has sequences of its own; the offset of each
message stands in its header `Nats-Stream-Source`
(https://docs.nats.io/nats-concepts/jetstream/source_and_mirror).
"""

import hashlib
import logging
import re
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.channels import Subjects
from eventbus.config import Settings
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
)
from eventbus.drivers.nats.stream import (
    DUPLICATE_WINDOW_S,
    SPARE,
    EventStream,
)
from eventbus.errors import (
    ConnectionFailed,
    StreamMismatch,
)
from eventbus.retention import RetentionClass

__all__ = ["ClassStreams", "Copy"]


_log = logging.getLogger(__name__)

_NANO: Final = 1_000_000_000
_NO_END: Final = 2**63 - 1
_EPOCH: Final = "eventbus.epoch"
_SINCE: Final = "eventbus.since"
_SILENT: Final = 5 * _NANO
"""A source that is well is heard of each second."""
_LIMITS: Final = (
    "max_msgs_per_subject", "max_age", "max_bytes", "num_replicas", "duplicate_window",
)  # fmt: skip


class _State(msgspec.Struct):
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _Source(msgspec.Struct):
    lag: int = 0
    active: int = -1


class _Answer(msgspec.Struct):
    config: dict[str, Any] = {}
    state: _State = msgspec.field(default_factory=_State)
    sources: list[_Source] = []
    error: ApiError | None = None


class Copy(NamedTuple):
    """What the stream of a class has of one subject."""

    subject: StoredSubject
    all_of_class: StoredSubject
    limit: int
    """How many messages of a subject it keeps."""
    since: int
    """It has had all from that offset on, but for what went by its limits."""
    has_first: bool
    """Whether nothing has gone by age or size, which take the oldest of the whole class."""
    is_fresh: bool
    """Whether it copies what comes, and is not behind by more than the origin keeps."""

    async def has_all_after(self, offset: int) -> bool:
        """Whether it is proved that nothing after that offset is missing, but the newest."""
        if not self.is_fresh:
            return False
        if self.subject.messages < self.limit:
            if self.has_first:
                return self.since <= offset + 1
            first = await self.all_of_class.oldest()
            if first is not None and max(first.offset, self.since) <= offset + 1:
                return True
        oldest = await self.subject.oldest()
        return oldest is not None and oldest.offset <= offset


class ClassStreams:
    """The streams of those classes whose messages outlive the stream of events."""

    def __init__(
        self,
        connection: NatsConnection,
        stream: EventStream,
        subjects: Subjects,
        settings: Settings,
    ) -> None:
        self.retention = settings.retention_classes()
        self._connection = connection
        self._stream = stream
        self._root = f"{subjects.namespace}.event."
        self._timeout = settings.connect_timeout
        self._configs = {
            one: _config(stream.name, subjects, one, settings)
            for one in self.retention.classes
            if one.seconds > settings.history_seconds or one.max_bytes is not None
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The streams' names."""
        return tuple(config["name"] for config in self._configs.values())

    def of(self, event_subject: str) -> RetentionClass | None:
        """What holds for a subject beyond what its stream does by itself; None for nothing."""
        if not self.retention.classes:
            return None
        return self.retention.of(event_subject[len(self._root) :])

    async def ensure(self) -> None:
        """Make or alter the streams. Raises ConnectionFailed, and StreamMismatch."""
        for one in self._configs:
            await self._ensure(one)

    async def go_back(self, offset: int) -> None:
        """Make those anew that have what the stream has lost; it has gone back to an offset.

        Raises ConnectionFailed, and StreamMismatch.
        """
        for kept, config in self._configs.items():
            copy = await self.copy(kept, self._stream.events)
            if copy is not None and await self._has_lost(copy, offset):
                _log.warning("stream %s has messages that %s has lost, and is made anew",
                             config["name"], self._stream.name)  # fmt: skip
                await self._ask("DELETE", config["name"])
                await self._ensure(kept)

    async def _has_lost(self, copy: Copy, offset: int) -> bool:
        """Whether the first message after an offset is another one than the origin's.

        Where the origin has none there, it has expired: a class keeps messages for longer.
        """
        copied = await copy.all_of_class.after(offset, _NO_END, 1)
        if not copied:
            return False
        at = copied[0].offset
        origin = StoredSubject(
            self._connection, self._stream.name, self._stream.events, first=0, last=at, messages=0
        )
        there = await origin.after(at - 1, at, 1)
        return bool(there) and there[0].payload != copied[0].payload

    async def copy(self, kept: RetentionClass, subject: str) -> Copy | None:
        """What a class's stream has of a subject; None where the class has no stream.

        Raises ConnectionFailed, and StreamMismatch.
        """
        config = self._configs.get(kept)
        if config is None:
            return None
        name = config["name"]
        answer = await self._ask("INFO", name, {"subjects_filter": subject})
        if answer.error is not None or not self._is_ours(answer.config):
            await self._ensure(kept)
            answer = await self._ask("INFO", name, {"subjects_filter": subject})
            if answer.error is not None:
                raise ConnectionFailed(f"stream {name}: {answer.error}", driver=DRIVER)
        state, source = answer.state, (answer.sources or [_Source()])[0]

        def stored(of: str, messages: int) -> StoredSubject:
            return StoredSubject(
                self._connection, name, of,
                first=state.first_seq, last=state.last_seq, messages=messages, is_copy=True,
                is_replicated=answer.config.get("num_replicas", 1) > 1 and of != ">",
            )  # fmt: skip

        return Copy(
            stored(subject, (state.subjects or {}).get(subject, 0)),
            stored(">", 1),
            int(answer.config.get("max_msgs_per_subject", kept.messages + SPARE)),
            int(answer.config["metadata"].get(_SINCE, 0)),
            state.first_seq <= 1,
            0 <= source.active < _SILENT and source.lag < self.retention.max_count,
        )

    async def purge(self, subject: str, offset: int) -> None:
        """Remove what the class's stream has of a subject up to an offset, if there is one.

        Raises ConnectionFailed, and StreamMismatch.
        """
        kept = self.of(subject)
        copy = await self.copy(kept, subject) if kept is not None else None
        if copy is None:
            return
        name = copy.subject.stream
        found = (await self._ask("INFO", name)).config
        # Who resumes from before that has missed something: it is not to be proved otherwise.
        since = {**found["metadata"], _SINCE: str(max(copy.since, offset + 1))}
        for what, question in (
            ("UPDATE", {**found, "metadata": since}),
            ("PURGE", {"filter": subject, "seq": await copy.subject.place_after(offset)}),
        ):
            answer = await self._ask(what, name, question)
            if answer.error is not None:
                raise ConnectionFailed(f"stream {name}: {answer.error}", driver=DRIVER)

    async def tell_leftovers(self) -> None:
        """Log which streams keep classes that are no longer configured: they are left alone."""
        try:
            for name in await self._leftovers():
                _log.warning(
                    "stream %s is of a class that BROADCAST_RETENTION does not have: it goes on "
                    "keeping messages until it is removed (nats stream rm)",
                    name,
                )
        except ConnectionFailed as exc:  # a user may lack the right to list streams
            _log.info("looking for streams of classes that are not configured: %s", exc)

    async def _leftovers(self) -> list[str]:
        answer = await ask(self._connection, "STREAM.NAMES", {}, self._timeout)
        others = [
            name
            for name in answer.body.get("streams") or []
            if name.startswith(f"{self._stream.name}_") and name not in self.names
        ]
        infos = [await self._ask("INFO", name) for name in others]
        return [
            name
            for name, info in zip(others, infos, strict=True)
            if _EPOCH in (info.config.get("metadata") or {})
        ]

    def _is_ours(self, found: dict[str, Any]) -> bool:
        metadata = found.get("metadata") or {}
        return bool(metadata.get(_EPOCH) == self._stream.base)

    async def _ensure(self, kept: RetentionClass) -> None:
        config = self._configs[kept]
        name = config["name"]
        answer = await self._ask("INFO", name)
        if answer.error is None and not self._is_ours(answer.config):
            # It copies a stream that is gone: what it has is of other offsets.
            _log.warning("stream %s is of a stream that is no more, and is made anew", name)
            await self._ask("DELETE", name)
        elif answer.error is None:
            await self._alter(config, answer.config)
            return
        elif answer.error.err_code != STREAM_NOT_FOUND:
            raise self._mismatch(name, answer.error)
        first = await self._stream.first()
        metadata = {_EPOCH: self._stream.base, _SINCE: str(first)}
        answer = await self._ask("CREATE", name, {**config, "metadata": metadata})
        if answer.error is not None and answer.error.err_code != NAME_IN_USE:
            raise self._mismatch(name, answer.error)
        _log.info("stream %s was made", name)

    async def _alter(self, config: dict[str, Any], found: dict[str, Any]) -> None:
        changed = {key: config[key] for key in _LIMITS if found.get(key) != config[key]}
        if not changed:
            return
        answer = await self._ask("UPDATE", config["name"], {**found, **changed})
        if answer.error is not None:
            raise self._mismatch(config["name"], answer.error)
        _log.info("stream %s has other limits now: %s", config["name"], changed)

    def _mismatch(self, name: str, error: ApiError) -> StreamMismatch:
        return StreamMismatch(
            f"stream {name}, for a class of BROADCAST_RETENTION, cannot be made: {error}",
            driver=DRIVER,
        )

    async def _ask(self, what: str, name: str, question: dict[str, Any] | None = None) -> _Answer:
        answer = await ask(self._connection, f"STREAM.{what}.{name}", question, self._timeout)
        return msgspec.convert(answer.body, _Answer)


def _config(
    origin: str, subjects: Subjects, kept: RetentionClass, settings: Settings
) -> dict[str, Any]:
    assert kept.pattern is not None
    event_filter = subjects.event_filter(kept.pattern)
    # The stream's name cannot have the dots and wildcards that tell two patterns apart.
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", kept.pattern.filter)[:60]
    digest = hashlib.sha256(kept.pattern.filter.encode()).hexdigest()[:8]
    age = int(kept.seconds * _NANO)
    return {
        "name": f"{origin}_{readable}_{digest}",
        "sources": [{"name": origin, "filter_subject": event_filter}],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "allow_direct": True,
        "max_msgs": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": kept.messages + SPARE,
        "max_age": age,
        "max_bytes": kept.max_bytes or settings.history_bytes,
        "num_replicas": settings.history_replicas,
        "duplicate_window": min(int(DUPLICATE_WINDOW_S * _NANO), age),
    }
