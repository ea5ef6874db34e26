"""Publishing: acknowledged, pipelined within a window, retried with the same id."""

import asyncio
import hashlib
from typing import Final

from redis import exceptions

from eventbus.attempts import Backoff
from eventbus.drivers.base import Headers
from eventbus.drivers.redis.errors import (
    DRIVER,
    Denied,
    is_denied,
    is_passing,
    to_error,
)
from eventbus.drivers.redis.nodes import Nodes
from eventbus.drivers.redis.script import PUBLISH_SHARDED
from eventbus.drivers.redis.store import Store, Stored
from eventbus.drivers.redis.wire import (
    MAX_MESSAGE,
    VOLATILE_PREFIX,
    encode_body,
)
from eventbus.errors import (
    ConnectionFailed,
    EncodingError,
    PublishDenied,
    PublishFailed,
)
from eventbus.messages import HEADER_ID, new_id

__all__ = ["Publisher", "Window"]


MAX_IN_FLIGHT: Final = 1024
MAX_BYTES_IN_FLIGHT: Final = 64 * 1024**2
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 1.0


class Window:
    """Limits what is in flight, in messages and bytes; callers wait in order."""

    def __init__(self, messages: int = MAX_IN_FLIGHT, size: int = MAX_BYTES_IN_FLIGHT) -> None:
        """An empty window admits one message of any size."""
        self._free = messages
        self._free_bytes = self._all_bytes = size
        self._taken = 0
        self._waiters: dict[asyncio.Future[None], int] = {}
        """The sizes of messages that wait for room, in order."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def take(self, size: int) -> None:
        """Wait for room, and reserve it."""
        if not self._waiters and self._fits(size):
            self._enter(size)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiters[turn] = size
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiters.pop(turn, None) is None and not turn.cancelled():
                self.give(size)  # its turn came in the same moment
            else:
                self._admit()
            raise

    def give(self, size: int) -> None:
        """Release the room."""
        self._taken -= 1
        self._free += 1
        self._free_bytes += size
        self._admit()
        if not self._taken:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def _fits(self, size: int) -> bool:
        return self._free > 0 and (size <= self._free_bytes or not self._taken)

    def _enter(self, size: int) -> None:
        self._taken += 1
        self._free -= 1
        self._free_bytes -= size
        self._idle.clear()

    def _admit(self) -> None:
        while self._waiters:
            turn, size = next(iter(self._waiters.items()))
            if not turn.cancelled():
                if not self._fits(size):
                    return
                self._enter(size)
                turn.set_result(None)
            del self._waiters[turn]


class Publisher:
    """Stores durable messages, and sends volatile ones."""

    def __init__(self, nodes: Nodes, store: Store, timeout: float) -> None:
        """`timeout`: seconds for the acknowledgement of a message."""
        self.retries = 0
        """How many attempts were repetitions."""
        self._nodes = nodes
        self._store = store
        self._timeout = timeout
        self._window = Window()
        self._limits: set[asyncio.Timeout] = set()
        """The time limits of messages that are being stored."""
        self._is_closed = False

    async def store(self, live: str, payload: bytes, headers: Headers) -> Stored:
        """Store one message for a live subject. Raises PublishFailed and EncodingError."""
        message_id = headers.get(HEADER_ID) or new_id()
        digest = hashlib.blake2b(message_id.encode(), digest_size=16).digest()
        body = _checked(live, encode_body(payload, headers))
        channel = live.encode()
        failure: Exception | None = None
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                self._limits.add(limit)
                await self._window.take(len(body))
                try:
                    while True:
                        await self._nodes.wait(channel)
                        try:
                            return await self._store.add(channel, body, digest)
                        except (ConnectionFailed, exceptions.RedisError) as exc:
                            if is_denied(exc) or not (
                                isinstance(exc, ConnectionFailed) or is_passing(exc)
                            ):
                                raise
                            failure = exc
                        self.retries += 1
                        await asyncio.sleep(backoff.next())
                finally:
                    self._window.give(len(body))
        except TimeoutError:
            when = "until the close" if self._is_closed else f"within {self._timeout:g} s"
            raise self._failed(live, failure, when) from failure
        except (Denied, exceptions.RedisError, exceptions.RedisClusterException) as exc:
            raise self._failed(live, exc, "") from exc
        finally:
            self._limits.discard(limit)

    async def send(self, subject: str, payload: bytes, headers: Headers) -> None:
        """Send one message to current subscribers. Raises PublishFailed and EncodingError."""
        frame = _checked(subject, VOLATILE_PREFIX + encode_body(payload, headers))
        channel = subject.encode()
        try:
            async with asyncio.timeout(self._timeout):
                await self._window.take(len(frame))
                try:
                    if self._nodes.layout.slots is None:
                        await self._nodes.of(channel).commands.call("PUBLISH", channel, frame)
                    else:
                        await self._send_sharded(channel, frame)
                finally:
                    self._window.give(len(frame))
        except TimeoutError:
            raise self._failed(subject, None, f"within {self._timeout:g} s") from None
        except (ConnectionFailed, exceptions.RedisError, exceptions.RedisClusterException) as exc:
            raise self._failed(subject, exc, "") from exc

    async def _send_sharded(self, channel: bytes, frame: bytes) -> None:
        while True:
            try:
                await self._nodes.evaluate(
                    channel, PUBLISH_SHARDED, [], lambda node: (channel, frame, node.run)
                )
                return
            except exceptions.ResponseError as exc:
                if "non local" not in str(exc):  # what a script gets in place of MOVED
                    raise
            self._nodes.recheck()
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing is in flight; False if that takes longer than `seconds`.

        What is in flight after that fails: nothing will be connected again.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._window.wait_idle()
        except TimeoutError:
            self._is_closed = True
            now = asyncio.get_running_loop().time()
            for limit in self._limits:
                if not limit.expired():
                    limit.reschedule(now)
            return False
        return True

    def _failed(self, subject: str, failure: Exception | None, when: str) -> PublishFailed:
        try:
            self._nodes.of(subject.encode())
            why: object = "no answer"
        except ConnectionFailed as exc:
            why = exc
        if failure is not None and is_denied(failure):
            return PublishDenied(
                f"no permission to publish to {subject}: the Redis user must be granted it: "
                f"{failure}",
                driver=DRIVER,
            )
        if isinstance(failure, exceptions.RedisError | exceptions.RedisClusterException):
            why = to_error(failure, "Redis answered")
        elif failure is not None:
            why = failure
        return PublishFailed(
            f"a message for {subject} was not acknowledged{when and ' '}{when}: {why}",
            driver=DRIVER,
        )


def _checked(subject: str, body: bytes) -> bytes:
    if len(body) > MAX_MESSAGE:
        raise EncodingError(
            f"a message of {len(body)} bytes for {subject} is larger than the redis driver allows: "
            f"{MAX_MESSAGE} bytes, including headers"
        )
    return body
