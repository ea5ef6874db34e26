"""Readers of a queue, and the leases of the jobs that they have fetched."""

import asyncio
import contextlib
import logging
import re
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Sequence,
)
from typing import (
    Any,
    Final,
    Protocol,
)

import msgspec
from nats.aio.msg import Msg

from eventbus.attempts import Backoff
from eventbus.drivers.base import Headers
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import mapped
from eventbus.drivers.nats.jetstream import NANO
from eventbus.drivers.nats.pull import (
    LOST,
    SILENT,
    Pull,
    is_normal_end,
)
from eventbus.drivers.queues import (
    Failure,
)
from eventbus.errors import (
    DriverError,
    EventBusError,
)

__all__ = ["HEADER_ATTEMPTS", "NatsLeasedJob", "NatsReader", "Store"]

_log = logging.getLogger(__name__)

HEADER_ATTEMPTS: Final = "Eb-Attempts"
"""How many attempts a job had before it was handed back, and so stored again."""
POLL_S: Final = 30.0
HEARTBEAT_S: Final = 5.0
_ATTEMPTS: Final = re.compile("[0-9]{1,9}")
_CONFIRM_PAUSE_S: Final = 0.1
_PULL_AGAIN: Final = Backoff(0.2, 0.2, jitter=0.9)
"""Before a pull that the server has ended is sent again."""


class Store(Protocol):
    """The parts of the queue store that readers and their jobs use."""

    name: str
    lease: float
    connection: NatsConnection

    async def ensure_consumer(self, queue: str) -> None:
        """Create the stream and the queue's consumer if they do not exist."""

    def invalidate(self, queue: str) -> None:
        """The consumer may be gone: let the next `ensure_consumer` check."""

    async def push_again(
        self, queue: str, key: str, payload: bytes, headers: Headers, delay: float = 0.0
    ) -> None:
        """Store a job again, once per key."""

    async def has(self, sequence: int) -> bool:
        """Whether the stream of jobs still has a message."""

    async def add_failure(self, failure: Failure) -> None:
        """Store a failure."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background until the store is closed."""


class NatsLeasedJob:
    """A job that a consumer has delivered; its lease is the consumer's `ack_wait`."""

    __slots__ = (
        "_ack",
        "_is_recounted",
        "_sequence",
        "_store",
        "attempt",
        "key",
        "payload",
        "queue",
    )

    def __init__(self, store: Store, queue: str, message: Msg) -> None:
        self.queue = queue
        self.payload = message.data
        delivered = message.metadata
        self._sequence = delivered.sequence.stream
        self.key = f"seq-{self._sequence}"
        before = _ATTEMPTS.fullmatch((message.headers or {}).get(HEADER_ATTEMPTS, ""))
        self.attempt = delivered.num_delivered + (int(before[0]) if before else 0)
        self._ack = message.reply
        self._store = store
        self._is_recounted = False

    async def done(self) -> None:
        """Remove the job: it succeeded."""
        await self._confirm(b"+ACK")

    async def retry(self, seconds: float) -> None:
        """Deliver the job again after that time."""
        if self._is_recounted:  # the server would go on from its own count
            await self._push_again("again", self.attempt, seconds)
            return
        await self._confirm(b"-NAK " + msgspec.json.encode({"delay": int(seconds * NANO)}))

    async def hand_back(self) -> None:
        """Store the job again, since the server counts each delivery; then delete this copy."""
        await self._push_again("back", self.attempt - 1, 0.0)

    async def fail(self, failure: Failure) -> None:
        """Store the failure, then delete the job from its queue."""
        await self._replace(self._store.add_failure(failure))

    async def touch(self) -> bool:
        """Extend the lease; False without a connection."""
        client = self._store.connection.client
        with contextlib.suppress(EventBusError), mapped("extending a lease"):
            await client.publish(self._ack, b"+WPI")
            return client.is_connected
        return False

    async def is_queued(self) -> bool:
        """Whether the job is still in the stream. Raises ConnectionFailed."""
        return await self._store.has(self._sequence)

    def counts_as(self, attempt: int) -> None:
        """Count this delivery as that attempt."""
        self.attempt, self._is_recounted = attempt, True

    async def _push_again(self, why: str, attempts: int, delay: float) -> None:
        """Store the job again and delete this copy; neither when the server does not answer.

        Nor when the copy is gone: its lease ended, and another worker has finished it.
        When all tasks of a program are cancelled at once, so are the client's: what it sends then
        may arrive, but nothing reads the acknowledgement.
        """
        if not await self._is_answered():
            _log.warning(
                "job %s of queue %s stays leased until the lease expires: the server does not "
                "answer",
                self.key,
                self.queue,
            )
            return
        headers = {HEADER_ATTEMPTS: str(attempts)}
        with contextlib.suppress(DriverError):
            if not await self.is_queued():
                return
        key = f"{self.key}-{why}-{attempts}"
        await self._replace(self._store.push_again(self.queue, key, self.payload, headers, delay))

    async def _is_answered(self) -> bool:
        try:
            return await self._store.connection.request(self._ack, b"+WPI") is not None
        except DriverError:
            return False

    async def _replace(self, elsewhere: Awaitable[None]) -> None:
        try:
            await elsewhere
        except EventBusError as exc:
            _log.error(
                "job %s of queue %s stays leased until the lease expires: %s",
                self.key,
                self.queue,
                exc,
            )
        else:
            await self._confirm(b"+ACK")

    async def _confirm(self, word: bytes) -> None:
        """Send the answer until the server confirms it, or the lease has expired."""
        connection, loop = self._store.connection, asyncio.get_running_loop()
        deadline = loop.time() + self._store.lease
        failure = "no answer"
        while (left := deadline - loop.time()) > 0 and await connection.wait_connected(left):
            try:
                reply = await connection.request(self._ack, word)
            except DriverError as exc:
                failure = str(exc)
                await asyncio.sleep(_CONFIRM_PAUSE_S)
                continue
            if reply is None:
                continue
            if reply.status != "503":
                return
            failure = "the queue's stream or consumer is gone"
            break
        _log.error(
            "the end of job %s of queue %s was not confirmed, it may run again: %s",
            self.key,
            self.queue,
            failure,
        )


class NatsReader:
    """Leases jobs of one queue."""

    def __init__(self, store: Store, queue: str, on_close: Callable[["NatsReader"], None]) -> None:
        self.queue = queue
        self._store = store
        self._on_close = on_close
        self._late: list[Msg] = []
        """Messages that arrived after their request had ended in silence; the next fetch gets them.

        It gets them before what it requests: that may include a redelivery of the same jobs.
        """
        self._fetches = _Collector(store, queue, self._hand_back, self._late)
        self._polls = _Collector(store, queue, self._hand_back, self._late)
        # An open request must not lease this worker's own job again when the worker stalls: the
        # request ends before such a lease, which was extended at most a third of it ago.
        self._expires_s = min(POLL_S, store.lease / 2)
        self._heartbeat_s = min(HEARTBEAT_S, self._expires_s / 3)

    async def fetch(self, limit: int) -> Sequence[NatsLeasedJob]:
        """Lease jobs that are ready; see `QueueReader.fetch`."""
        await self._store.ensure_consumer(self.queue)
        late = self._late.copy()
        self._late.clear()
        return await self._leased(*await self._fetches.collect(limit, late))

    async def wait(self) -> NatsLeasedJob | None:
        """Lease the next job; see `QueueReader.wait`."""
        await self._store.ensure_consumer(self.queue)
        if self._late:
            return None
        messages, status = await self._polls.collect(
            1, expires_s=self._expires_s, heartbeat_s=self._heartbeat_s
        )
        self._late += messages[1:]  # of an earlier request
        jobs = await self._leased(messages[:1], status)
        return jobs[0] if jobs else None

    def on_reconnected(self) -> None:
        """Requests on an earlier connection are void."""
        self._fetches.on_reconnected()
        self._polls.on_reconnected()

    async def aclose(self) -> None:
        """Stop leasing jobs."""
        self._on_close(self)
        try:
            await asyncio.gather(self._fetches.aclose(), self._polls.aclose())
        finally:
            while self._late:
                self._hand_back(self._late.pop())

    async def _leased(self, messages: list[Msg], status: str) -> list[NatsLeasedJob]:
        if not is_normal_end(status):
            self._store.invalidate(self.queue)
            if not messages:
                await asyncio.sleep(_PULL_AGAIN.delay(0))
        return [NatsLeasedJob(self._store, self.queue, message) for message in messages]

    def _hand_back(self, message: Msg) -> None:
        self._store.start(NatsLeasedJob(self._store, self.queue, message).hand_back())


class _Collector:
    """Collects the messages of one request; hands back those that arrive between requests.

    Messages that arrive after a request ended in silence are added to `late` instead.
    """

    def __init__(
        self, store: Store, queue: str, hand_back: Callable[[Msg], None], late: list[Msg]
    ) -> None:
        self.pull = Pull(store.connection, store.name, queue, self._receive)
        self._hand_back = hand_back
        self._messages: list[Msg] | None = None
        self._late = late

    async def collect(
        self,
        batch: int,
        first: Sequence[Msg] = (),
        *,
        expires_s: float = 0.0,
        heartbeat_s: float = 0.0,
    ) -> tuple[list[Msg], str]:
        """The messages of a request after those of `first`, and the status that ended it."""
        messages = self._messages = list(first)
        try:
            if (missing := batch - len(messages)) <= 0:
                return messages, ""
            await self.pull.request(missing, expires_s=expires_s, heartbeat_s=heartbeat_s)
            while self.pull.is_open:
                await self.pull.wait()
        except BaseException:
            for message in messages:
                self._hand_back(message)
            raise
        finally:
            self._messages = None
            self.pull.end("")
        return messages, self.pull.status

    def on_reconnected(self) -> None:
        self.pull.end(LOST)

    async def aclose(self) -> None:
        await self.pull.aclose()

    def _receive(self, message: Msg) -> None:
        if self._messages is not None:
            self._messages.append(message)
        elif self.pull.status == SILENT:
            self._late.append(message)
        else:
            self._hand_back(message)
