"""Direct gets: the messages of one subject in one stream, read without leaving anything behind.

The protocol of a batch is in NATS's ADR-31; nats-py has no call for it.
"""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.drivers.nats_api import get_message, newest
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER
from eventbus.drivers.nats_wire import WireHeaders
from eventbus.errors import ConnectionFailed

__all__ = ["Place", "Stored", "StoredSubject"]

_BATCH: Final = 500
_ATTEMPTS: Final = 3
_END: Final = "204"
_NOTHING: Final = "404"
_PAUSE_S: Final = 0.1
_SOURCE: Final = "Nats-Stream-Source"
_SUBJECT: Final = "Nats-Subject"
_LEFT: Final = "Nats-Num-Pending"
_LEADER_S: Final = 5.0
_LAGS: Final = 50
_LAG_PAUSE_S: Final = 0.1


class Stored(NamedTuple):
    """One message of a stream."""

    payload: bytes
    headers: WireHeaders
    place: int
    """Its sequence in the stream that was read."""
    offset: int
    """Its sequence in the stream of events, where it was stored first."""
    time: str
    left: int
    """How many messages of the subject follow it in the stream that was read."""


class Place(NamedTuple):
    """Where a message stands, and since when."""

    subject: str
    offset: int
    """Its sequence in the stream of events, where it was stored first."""
    time: str


class _Read(NamedTuple):
    found: list[Stored]
    newest: int
    """Up to which sequence of the stream has been read."""


class StoredSubject:
    """One subject in one stream, as it stood when the stream was asked for its state."""

    def __init__(
        self,
        connection: NatsConnection,
        stream: str,
        subject: str,
        *,
        first: int,
        last: int,
        messages: int,
        is_copy: bool = False,
        is_replicated: bool = False,
    ) -> None:
        """`first` and `last` are the stream's, whose sequences are offsets unless it `is_copy`.

        Of a stream that `is_replicated`, any replica answers direct gets, also one that has just
        been started and lags: what it gives is a beginning of what there is. So the leader is asked
        for the newest message, and reading goes on until that is among those read.
        """
        self.stream = stream
        self.subject = subject
        self.messages = messages
        self._connection = connection
        self._first = first
        self._last = last
        self._is_copy = is_copy
        self._is_replicated = is_replicated

    async def after(self, offset: int, end: int, limit: int) -> list[Stored]:
        """The first `limit` messages after an offset and up to another. Raises ConnectionFailed."""
        return await self._whole(lambda: self._after(offset, end, limit), limit)

    async def last(self, count: int, end: int) -> list[Stored]:
        """The last `count` messages up to an offset. Raises ConnectionFailed."""
        if not self.messages or not count:
            return []
        return await self._whole(lambda: self._last_ones(count, end), None)

    async def _whole(self, read: Callable[[], Awaitable[_Read]], limit: int | None) -> list[Stored]:
        """What is read, when it is all that the leader has; `limit` messages are enough."""
        for _ in range(_LAGS):
            found, last = await read()
            if not self._is_replicated or last >= self._last or len(found) == limit:
                return found
            if last >= await newest(self._connection, self.stream, self.subject, _LEADER_S):
                return found
            await asyncio.sleep(_LAG_PAUSE_S)
        raise ConnectionFailed(
            f"reading {self.subject} from stream {self.stream}: its replicas lag behind their "
            f"leader for more than {_LAGS * _LAG_PAUSE_S:g} s",
            driver=DRIVER,
        )

    async def _after(self, offset: int, end: int, limit: int) -> _Read:
        found: list[Stored] = []
        start = await self.place_after(offset)
        while start <= self._last and len(found) < limit:
            asked = min(_BATCH, limit - len(found))
            batch = await self._get(start, asked)
            # What came after the state was asked for belongs to the live messages.
            found += [stored for stored in batch if stored.offset <= end]
            start = batch[-1].place + 1 if batch else start
            if not batch or not batch[-1].left:  # fewer than asked may be all that fits
                break
        return _Read(found, start - 1)

    async def _last_ones(self, count: int, end: int) -> _Read:
        if count == 1:
            newest = await self._ask({"multi_last": [self.subject]})
            if newest and newest[0].offset <= end:
                return _Read(newest, newest[0].place)
        kept: collections.deque[Stored] = collections.deque(maxlen=count)
        start = await self._place_of_last(count)
        while start <= self._last:  # only forward reading is offered
            batch = await self._get(start, _BATCH)
            kept.extend(stored for stored in batch if stored.offset <= end)
            start = batch[-1].place + 1 if batch else start
            if not batch or not batch[-1].left:
                break
        return _Read(list(kept), start - 1)

    async def oldest(self) -> Place | None:
        """The subject's oldest message. Raises ConnectionFailed."""
        return await self._place({"seq": 1, "next_by_subj": self.subject})

    async def at(self, sequence: int) -> Place | None:
        """What the stream has at a sequence, on whatever subject. Raises ConnectionFailed."""
        return await self._place({"seq": sequence})

    async def since(self, time: str) -> Place | None:
        """The subject's first message stored at that time or later. Raises ConnectionFailed."""
        found = await self._ask({"start_time": time, "next_by_subj": self.subject, "batch": 1})
        return _place_of(found[0]) if found else None

    async def place_after(self, offset: int) -> int:
        """A sequence before which the subject has no message after that offset."""
        if not self._is_copy:
            return offset + 1
        low, high = self._first, self._last + 1
        while low < high:
            middle = (low + high) // 2
            found = await self._get(middle, 1)
            if not found or found[0].offset > offset:
                high = middle
            else:
                low = found[0].place + 1
        return low

    async def _place_of_last(self, count: int) -> int:
        """A sequence from which on the subject has `count` messages, or not many more."""
        low, high = self._first, self._last
        if self.messages <= count + _BATCH:
            return low
        while low < high:
            middle = (low + high) // 2
            found = await self._get(middle, 1)
            remaining = found[0].left + 1 if found else 0
            if remaining < count:
                high = middle
            elif remaining <= count + _BATCH:
                return middle
            else:
                low = found[0].place + 1
        return low

    async def _place(self, question: Mapping[str, Any]) -> Place | None:
        """One message; of several replicas, the leader's, since another may lag behind it."""
        if self._is_replicated:
            got = await get_message(self._connection, self.stream, question, _LEADER_S)
            if got is None:
                return None
            offset = int(got.headers[_SOURCE].split()[1]) if self._is_copy else got.sequence
            return Place(got.subject, offset, got.time)
        found = await self._ask({**question, "batch": 1})
        if not found or ("next_by_subj" not in question and found[0].place != question["seq"]):
            return None  # a batch goes on to the next message there is
        return _place_of(found[0])

    async def _get(self, start: int, count: int) -> list[Stored]:
        """Up to `count` messages from a sequence on."""
        return await self._ask({"seq": max(start, 1), "next_by_subj": self.subject, "batch": count})

    async def _ask(self, question: Mapping[str, Any]) -> list[Stored]:
        asked = msgspec.json.encode(question)
        for attempt in range(_ATTEMPTS):
            parts: list[tuple[bytes, WireHeaders]] = []
            reply = await self._connection.request(
                f"$JS.API.DIRECT.GET.{self.stream}", asked, parts
            )
            if reply is not None and reply.status in {_END, _NOTHING}:
                return [self._stored(payload, headers) for payload, headers in parts]
            if reply is not None and reply.status != "503":
                raise ConnectionFailed(
                    f"reading {self.subject} from stream {self.stream}: status {reply.status}",
                    driver=DRIVER,
                )
            await asyncio.sleep(_PAUSE_S * attempt)
        raise ConnectionFailed(
            f"reading {self.subject} from stream {self.stream} at {self._connection.address}: "
            "no answer",
            driver=DRIVER,
        )

    def _stored(self, payload: bytes, headers: WireHeaders) -> Stored:
        stamp = headers.stamp(self.stream.encode())
        if stamp is None:
            raise ConnectionFailed(
                f"an answer of stream {self.stream} has no offset", driver=DRIVER
            )
        offset = stamp.sequence
        if self._is_copy:
            # "<stream> <sequence> <filter> <transform> <subject>"
            offset = int(headers[_SOURCE].split()[1])
        left = int(headers.get(_LEFT, "0"))
        return Stored(payload, headers, stamp.sequence, offset, stamp.time, left)


def _place_of(stored: Stored) -> Place:
    # What the publisher's own headers claim stands before what the server appends.
    return Place(stored.headers.get(_SUBJECT, ""), stored.offset, stored.time)
