"""Reading what the stream has stored: batched direct gets, which leave nothing on the server.

The protocol of a batch is in NATS's ADR-31; nats-py has no call for it.
"""

import asyncio
import collections
from collections.abc import Iterable
from typing import Final

import msgspec

from eventbus.drivers.base import Delivery, Page, Position
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER
from eventbus.drivers.nats_stream import EventStream, SubjectState
from eventbus.drivers.nats_wire import Stamp, WireHeaders
from eventbus.errors import ConnectionFailed, InvalidChannel

__all__ = ["StreamReader"]

_BATCH: Final = 500
_ATTEMPTS: Final = 3
_END: Final = "204"
_NOTHING: Final = "404"
_PAUSE_S: Final = 0.1

_Stored = tuple[bytes, WireHeaders, Stamp]


class StreamReader:
    """Reads the event stream through a connection."""

    def __init__(self, connection: NatsConnection, stream: EventStream) -> None:
        self._connection = connection
        self._stream = stream

    async def read(self, live: str, *, after: int | None, limit: int) -> Page:
        """The first `limit` messages of a live subject after an offset; without one, the last.

        The first message's `previous` is None: the stream does not tell it. Raises InvalidChannel
        for a subject of another root, and ConnectionFailed.
        """
        subject = self._stream.event_of(live)
        if subject is None:
            raise InvalidChannel(
                f"{live[:80]!r} is not a live subject of {self._stream.name}", name=live
            )
        state = await self._stream.of_subject(subject)
        last = state.stream.last
        if after is None:
            # Only forward reading is offered; a subject has as many messages as settings allow.
            found = await self._between(subject, state.first, last, limit, keep_last=True)
            complete = True
        else:
            found = await self._between(subject, after + 1, last, limit)
            complete = await self._is_complete(subject, state, after)
        previous: int | None = None
        deliveries = []
        for payload, headers, stamp in found:
            position = Position(stamp.sequence, state.stream.epoch)
            deliveries.append(Delivery(live, payload, headers, position, previous, stamp.time))
            previous = stamp.sequence
        return Page(tuple(deliveries), Position(last, state.stream.epoch), complete)

    async def _between(
        self, subject: str, start: int, last: int, limit: int, *, keep_last: bool = False
    ) -> Iterable[_Stored]:
        """The first `limit` messages from one offset to another, or the last."""
        kept: collections.deque[_Stored] = collections.deque(maxlen=limit)
        while limit and start <= last and (keep_last or len(kept) < limit):
            asked = _BATCH if keep_last else min(_BATCH, limit - len(kept))
            batch = await self._get(subject, start, asked)
            # What came after the state was asked for belongs to the live messages.
            kept.extend(stored for stored in batch if stored[2].sequence <= last)
            if len(batch) < asked:
                break
            start = batch[-1][2].sequence + 1
        return kept

    async def _is_complete(self, subject: str, state: SubjectState, after: int) -> bool:
        """Whether it is proved that nothing of the subject after that offset has been evicted."""
        if after >= state.stream.last:
            return True
        if after < state.purged:
            return False
        if state.first <= after + 1 and (state.limit <= 0 or state.messages < state.limit):
            # Nothing after it went by age or size, which take the stream's oldest; nor by count:
            # a subject that had to give up messages is full, until some go by age.
            return True
        # Each way of eviction takes a subject's oldest message first.
        oldest = await self._get(subject, 1, 1)
        return bool(oldest) and oldest[0][2].sequence <= after

    async def _get(self, subject: str, start: int, count: int) -> list[_Stored]:
        """Up to `count` messages of a subject from an offset on."""
        name = self._stream.name
        question = msgspec.json.encode(
            {"seq": max(start, 1), "next_by_subj": subject, "batch": count}
        )
        for attempt in range(_ATTEMPTS):
            parts: list[tuple[bytes, WireHeaders]] = []
            reply = await self._connection.request(f"$JS.API.DIRECT.GET.{name}", question, parts)
            if reply is not None and reply.status in {_END, _NOTHING}:
                return [_stored(payload, headers, name) for payload, headers in parts]
            if reply is not None and reply.status != "503":
                raise ConnectionFailed(
                    f"reading {subject} from stream {name}: status {reply.status}", driver=DRIVER
                )
            await asyncio.sleep(_PAUSE_S * attempt)
        raise ConnectionFailed(
            f"reading {subject} from stream {name} at {self._connection.address}: no answer",
            driver=DRIVER,
        )


def _stored(payload: bytes, headers: WireHeaders, stream: str) -> _Stored:
    stamp = headers.stamp(stream.encode())
    if stamp is None:
        raise ConnectionFailed(f"an answer of stream {stream} has no offset", driver=DRIVER)
    return payload, headers, stamp
