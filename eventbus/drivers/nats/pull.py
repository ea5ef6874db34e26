"""Jobs pulled from a JetStream consumer: what is ready at once, or the next one when it comes.

A message that a consumer delivers bears its own subject, not that of the request, so that each kind
of request of each queue has a subscription of its own.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import secrets
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

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventbus.drivers.base import Headers
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import mapped
from eventbus.drivers.queues import (
    Failure,
    LeasedJob,
)
from eventbus.errors import (
    DriverError,
    EventBusError,
)

__all__ = ["HEADER_ATTEMPTS", "NatsLeasedJob", "NatsReader", "Store"]


_log = logging.getLogger(__name__)

HEADER_ATTEMPTS: Final = "Eb-Attempts"
"""How often a job was taken before it was handed back, and so stored anew."""
POLL_S: Final = 30.0
HEARTBEAT_S: Final = 5.0
_ATTEMPTS: Final = re.compile("[0-9]{1,9}")
FETCH_S: Final = 2.0
_CLOSE_S: Final = 2.0
_NORMAL_ENDS: Final = ("", "404", "408")
_NANO: Final = 1_000_000_000


class Store(Protocol):
    """What a reader and its jobs need of the queues' store."""

    name: str
    lease: float
    connection: NatsConnection

    async def ensure_consumer(self, queue: str) -> None:
        """Make the stream and the queue's consumer where they are missing."""

    def doubt(self, queue: str) -> None:
        """The consumer may be gone: the next `ensure_consumer` asks."""

    async def push_again(
        self, queue: str, key: str, payload: bytes, headers: Headers, delay: float = 0.0
    ) -> None:
        """Store a job anew, once for each key."""

    async def has(self, sequence: int) -> bool:
        """Whether a message of the stream of jobs is still there."""

    async def keep(self, failure: Failure) -> None:
        """Keep a failure."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background, until the store is closed."""


class NatsLeasedJob:
    """A message that a consumer has delivered."""

    __slots__ = (
        "_ack",
        "_is_same_try",
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
        self._is_same_try = False

    async def done(self) -> None:
        """It has been done."""
        await self._confirm(b"+ACK")

    async def retry(self, seconds: float) -> None:
        """Give it to a reader again, after that time."""
        if self._is_same_try:  # and the server has counted two
            await self._push_again("again", self.attempt, seconds)
            return
        await self._confirm(b"-NAK " + json.dumps({"delay": int(seconds * _NANO)}).encode())

    async def hand_back(self) -> None:
        """Store it anew, since the server counts each delivery; then drop this one."""
        await self._push_again("back", self.attempt - 1, 0.0)

    async def fail(self, failure: Failure) -> None:
        """Keep it among the failures, then drop it from the queue."""
        await self._replace(self._store.keep(failure))

    async def touch(self) -> bool:
        """Its lease begins again; False where there is no connection."""
        client = self._store.connection.client
        with contextlib.suppress(EventBusError), mapped("extending a lease"):
            await client.publish(self._ack, b"+WPI")
            return client.is_connected
        return False

    async def is_queued(self) -> bool:
        """Whether its message is still in the stream. Raises ConnectionFailed."""
        return await self._store.has(self._sequence)

    def continues(self, earlier: LeasedJob) -> None:
        """It is the same try as `earlier`."""
        self.attempt, self._is_same_try = earlier.attempt, True

    async def _push_again(self, why: str, attempts: int, delay: float) -> None:
        """Store it anew and drop this one; neither, where the server does not answer.

        When all tasks of a program are cancelled at once, those of the client are too: what is
        sent then may arrive, but its acknowledgement is not read.
        """
        if not await self._is_answered():
            _log.warning(
                "a job of queue %s (%s) stays where it is until its lease ends: the server does "
                "not answer",
                self.queue,
                self.key,
            )
            return
        headers = {HEADER_ATTEMPTS: str(attempts)}
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
                "a job of queue %s (%s) stays where it is until its lease ends: %s",
                self.queue,
                self.key,
                exc,
            )
        else:
            await self._confirm(b"+ACK")

    async def _confirm(self, word: bytes) -> None:
        """Tell the server until it has heard; after the lease it would not matter any more."""
        connection, loop = self._store.connection, asyncio.get_running_loop()
        deadline = loop.time() + self._store.lease
        failure = "no answer"
        while (left := deadline - loop.time()) > 0 and await connection.wait_connected(left):
            try:
                reply = await connection.request(self._ack, word)
            except DriverError as exc:
                failure = str(exc)
                await asyncio.sleep(0.1)
                continue
            if reply is None:
                continue
            if reply.status != "503":
                return
            failure = "the queue's stream or consumer is gone"
            break
        _log.error(
            "the end of a job of queue %s (%s) was not confirmed, it may be run again: %s",
            self.queue,
            self.key,
            failure,
        )


class _Inlet:
    """One subscription for the answers to one kind of request, of which one is open at a time."""

    def __init__(self, connection: NatsConnection, on_stray: Callable[[Msg], None]) -> None:
        self._connection = connection
        self._on_stray = on_stray
        self._prefix = f"{connection.inbox_prefix}.{secrets.token_hex(11)}"
        self._client: Client | None = None
        self._subscription: Subscription | None = None
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._open = False
        self._is_late = False
        """Whether the last request ended in silence: what still comes is for the next one."""
        self._requests = 0

    async def pull(
        self, subject: str, request: bytes, *, limit: int, quiet: float
    ) -> tuple[list[Msg], str]:
        """What came, and the status that ended it: empty when all did.

        `quiet` ends it when nothing, not even a heartbeat, was heard for that many seconds.
        """
        taken: list[Msg] = []
        self._requests += 1
        reply = f"{self._prefix}.{self._requests}"
        loop = asyncio.get_running_loop()
        self._open, self._is_late = True, False
        try:
            client = await self._listen()
            with mapped(f"a request to {subject}"):
                await client.publish(subject, request, reply=reply)
            async with asyncio.timeout(quiet) as time:
                while len(taken) < limit:
                    message = await self._arrived.get()
                    if message is None:
                        return taken, "lost"
                    if message.subject.startswith(self._prefix):
                        status = (message.headers or {}).get("Status", "")
                        if message.subject == reply and status != "100":
                            return taken, status
                        time.reschedule(loop.time() + quiet)
                    else:
                        taken.append(message)
            return taken, ""
        except TimeoutError:
            self._is_late = True
            return taken, "quiet"
        except BaseException:
            for message in taken:
                self._on_stray(message)
            raise
        finally:
            self._open = False
            if not self._is_late:
                self._clear()

    def wake(self) -> None:
        """End the open request: the connection is another one."""
        if self._open:
            self._arrived.put_nowait(None)

    async def aclose(self) -> None:
        """Unsubscribe; what is still under way is taken as a stray."""
        self._is_late = False
        self._clear()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            # A client that has lost its connection has forgotten the subscription already.
            with contextlib.suppress(nats_errors.Error, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await subscription.drain()  # type: ignore[no-untyped-call]

    async def _listen(self) -> Client:
        client = self._connection.client
        if client is not self._client:
            with mapped("listening for jobs"):
                self._subscription = await client.subscribe(f"{self._prefix}.*", cb=self._receive)
            self._client = client
        return client

    async def _receive(self, message: Msg) -> None:
        if self._open or self._is_late:
            self._arrived.put_nowait(message)
        elif not message.subject.startswith(self._prefix):
            self._on_stray(message)

    def _clear(self) -> None:
        while not self._arrived.empty():
            message = self._arrived.get_nowait()
            if message is not None and not message.subject.startswith(self._prefix):
                self._on_stray(message)


class NatsReader:
    """Takes jobs from one queue."""

    def __init__(self, store: Store, queue: str, on_close: Callable[["NatsReader"], None]) -> None:
        self.queue = queue
        self._store = store
        self._on_close = on_close
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{store.name}.{queue}"
        self._at_once = _Inlet(store.connection, self._stray)
        self._later = _Inlet(store.connection, self._stray)
        # Of a worker that stands still, an open request takes no job back that was its own: the
        # request ends before the lease of such a job, which was extended a third ago at most.
        expires = min(POLL_S, store.lease / 2)
        self._heartbeat = min(HEARTBEAT_S, expires / 3)
        self._poll = json.dumps({
            "batch": 1, "expires": int(expires * _NANO),
            "idle_heartbeat": int(self._heartbeat * _NANO),
        }).encode()  # fmt: skip

    async def fetch(self, limit: int) -> Sequence[NatsLeasedJob]:
        """What is ready now; see `QueueReader.fetch`."""
        await self._store.ensure_consumer(self.queue)
        request = json.dumps({"batch": limit, "no_wait": True}).encode()
        messages, status = await self._at_once.pull(self._next, request, limit=limit, quiet=FETCH_S)
        await self._judge(status, found=bool(messages))
        return [NatsLeasedJob(self._store, self.queue, message) for message in messages]

    async def wait(self) -> NatsLeasedJob | None:
        """The next job; see `QueueReader.wait`."""
        await self._store.ensure_consumer(self.queue)
        messages, status = await self._later.pull(
            self._next, self._poll, limit=1, quiet=2 * self._heartbeat + 1
        )
        await self._judge(status, found=bool(messages))
        return NatsLeasedJob(self._store, self.queue, messages[0]) if messages else None

    def wake(self) -> None:
        """The connection is another one: what was asked on the old one is void."""
        self._at_once.wake()
        self._later.wake()

    async def aclose(self) -> None:
        """Take no more."""
        self._on_close(self)
        await asyncio.gather(self._at_once.aclose(), self._later.aclose())

    async def _judge(self, status: str, *, found: bool) -> None:
        """Anything but an ordinary end may mean that the consumer is gone, or moved."""
        if status in _NORMAL_ENDS:
            return
        self._store.doubt(self.queue)
        if not found:
            await asyncio.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - no secret

    def _stray(self, message: Msg) -> None:
        self._store.start(NatsLeasedJob(self._store, self.queue, message).hand_back())
