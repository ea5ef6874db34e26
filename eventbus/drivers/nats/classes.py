"""Streams of retention classes, which keep messages of some channels for longer.

Each copies the messages of its channels from the event stream, by a filtered source. It is not a
mirror: the server lets a mirror answer direct gets for its origin, and a filtered one lacks the
other channels. A copy has sequences of its own; the header `Nats-Stream-Source` has the offset of
each message (https://docs.nats.io/nats-concepts/jetstream/source_and_mirror).
"""

import hashlib
import logging
import re
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.channels import Pattern, Subjects
from eventbus.config import Settings
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.direct import StoredSubject
from eventbus.drivers.nats.errors import (
    DRIVER,
    ApiError,
)
from eventbus.drivers.nats.jetstream import (
    NANO,
    STREAM_NOT_FOUND,
    Stream,
    StreamInfo,
    placement,
    request_api,
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

_NO_END: Final = 2**63 - 1
_EPOCH: Final = "eventbus.epoch"
_SINCE: Final = "eventbus.since"
_SILENT: Final = 5 * NANO
"""A source that works reports every second."""
_LIMITS: Final = (
    "max_msgs_per_subject", "max_age", "max_bytes", "num_replicas", "duplicate_window",
)  # fmt: skip


class Copy(NamedTuple):
    """One subject in the stream of a class."""

    subject: StoredSubject
    all_of_class: StoredSubject
    limit: int
    """How many messages of a subject it keeps."""
    since: int
    """It has copied everything from that offset on, apart from what its limits removed."""
    has_first: bool
    """Whether nothing was removed by age or size, which remove the oldest of the whole class."""
    is_fresh: bool
    """Whether it is copying, and not behind by more than the origin keeps."""

    async def has_all_after(self, offset: int) -> bool:
        """Whether it is proved that nothing after that offset is missing, except the newest."""
        if not self.is_fresh:
            return False
        messages = self.subject.messages
        if messages is not None and messages < self.limit:
            if self.has_first:
                return self.since <= offset + 1
            first = await self.all_of_class.oldest()
            if first is not None and max(first.offset, self.since) <= offset + 1:
                return True
        oldest = await self.subject.oldest()
        return oldest is not None and oldest.offset <= offset


class ClassStreams:
    """The streams of the classes whose messages outlive the event stream."""

    def __init__(
        self,
        connection: NatsConnection,
        stream: EventStream,
        subjects: Subjects,
        settings: Settings,
    ) -> None:
        self.retention = settings.retention_classes()
        self._connection = connection
        self._events = stream
        self._root = f"{subjects.namespace}.event."
        self._timeout = settings.connect_timeout
        self._streams = {
            one: Stream(
                connection, _config(stream.name, subjects, one, settings), settings.connect_timeout
            )
            for one in self.retention.classes
            if one.seconds > settings.history_seconds or one.max_bytes is not None
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The streams' names."""
        return tuple(stream.name for stream in self._streams.values())

    def of(self, event_subject: str) -> RetentionClass | None:
        """The class of a subject; None when the event stream's own limits apply."""
        if not self.retention.classes:
            return None
        return self.retention.of(event_subject[len(self._root) :])

    def of_all(self, event_filter: str) -> RetentionClass | None:
        """The class of all subjects of a filter; None when they may belong to several."""
        pattern = Pattern(event_filter[len(self._root) :])
        for one in self.retention.classes:
            assert one.pattern is not None, "only the default class has no pattern"
            if one.pattern.contains(pattern):
                return one
            if one.pattern.overlaps(pattern):
                return None
        return None

    async def ensure(self) -> None:
        """Create or update the streams. Raises ConnectionFailed and StreamMismatch."""
        for stream in self._streams.values():
            await self._ensure(stream)

    async def go_back(self, offset: int) -> None:
        """Recreate the streams with messages that the event stream lost: it went back to an offset.

        Raises ConnectionFailed and StreamMismatch.
        """
        for kept, stream in self._streams.items():
            copy = await self.copy(kept, self._events.events)
            if copy is not None and await self._differs_after(copy, offset):
                _log.warning("stream %s has messages that %s has lost, and is recreated",
                             stream.name, self._events.name)  # fmt: skip
                await stream.delete()
                await self._ensure(stream)

    async def _differs_after(self, copy: Copy, offset: int) -> bool:
        """Whether the first message after an offset differs from the origin's.

        When the origin has no such message, it has expired: a class keeps messages for longer.
        """
        copied = await copy.all_of_class.after(offset, _NO_END, 1)
        if not copied:
            return False
        at = copied[0].offset
        origin = StoredSubject(self._events.stream, self._events.events, first=0, last=at)
        there = await origin.after(at - 1, at, 1)
        return bool(there) and there[0].payload != copied[0].payload

    async def copy(self, kept: RetentionClass, subject: str) -> Copy | None:
        """The messages of a subject in its class's stream; None when the class has no stream.

        Raises ConnectionFailed and StreamMismatch.
        """
        stream = self._streams.get(kept)
        if stream is None:
            return None
        info = await stream.info({"subjects_filter": subject})
        if info.error is not None or not self._is_current(info):
            await self._ensure(stream)
            info = await stream.require_info({"subjects_filter": subject})
        state = info.state

        def stored(of: str, messages: int) -> StoredSubject:
            return StoredSubject(
                stream, of,
                first=state.first_seq, last=state.last_seq, messages=messages, is_copy=True,
                is_replicated=info.is_replicated and of != ">",
            )  # fmt: skip

        return Copy(
            stored(subject, (state.subjects or {}).get(subject, 0)),
            stored(">", 1),
            int(info.config.get("max_msgs_per_subject", kept.messages + SPARE)),
            int(info.metadata.get(_SINCE, 0)),
            state.first_seq <= 1,
            self._is_fresh(info),
        )

    async def purge(self, subject: str, offset: int) -> None:
        """Delete a subject's messages up to an offset from its class's stream, if there is one.

        Raises ConnectionFailed and StreamMismatch.
        """
        kept = self.of(subject)
        copy = await self.copy(kept, subject) if kept is not None else None
        if copy is None:
            return
        stream = copy.subject.stream
        found = await stream.require_info()
        # A reader from before that has missed something; nothing must prove otherwise.
        since = {**found.metadata, _SINCE: str(max(copy.since, offset + 1))}
        updated = await stream.update({**found.config, "metadata": since})
        if updated.error is not None:
            raise stream.failure(updated.error)
        await stream.purge({"filter": subject, "seq": await copy.subject.sequence_after(offset)})

    async def log_leftovers(self) -> None:
        """Log the streams of classes that are no longer configured; they are left alone."""
        try:
            for name in await self._leftovers():
                _log.warning(
                    "stream %s belongs to a class that BROADCAST_RETENTION does not have: it keeps "
                    "messages until it is removed (nats stream rm)",
                    name,
                )
        except ConnectionFailed as exc:  # a user may lack the right to list streams
            _log.info("cannot look for streams of classes that are not configured: %s", exc)

    async def _leftovers(self) -> list[str]:
        answer = await request_api(self._connection, "STREAM.NAMES", {}, self._timeout)
        others = [
            name
            for name in answer.body.get("streams") or []
            if name.startswith(f"{self._events.name}_") and name not in self.names
        ]
        streams = [Stream(self._connection, {"name": name}, self._timeout) for name in others]
        return [one.name for one in streams if _EPOCH in (await one.info()).metadata]

    def _is_current(self, info: StreamInfo) -> bool:
        """Whether the stream copies the present event stream."""
        return info.metadata.get(_EPOCH) == self._events.identity.base

    def _is_fresh(self, info: StreamInfo) -> bool:
        return any(
            0 <= source.active < _SILENT and source.lag < self.retention.max_count
            for source in info.sources[:1]
        )

    async def _ensure(self, stream: Stream) -> None:
        info = await stream.info()
        if info.error is None and not self._is_current(info):
            # The offsets of its messages are those of a stream that does not exist any more.
            _log.warning("stream %s copies a stream that no longer exists, and is recreated",
                         stream.name)  # fmt: skip
            await stream.delete()
        elif info.error is None:
            await self._apply_limits(stream, info)
            return
        elif info.error.err_code != STREAM_NOT_FOUND:
            raise self._mismatch(stream, info.error)
        metadata = {_EPOCH: self._events.identity.base, _SINCE: str(await self._events.first())}
        await stream.create({**stream.config, "metadata": metadata})

    async def _apply_limits(self, stream: Stream, info: StreamInfo) -> None:
        wanted, found = stream.config, info.config
        changed = {key: wanted[key] for key in _LIMITS if found.get(key) != wanted[key]}
        if "placement" in wanted and not info.tags.issuperset(wanted["placement"]["tags"]):
            changed["placement"] = wanted["placement"]
        if not changed:
            await stream.require_placed(info)
            return
        updated = await stream.update({**found, **changed})
        if updated.error is not None:
            raise self._mismatch(stream, updated.error)
        await stream.require_placed(updated)
        _log.info("stream %s now has different limits: %s", stream.name, changed)

    def _mismatch(self, stream: Stream, error: ApiError) -> StreamMismatch:
        return StreamMismatch(
            f"cannot create or change stream {stream.name}, for a class of BROADCAST_RETENTION: "
            f"{error}",
            driver=DRIVER,
        )


def _config(
    origin: str, subjects: Subjects, kept: RetentionClass, settings: Settings
) -> dict[str, Any]:
    assert kept.pattern is not None
    event_filter = subjects.event_filter(kept.pattern)
    # A stream's name cannot have the dots and wildcards by which two patterns differ.
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", kept.pattern.filter)[:60]
    digest = hashlib.sha256(kept.pattern.filter.encode()).hexdigest()[:8]
    age = int(kept.seconds * NANO)
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
        "duplicate_window": min(int(DUPLICATE_WINDOW_S * NANO), age),
        **placement(kept.durability),
    }
