"""JetStream's management API: one question, asked until there is an answer or time is over."""

import asyncio
import base64
import collections
import contextlib
import logging
import secrets
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.backoff import Backoff
from eventbus.channels import Pattern
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    ApiError,
)
from eventbus.drivers.state import StateStore
from eventbus.errors import (
    ConnectionFailed,
    PublishFailed,
)

__all__ = [
    "MAX_MARKS",
    "NAME_IN_USE",
    "NO_MESSAGE",
    "STREAM_NOT_FOUND",
    "Answer",
    "Got",
    "Place",
    "Stored",
    "StoredSubject",
    "ask",
    "ensure_stream",
    "get_message",
    "held",
    "mark",
    "newest",
    "purge",
    "purged_of",
]


_log = logging.getLogger(__name__)

STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
NO_MESSAGE: Final = 10037
_NO_JETSTREAM: Final = (10039, 10076)
_NO_PEERS: Final = 10005
_BETWEEN_LEADERS: Final = frozenset({10007, 10009, 10118, 10119})
"""Of code 500, from a server that has lost its part a moment ago, or not got it yet: it is not
assigned the stream, does not lead it, or takes stream or consumer for offline
(https://github.com/nats-io/nats-server/blob/main/server/errors.json)."""
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0


class Answer(NamedTuple):
    """An answer; of `body`, only what the caller asked for is of interest."""

    body: dict[str, Any]
    error: ApiError | None

    @property
    def error_code(self) -> int:
        """JetStream's own code of the error, 0 for none."""
        return self.error.err_code if self.error else 0


async def ask(
    connection: NatsConnection, what: str, question: Mapping[str, Any] | None, seconds: float
) -> Answer:
    """The answer to `$JS.API.<what>`; raises ConnectionFailed when there is none in time.

    While the server is not ready (a leader is being elected, say), it is asked again, after pauses
    that grow.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    payload = b"" if question is None else msgspec.json.encode(question)
    failure, backoff = "no answer", Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
    while (left := deadline - loop.time()) > 0:
        if not await connection.wait_connected(left):
            break
        try:
            reply = await connection.request(f"$JS.API.{what}", payload)
        except PublishFailed as exc:
            raise ConnectionFailed(str(exc), driver=DRIVER) from exc
        if reply is not None and reply.status == "503":
            failure = "the server has no JetStream (start it with -js)"
        elif reply is not None:
            answer = _read(what, reply.payload)
            if answer.error is None or not _passes(answer.error):
                return answer
            if failure != str(answer.error):
                failure = str(answer.error)
                _log.info("%s: %s; it is asked again", what, failure)
            if answer.error_code in _NO_JETSTREAM:
                break
        # Many nodes may have lost the same leader, and are not to ask in step.
        await asyncio.sleep(min(backoff.next(), max(0.0, deadline - loop.time())))
    raise ConnectionFailed(f"asking {connection.address} for {what}: {failure}", driver=DRIVER)


async def ensure_stream(
    connection: NatsConnection, config: Mapping[str, Any], seconds: float
) -> Answer:
    """What the server says of the stream of that configuration, made where there was none.

    It is looked for first: who may use a stream need not have the right to make it. Raises
    ConnectionFailed.
    """
    name = config["name"]
    answer = await ask(connection, f"STREAM.INFO.{name}", None, seconds)
    if answer.error_code == STREAM_NOT_FOUND:
        answer = await ask(connection, f"STREAM.CREATE.{name}", config, seconds)
        if answer.error_code == NAME_IN_USE:  # another process was first
            answer = await ask(connection, f"STREAM.INFO.{name}", None, seconds)
    return answer


class Got(NamedTuple):
    """A message, as the leader of its stream has it."""

    subject: str
    sequence: int
    time: str
    headers: Mapping[str, str]


async def get_message(
    connection: NatsConnection, stream: str, question: Mapping[str, Any], seconds: float
) -> Got | None:
    """The message that the question is about; None where there is none.

    Any replica answers direct gets, also one that lags; this answer is the leader's. Raises
    ConnectionFailed.
    """
    answer = await ask(connection, f"STREAM.MSG.GET.{stream}", question, seconds)
    if answer.error_code == NO_MESSAGE:
        return None
    if answer.error is not None:
        raise ConnectionFailed(
            f"asking stream {stream} for a message: {answer.error}", driver=DRIVER
        )
    found = answer.body["message"]
    lines = base64.b64decode(found.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Got(found["subject"], found["seq"], found["time"], headers)


async def newest(connection: NatsConnection, stream: str, subject: str, seconds: float) -> int:
    """The sequence of the newest message of a subject or filter, as the stream's leader has it.

    0 when there is none. Raises ConnectionFailed.
    """
    found = await get_message(connection, stream, {"last_by_subj": subject}, seconds)
    return found.sequence if found is not None else 0


def _passes(error: ApiError) -> bool:
    """Whether a refusal is one of a cluster that is not whole yet, and may be another one soon.

    A leader that has been elected a moment ago has not heard of its peers, and finds no place for
    replicas: nats-server names no code of its own for that, only the words (`selectPeerError`).
    """
    return (
        error.code == 503
        or error.err_code in _BETWEEN_LEADERS
        or (error.err_code == _NO_PEERS and "peer offline" in error.description)
    )


def _read(what: str, payload: bytes) -> Answer:
    try:
        body = msgspec.json.decode(payload, type=dict[str, Any])
        return Answer(body, msgspec.convert(body.get("error"), ApiError | None))
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise ConnectionFailed(
            f"the answer to {what} cannot be read: {exc}", driver=DRIVER
        ) from exc


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


MAX_MARKS: Final = 200
"""Subjects that have a mark of their own; beyond, the oldest marks become one for all subjects."""
_MARK: Final = "eventbus.purged."
_ALL: Final = "eventbus.purged"
_LEASE: Final = "purging"
_LEASE_S: Final = 30.0
_MARK_PAUSE_S: Final = 0.05


def purged_of(config: Mapping[str, Any], subject: str) -> int:
    """The offset up to which a subject was purged, by its stream's configuration.

    Of a filter, the highest of the subjects that match.
    """
    metadata = config.get("metadata") or {}
    marks = [int(metadata.get(_ALL, 0)), int(metadata.get(_MARK + subject, 0))]
    if "*" in subject or ">" in subject:
        pattern = Pattern(subject)
        marks += [
            int(offset)
            for name, offset in metadata.items()
            if name.startswith(_MARK) and pattern.match(name[len(_MARK) :]) is not None
        ]
    return max(marks)


@contextlib.asynccontextmanager
async def held(state: StateStore, seconds: float) -> AsyncIterator[None]:
    """Be the only one who changes marks: the metadata are read, then written as a whole.

    Waits at most `seconds`. Raises ConnectionFailed.
    """
    token = secrets.token_hex(8).encode()
    deadline = asyncio.get_running_loop().time() + seconds
    while not await state.claim(_LEASE, token, ttl_s=_LEASE_S):
        if asyncio.get_running_loop().time() > deadline:
            raise ConnectionFailed("another purge has been under way for too long", driver=DRIVER)
        await asyncio.sleep(_MARK_PAUSE_S)
    try:
        yield
    finally:
        await state.delete(_LEASE)


async def mark(
    connection: NatsConnection, stream: str, subject: str, offset: int, seconds: float
) -> None:
    """Note that a subject is purged up to an offset. Raises ConnectionFailed."""
    info = _checked(stream, await ask(connection, f"STREAM.INFO.{stream}", None, seconds))
    config = info.body["config"]
    metadata: dict[str, str] = config.get("metadata") or {}
    marks = {key: int(value) for key, value in metadata.items() if key.startswith(_MARK)}
    marks[_MARK + subject] = max(offset, marks.get(_MARK + subject, 0))
    first = info.body["state"].get("first_seq", 0)
    # What the stream itself does not reach back to needs no mark.
    marks = {key: value for key, value in marks.items() if value >= first}
    for_all = int(metadata.get(_ALL, 0))
    while len(marks) > MAX_MARKS:
        oldest = min(marks, key=marks.__getitem__)
        for_all = max(for_all, marks.pop(oldest))
    others = {key: value for key, value in metadata.items() if not key.startswith(_ALL)}
    told = {**marks, _ALL: for_all} if for_all >= max(first, 1) else marks
    config["metadata"] = others | {key: str(value) for key, value in told.items()}
    _checked(stream, await ask(connection, f"STREAM.UPDATE.{stream}", config, seconds))


async def purge(
    connection: NatsConnection, stream: str, subject: str, offset: int, seconds: float
) -> int:
    """Remove a subject's messages up to an offset; how many there were. Raises ConnectionFailed."""
    question = {"filter": subject, "seq": offset + 1}
    answer = await ask(connection, f"STREAM.PURGE.{stream}", question, seconds)
    return int(_checked(stream, answer).body.get("purged", 0))


def _checked(stream: str, answer: Answer) -> Answer:
    if answer.error is not None:
        raise ConnectionFailed(f"stream {stream}: {answer.error}", driver=DRIVER)
    return answer
