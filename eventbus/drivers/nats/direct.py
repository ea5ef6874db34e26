"""Reads one subject of one stream by direct gets, also in copies and on replicas that lag."""

import asyncio
import collections
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.errors import DRIVER
from eventbus.drivers.nats.jetstream import (
    Stream,
    StreamMessage,
)
from eventbus.errors import ConnectionFailed

__all__ = ["MessageInfo", "StoredMessage", "StoredSubject"]

_BATCH: Final = 500
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.1
_LAGS: Final = 50
_LAG_PAUSE_S: Final = 0.1


class StoredMessage(NamedTuple):
    """One message of a stream."""

    payload: bytes
    headers: WireHeaders
    sequence: int
    """Its sequence in the stream that was read."""
    offset: int
    """Its sequence in the event stream, which stored it first."""
    time: str
    pending: int
    """How many messages of the subject follow it in the stream that was read."""


class MessageInfo(NamedTuple):
    """Which message it is, without its payload."""

    subject: str
    offset: int
    """Its sequence in the event stream, which stored it first."""
    time: str


class _Read(NamedTuple):
    found: list[StoredMessage]
    newest: int
    """The last sequence of the stream that was read."""


class StoredSubject:
    """The messages of one subject, as of when the stream was queried."""

    def __init__(
        self,
        stream: Stream,
        subject: str,
        *,
        first: int,
        last: int,
        messages: int | None = 0,
        is_copy: bool = False,
        is_replicated: bool = False,
    ) -> None:
        """`first` and `last` are the stream's sequences, `messages` the subject's count, if known.

        Offsets are the stream's sequences unless it `is_copy` of the event stream. When it
        `is_replicated`, any replica answers direct gets, even one that has just started and lags:
        it returns a prefix of what there is. So the leader is asked for the newest message, and
        reading continues until that one has been read.
        """
        self.stream = stream
        self.subject = subject
        self._name = stream.name.encode()
        self.messages = messages
        self._first = first
        self._last = last
        self._is_copy = is_copy
        self._is_replicated = is_replicated

    async def after(self, offset: int, end: int, limit: int) -> list[StoredMessage]:
        """The first `limit` messages in (offset, end]. Raises ConnectionFailed."""
        return await self._whole(lambda: self._after(offset, end, limit), limit)

    async def last(self, count: int, end: int) -> list[StoredMessage]:
        """The last `count` messages up to an offset. Raises ConnectionFailed."""
        if self.messages == 0 or not count:
            return []
        return await self._whole(lambda: self._last_ones(count, end), None)

    async def _whole(
        self, read: Callable[[], Awaitable[_Read]], limit: int | None
    ) -> list[StoredMessage]:
        """Read until the result has all that the leader has, or `limit` messages."""
        for _ in range(_LAGS):
            found, last = await read()
            if not self._is_replicated or last >= self._last or len(found) == limit:
                return found
            if last >= await self.stream.newest(self.subject):
                return found
            await asyncio.sleep(_LAG_PAUSE_S)
        raise ConnectionFailed(
            f"reading {self.subject} from stream {self.stream.name}: its replicas lag behind their "
            f"leader for more than {_LAGS * _LAG_PAUSE_S:g} s",
            driver=DRIVER,
        )

    async def _after(self, offset: int, end: int, limit: int) -> _Read:
        found: list[StoredMessage] = []
        start = await self.sequence_after(offset)
        while start <= self._last and len(found) < limit:
            batch_size = min(_BATCH, limit - len(found))
            batch = await self._get(start, batch_size)
            # Messages stored after the query are delivered live.
            found += [stored for stored in batch if stored.offset <= end]
            start = batch[-1].sequence + 1 if batch else start
            if not batch or not batch[-1].pending:  # large messages end a batch early
                break
        return _Read(found, start - 1)

    async def _last_ones(self, count: int, end: int) -> _Read:
        if count == 1:
            newest = await self._batch({"multi_last": [self.subject]})
            if newest and newest[0].offset <= end:
                return _Read(newest, newest[0].sequence)
        kept: collections.deque[StoredMessage] = collections.deque(maxlen=count)
        total = self.messages
        if total is None:  # there may be no more than that, as the first answer shows
            start, batch_size = self._first, min(count, _BATCH)
        else:
            start, batch_size = await self._sequence_of_last(count, total), _BATCH
        while start <= self._last:  # JetStream reads forward only
            batch = await self._get(start, batch_size)
            kept.extend(stored for stored in batch if stored.offset <= end)
            start = batch[-1].sequence + 1 if batch else start
            if not batch or not batch[-1].pending:
                break
            if total is None:
                total, batch_size = len(batch) + batch[-1].pending, _BATCH
                if (later := await self._sequence_of_last(count, total)) > start:
                    start = later
                    kept.clear()
        return _Read(list(kept), start - 1)

    async def oldest(self) -> MessageInfo | None:
        """The subject's oldest message. Raises ConnectionFailed."""
        return await self._one({"seq": 1, "next_by_subj": self.subject})

    async def at(self, sequence: int) -> MessageInfo | None:
        """The message with a sequence, on any subject. Raises ConnectionFailed."""
        return await self._one({"seq": sequence})

    async def since(self, time: str) -> MessageInfo | None:
        """The subject's first message stored at that time or later. Raises ConnectionFailed."""
        found = await self._batch({"start_time": time, "next_by_subj": self.subject, "batch": 1})
        return _info_of(found[0]) if found else None

    async def sequence_after(self, offset: int) -> int:
        """A sequence below which the subject has no message after that offset."""
        if not self._is_copy:
            return offset + 1
        low, high = self._first, self._last + 1
        while low < high:
            middle = (low + high) // 2
            found = await self._get(middle, 1)
            if not found or found[0].offset > offset:
                high = middle
            else:
                low = found[0].sequence + 1
        return low

    async def _sequence_of_last(self, count: int, total: int) -> int:
        """A sequence from which the subject has `count` of its `total` messages, or some more."""
        low, high = self._first, self._last
        if total <= count + _BATCH:
            return low
        while low < high:
            middle = (low + high) // 2
            found = await self._get(middle, 1)
            remaining = found[0].pending + 1 if found else 0
            if remaining < count:
                high = middle
            elif remaining <= count + _BATCH:
                return middle
            else:
                low = found[0].sequence + 1
        return low

    async def _one(self, request: Mapping[str, Any]) -> MessageInfo | None:
        """One message; from the leader where there are replicas, since they may lag."""
        if self._is_replicated:
            found = await self.stream.message(request)
            if found is None:
                return None
            offset = _source_sequence(found.headers) if self._is_copy else found.sequence
            return MessageInfo(found.subject, offset, found.time)
        batch = await self._batch({**request, "batch": 1})
        if not batch or ("next_by_subj" not in request and batch[0].sequence != request["seq"]):
            return None  # without that message, the batch begins with the next one
        return _info_of(batch[0])

    async def _get(self, start: int, count: int) -> list[StoredMessage]:
        """Up to `count` messages from a sequence on."""
        return await self._batch(
            {"seq": max(start, 1), "next_by_subj": self.subject, "batch": count}
        )

    async def _batch(self, request: Mapping[str, Any]) -> list[StoredMessage]:
        for attempt in range(_ATTEMPTS):
            if (found := await self.stream.batch(request)) is not None:
                return [self._stored(message) for message in found]
            await asyncio.sleep(_PAUSE_S * attempt)
        raise self.stream.failure(f"reading {self.subject}: no answer")

    def _stored(self, message: StreamMessage) -> StoredMessage:
        headers = message.headers
        stamp = headers.stamp(self._name)
        if stamp is None:
            raise self.stream.failure("an answer has no offset")
        offset = _source_sequence(headers) if self._is_copy else stamp.sequence
        return StoredMessage(
            message.payload, headers, stamp.sequence, offset, stamp.time, stamp.pending
        )


def _source_sequence(headers: Mapping[str, str]) -> int:
    """The sequence in the origin: "<stream> <sequence> <filter> <transform> <subject>"."""
    return int(headers["Nats-Stream-Source"].split()[1])


def _info_of(stored: StoredMessage) -> MessageInfo:
    return MessageInfo(stored.headers.get("Nats-Subject", ""), stored.offset, stored.time)
