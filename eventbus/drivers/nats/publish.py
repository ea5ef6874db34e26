"""Acknowledged publishing, and whether the event stream stores messages at all.

A nats-server whose disk is full answers everything except publishes: the stream has a leader, can
be read, and silently drops what is published. That continues after there is space again, until the
server is restarted.
"""

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

import msgspec
from nats import errors as nats_errors

from eventbus.attempts import Backoff, OutageLog
from eventbus.drivers.base import Headers
from eventbus.drivers.nats.client import PROBE, encode_headers
from eventbus.drivers.nats.connection import (
    ATTEMPT_S,
    NatsConnection,
    Reply,
)
from eventbus.drivers.nats.errors import (
    DRIVER,
    ApiError,
    to_error,
)
from eventbus.drivers.nats.jetstream import StreamInfo
from eventbus.drivers.nats.stream import EventStream
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    EncodingError,
    EventBusError,
    PublishDenied,
    PublishFailed,
)
from eventbus.messages import HEADER_ID, json_decoder, new_id

__all__ = ["Ack", "Publisher", "WriteMonitor", "check_size", "head_of"]


_log = logging.getLogger(__name__)

WINDOW: Final = 1024
"""Messages in flight; further publishers wait, within their timeout."""
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0
_TOO_LARGE: Final = 10054
_STORE_FAILED: Final = 10077
_HINTS: Final = {
    10023: "max_file_store, max_memory_store or the account's limit is used up",
    10028: "JetStream's memory, max_memory_store or the account's limit, is used up",
    10047: "JetStream's storage, max_file_store or the account's limit, is used up",
    10077: "the stream has reached a limit (see its discard policy), or its disk failed",
}
_BEING_STORED: Final = 10158
"""An earlier attempt with the same id is being replicated; a later one learns the result."""
_TRY_AGAIN: Final = (
    nats_errors.OutboundBufferLimitError,
    nats_errors.ConnectionClosedError,
    nats_errors.ConnectionReconnectingError,
    OSError,
)
_EXPLAIN_S: Final = 1.0
_PROBE_S: Final = 5.0
_ROUND_S: Final = 10
"""All nodes' probes in this period have the same id, so the stream stores one of them."""


class Ack(msgspec.Struct, frozen=True, gc=False):
    """A stream's acknowledgement."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_decode_ack: Final = json_decoder(Ack)
_decode_info: Final = json_decoder(StreamInfo)


def check_size(subject: str, size: int, limit: int) -> None:
    """Raises EncodingError if the server would close the connection for a message of that size.

    nats-py checks the payload alone; the server counts the headers too.
    """
    if size > limit:
        raise EncodingError(
            f"a message of {size} bytes for {subject} is larger than the server accepts: "
            f"its max_payload is {limit} bytes, headers included"
        )


def head_of(subject: str, headers: Headers) -> bytes:
    """The first bytes of a message. Raises PublishFailed for a header that cannot be sent."""
    try:
        return encode_headers(headers)
    except nats_errors.Error as exc:
        raise _publish_error(to_error(exc, f"publishing to {subject}")) from exc


class Publisher:
    """Publishes to subjects that a stream captures."""

    def __init__(
        self,
        connection: NatsConnection,
        timeout: float,
        explain: Callable[[], Awaitable[str]] | None = None,
        on_no_stream: Callable[[], None] = lambda: None,
    ) -> None:
        """`timeout` is how many seconds a message may take to be acknowledged.

        `explain` returns why there was no answer; it gets another second. `on_no_stream` is called
        when no stream captures a subject; the message is retried.
        """
        self.retries = 0
        """How many attempts were not a message's first."""
        self._connection = connection
        self._timeout = timeout
        self._explain = explain
        self._on_no_stream = on_no_stream
        self._largest = 0
        """The size of the largest message that was stored."""
        self._alone = asyncio.Lock()
        self._in_flight = 0
        self._turns: collections.deque[asyncio.Future[None]] = collections.deque()
        """Of the publishers that wait because WINDOW messages are in flight."""
        self._idle = asyncio.Event()

    async def publish(
        self, subject: str, payload: bytes, headers: Headers, *, deadline: float | None = None
    ) -> Ack:
        """Store one message, by the deadline or within the timeout.

        Raises PublishFailed and EncodingError.
        """
        loop, connection = asyncio.get_running_loop(), self._connection
        now = loop.time()
        if deadline is None:
            deadline = now + self._timeout
        if not headers.get(HEADER_ID):
            headers = {**headers, HEADER_ID: new_id()}  # so that a retry is stored once
        head = head_of(subject, headers)
        if self._in_flight < WINDOW:
            self._in_flight += 1
        else:
            await self._wait_turn(subject, deadline)
            now = loop.time()
        try:
            failure, is_suspect = None, False
            if connection.is_connected and now < deadline:
                refusals = connection.size_refusals
                answer = await self._attempt(subject, payload, head, deadline - now)
                if isinstance(answer, Ack):
                    return answer
                failure = answer
                is_suspect = self._is_suspect(len(head) + len(payload), refusals)
            return await self._publish_again(
                subject, payload, head, deadline, failure, is_suspect=is_suspect
            )
        finally:
            self._pass_turn()

    async def drain(self, seconds: float) -> bool:
        """Whether everything in flight finished within that time."""
        try:
            async with asyncio.timeout(seconds):
                while self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _wait_turn(self, subject: str, deadline: float) -> None:
        """Wait for one of those in flight to end, whose place in the window is passed on."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._pass_turn()
            if isinstance(exc, TimeoutError):
                raise self._failure(subject, f"{WINDOW} other messages are in flight") from None
            raise

    def _pass_turn(self) -> None:
        """Give a place in the window to the first publisher that still waits."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    async def _publish_again(
        self,
        subject: str,
        payload: bytes,
        head: bytes,
        deadline: float,
        refusal: str | None,
        *,
        is_suspect: bool,
    ) -> Ack:
        """Try until the deadline; `refusal` is what the first attempt got, None without one."""
        loop, connection = asyncio.get_running_loop(), self._connection
        size = len(head) + len(payload)
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while True:
            failure = refusal or "no answer"
            if refusal:  # for now: give the server a moment
                await asyncio.sleep(min(backoff.next(), max(0.0, deadline - loop.time())))
            if (left := deadline - loop.time()) <= 0:
                break
            if not connection.is_connected and not await connection.wait_connected(left):
                failure = connection.why_silent
                break
            if refusal is not None:
                self.retries += 1
            refusals = connection.size_refusals
            async with self._alone if is_suspect else contextlib.nullcontext():
                answer = await self._attempt(subject, payload, head, left)
            if isinstance(answer, Ack):
                return answer
            refusal = answer
            if self._is_suspect(size, refusals):
                if is_suspect:
                    connection.refuse_size(size)
                is_suspect = True  # sent alone next, to find out whether it is this message
        if failure == "no answer" and self._explain is not None and connection.is_connected:
            failure = await self._explain()
        raise self._failure(subject, failure)

    def _is_suspect(self, size: int, refusals: int) -> bool:
        """Whether a message of that size may be why the server has closed the connection.

        `refusals` is how often it had done so because of a size before the message was sent.
        """
        return self._connection.size_refusals != refusals and size > self._largest

    async def _attempt(
        self, subject: str, payload: bytes, head: bytes, seconds: float
    ) -> Ack | str:
        """Returns the acknowledgement, or why there is none: an empty text if nothing came back.

        Raises PublishFailed, and EncodingError for a message that is too large.
        """
        connection, size = self._connection, len(head) + len(payload)
        check_size(subject, size, connection.max_payload)
        replies = connection.replies
        reply_to, future = replies.expect(subject, min(seconds, ATTEMPT_S))
        try:
            client = connection.client
            if client.buffer(subject, payload, head, reply_to):
                await client.flush_soon()
            reply = await future  # which is forgotten when it is done
        except BaseException as exc:
            replies.forget(reply_to)
            if isinstance(exc, _TRY_AGAIN):
                return str(exc) or type(exc).__name__
            if isinstance(exc, nats_errors.Error):
                raise _publish_error(to_error(exc, f"publishing to {subject}")) from exc
            raise
        if reply is None:
            return ""
        answer = self._decode(subject, reply)
        if size > self._largest and isinstance(answer, Ack):
            self._largest = size
        return answer

    def _decode(self, subject: str, reply: Reply) -> Ack | str:
        if reply.status == "503":
            self._on_no_stream()
            return "no stream captures the subject (or it has no leader at the moment)"
        try:
            ack = _decode_ack(reply.payload)
        except msgspec.DecodeError as exc:
            return f"the answer is not an acknowledgement: {exc}"
        error = ack.error
        if error is None:
            return ack
        if error.err_code == _TOO_LARGE:
            raise EncodingError(
                f"a message for {subject} is larger than the stream accepts: {error}"
            )
        is_temporary = error.code >= 500 and error.err_code != _STORE_FAILED
        if not (is_temporary or error.err_code == _BEING_STORED):
            raise PublishFailed(
                f"the stream refuses a message for {subject}: {_with_hint(error)}", driver=DRIVER
            )
        return _with_hint(error)

    def _failure(self, subject: str, why: str) -> PublishFailed:
        return PublishFailed(
            f"a message for {subject} was not acknowledged by {self._connection.address} within "
            f"{self._timeout:g} s: {why}",
            driver=DRIVER,
        )


def _with_hint(error: ApiError) -> str:
    hint = _HINTS.get(error.err_code)
    return f"{error}: {hint}" if hint else str(error)


def _publish_error(error: EventBusError) -> EventBusError:
    """To a publisher, a connection error means that the message was not acknowledged."""
    return (
        PublishFailed(str(error), driver=DRIVER) if isinstance(error, ConnectionFailed) else error
    )


class WriteMonitor:
    """Watches whether the event stream stores what is published."""

    def __init__(self, connection: NatsConnection, stream: EventStream, event_root: str) -> None:
        """`event_root` is the prefix of event subjects."""
        self.fault = ""
        """Why the stream stores nothing; empty when it does, as far as known."""
        self.is_stuck = False
        """Whether the server drops what is published; only a restart helps."""
        self._outage = OutageLog(_log, "stream %s stores messages again", stream.name)
        self._connection = connection
        self._stream = stream
        self._probe = f"{event_root}{PROBE}"
        self._publisher = Publisher(connection, _PROBE_S, self.explain)
        self._last = -1
        self._may_probe = True

    def stored(self) -> None:
        """Report that a message was stored."""
        self.is_stuck = False
        if self.fault:
            self.fault = ""
            self._outage.ended()

    def failed(self, why: str) -> None:
        """Report that a message was not stored, although there is a connection."""
        if not self.fault:
            message = "stream %s stores no messages: %s"
            self._outage.failed(message, self._stream.name, why, level=logging.ERROR)
        self.fault = why
        self._last = -1  # earlier growth proves nothing now

    async def explain(self) -> str:
        """Why a publish got no answer, as far as the server knows."""
        name = self._stream.name
        reply = None
        with contextlib.suppress(DriverError, TimeoutError):
            async with asyncio.timeout(_EXPLAIN_S):
                reply = await self._connection.request(f"$JS.API.STREAM.INFO.{name}")
        if reply is None:
            return "no answer"
        if reply.status == "503":
            return "no answer: the server has no JetStream, or its cluster has no leader"
        try:
            info = _decode_info(reply.payload)
        except msgspec.DecodeError:
            return "no answer"
        if info.error is not None:
            return f"no answer; stream {name}: {info.error}"
        self.is_stuck = True
        leader = info.cluster.leader or "(none)"
        return (
            f"no answer, although stream {name} can be read: it stores nothing. The disk of its "
            f"leader, nats-server {leader}, may be full or failing: look at that server's log and "
            "/healthz, make room, then restart it (it stores nothing before)"
        )

    async def check(self) -> str:
        """Why messages cannot be stored; empty when they can, or when that is not known.

        A stream that has grown since the last check works. Otherwise a small message is stored
        under a subject that no channel has; that needs the permission to publish it.
        """
        if not self._connection.is_connected:
            return self.fault
        try:
            last = (await self._stream.state()).last
        except DriverError as exc:
            if self._connection.is_connected:
                self.failed(str(exc))
            return self.fault
        grown, self._last = last > self._last >= 0, last
        if grown:
            self.stored()
        elif self._may_probe:
            await self._store_probe()
        return self.fault

    async def _store_probe(self) -> None:
        number = int(time.time()) // _ROUND_S
        try:
            ack = await self._publisher.publish(
                self._probe, b"{}", {HEADER_ID: f"{PROBE}-{number}"}
            )
        except PublishDenied:
            self._may_probe = False
            _log.info(
                "cannot watch whether stream %s stores messages: the NATS user may not publish to "
                "%s",
                self._stream.name,
                self._probe,
            )
        except DriverError as exc:
            if self._connection.is_connected:
                self.failed(str(exc))
        else:
            self._last = max(self._last, ack.seq)
            if not ack.duplicate:
                self.stored()
