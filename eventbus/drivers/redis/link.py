"""One connection to one Redis server, for one life: it is never reconnected, but replaced.

redis-py opens it (TLS, AUTH, SELECT) and speaks its protocol. Here, one task reads and one writes,
so that any number of commands are under way at once, and what is written in one turn of the loop is
one write to the socket.
"""

import asyncio
import collections
import contextlib
import logging
from abc import (
    ABC,
    abstractmethod,
)
from collections.abc import Callable
from typing import (
    Any,
    Final,
    final,
)

from redis import exceptions
from redis.asyncio.connection import Connection

from eventbus.drivers.redis.errors import (
    DRIVER,
    mapped,
)
from eventbus.errors import ConnectionFailed
from eventbus.tasks import Tasks

__all__ = ["DEAD_S", "PING_S", "CommandLink", "Link", "ListenLink", "OnMessage"]


_log = logging.getLogger(__name__)

PING_S: Final = 1.0
"""A connection that is silent for so long is asked for a sign of life."""
DEAD_S: Final = 4.0
"""After so long without an answer the connection is given up."""

_REPLIES: Final = (
    exceptions.ResponseError,
    exceptions.BusyLoadingError,
    exceptions.AuthenticationError,
)
"""Errors that are answers; all others are the end of the connection."""

OnMessage = Callable[[bytes | None, bytes, bytes], None]
"""Gets the glob (None for an exact subscription), the channel and the message."""


class Link(ABC):
    """A connection with a reader, a writer, and a watch over its health."""

    def __init__(self, connection: Connection, address: str, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called once when the connection ends by itself."""
        self.address = address
        self.error: ConnectionFailed | None = None
        """Why the connection is lost, once it is."""
        self._connection = connection
        self._on_lost = on_lost
        self._out: list[bytes] = []
        self._wake = asyncio.Event()
        self._heard = 0.0
        self._is_connected = False
        self._tasks = Tasks()

    @property
    def is_open(self) -> bool:
        """Whether the connection serves."""
        return self._is_connected and self.error is None

    async def open(self) -> None:
        """Connect and authenticate. Raises ConnectionFailed; bounded by the connection's times."""
        try:
            with mapped(
                f"connecting to Redis at {self.address}",
                "check BROADCAST_REDIS_HOST and BROADCAST_REDIS_PORT; "
                "if the server speaks TLS, set BROADCAST_REDIS_TLS=true",
            ):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await self._disconnect()
            raise
        self._connection.socket_timeout = None  # from here on the watch decides
        self._heard = asyncio.get_running_loop().time()
        self._is_connected = True
        for part in (self._read, self._write, self._watch):
            self._tasks.start(self._run(part()), f"the connection to Redis at {self.address}")

    async def aclose(self) -> None:
        """Close; commands in flight fail. Closing twice is harmless."""
        self._fail(ConnectionFailed(f"the connection to {self.address} is closed", driver=DRIVER))
        try:
            await self._tasks.aclose()
        finally:  # also when the caller is cancelled
            await self._disconnect()

    def _send(self, *args: bytes | str | int) -> None:
        if self.error is not None:
            raise self.error
        self._out += self._connection.pack_command(*args)
        self._wake.set()

    @abstractmethod
    def _take(self, reply: Any) -> None:
        """Handle one reply, an exception where the server answered with an error."""

    @abstractmethod
    def _abandon(self, error: ConnectionFailed) -> None:
        """Fail all that waits for a reply."""

    @abstractmethod
    def _ping(self) -> None:
        """Ask for a sign of life."""

    async def _run(self, work: Any) -> None:
        try:
            with mapped(f"the connection to Redis at {self.address} is lost"):
                await work
        except ConnectionFailed as exc:
            self._lose(exc)
        except Exception as exc:  # noqa: BLE001 - a fault of one message, or of this program
            # Without this task the connection is dead: another one takes its place.
            _log.exception("the connection to Redis at %s has failed", self.address)
            self._lose(
                ConnectionFailed(
                    f"the connection to Redis at {self.address} has failed: {type(exc).__name__}",
                    driver=DRIVER,
                )
            )

    def _lose(self, error: ConnectionFailed) -> None:
        if self.error is None:
            self._fail(error)
            self._on_lost()

    def _fail(self, error: ConnectionFailed) -> None:
        if self.error is None:
            self.error = error
            self._abandon(error)

    async def _read(self) -> None:
        read, loop = self._connection.read_response, asyncio.get_running_loop()
        while True:
            try:
                reply = await read(disconnect_on_error=False)
            except _REPLIES as exc:
                reply = exc
            self._heard = loop.time()
            self._take(reply)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            out, self._out = self._out, []
            await self._connection.send_packed_command(b"".join(out), check_health=False)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(PING_S)
            now = loop.time()
            if now - before > 2 * PING_S:
                self._heard = now  # it was this process that was not listening
            silent = now - self._heard
            if silent > DEAD_S:
                raise ConnectionFailed(
                    f"Redis at {self.address} has not answered for {silent:.1f} s", driver=DRIVER
                )
            if silent >= PING_S / 2:
                self._ping()

    async def _disconnect(self) -> None:
        with contextlib.suppress(exceptions.RedisError, OSError):  # it is over either way
            await self._connection.disconnect(nowait=True)


@final
class CommandLink(Link):
    """Commands and their replies, in order."""

    def __init__(self, connection: Connection, address: str, on_lost: Callable[[], None]) -> None:
        """See Link."""
        super().__init__(connection, address, on_lost)
        self._waiting: collections.deque[asyncio.Future[Any]] = collections.deque()

    def call(self, *args: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command; the future has its reply, or the error that the server answered.

        Raises ConnectionFailed, now or in the future, when the connection is lost: the command may
        have been carried out.
        """
        self._send(*args)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def _take(self, reply: Any) -> None:
        future = self._waiting.popleft()
        if future.done():
            return
        if isinstance(reply, exceptions.RedisError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _abandon(self, error: ConnectionFailed) -> None:
        waiting, self._waiting = self._waiting, collections.deque()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionFailed(str(error), driver=DRIVER))
                future.exception()  # whoever waited for it may have gone

    def _ping(self) -> None:
        self.call("PING").add_done_callback(_retrieve)


@final
class ListenLink(Link):
    """Subscriptions, and the messages that come by them."""

    def __init__(
        self,
        connection: Connection,
        address: str,
        on_lost: Callable[[], None],
        on_message: OnMessage,
        on_moved: Callable[[], None],
    ) -> None:
        """`on_message` is called for each message, and must not raise; `on_moved` when the server

        has ended subscriptions, for their slot is another node's now.
        """
        super().__init__(connection, address, on_lost)
        self._on_message = on_message
        self._on_moved = on_moved
        self._confirmed: dict[tuple[str, bytes], asyncio.Future[None]] = {}
        self._asked: dict[bytes, collections.deque[asyncio.Future[None]]] = {}

    def listens(self, command: str, name: bytes) -> bool:
        """Whether a subscription is asked for or confirmed."""
        return (command, name) in self._confirmed

    def listen(self, command: str, name: bytes) -> asyncio.Future[None]:
        """Subscribe, unless that is done already; the future is done when the server has it.

        `command` is SUBSCRIBE, PSUBSCRIBE or SSUBSCRIBE. Raises ConnectionFailed, now or later.
        """
        if (future := self._confirmed.get((command, name))) is None:
            self._send(command, name)
            future = asyncio.get_running_loop().create_future()
            self._confirmed[command, name] = future
            reply = command.lower().encode() + b" " + name
            self._asked.setdefault(reply, collections.deque()).append(future)
        return future

    def unlisten(self, command: str, name: bytes) -> None:
        """Unsubscribe, where there is a subscription."""
        if self._confirmed.pop((command, name), None) is not None and self.error is None:
            self._send(command.replace("SUB", "UNSUB"), name)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, exceptions.RedisError):
            raise reply  # to a subscription, and it does not say which: all are made anew
        match reply:
            case [b"message" | b"smessage", channel, data]:
                self._on_message(None, channel, data)
            case [b"pmessage", glob, channel, data]:
                self._on_message(glob, channel, data)
            case [b"subscribe" | b"psubscribe" | b"ssubscribe" as kind, name, _]:
                self._confirm(kind + b" " + name)
            case [b"sunsubscribe", name, _] if b"ssubscribe " + name not in self._asked:
                if self._confirmed.pop(("SSUBSCRIBE", name), None) is not None:
                    self._on_moved()

    def _confirm(self, reply: bytes) -> None:
        asked = self._asked[reply]
        future = asked.popleft()
        if not asked:
            del self._asked[reply]
        if not future.done():
            future.set_result(None)

    def _abandon(self, error: ConnectionFailed) -> None:
        for asked in self._asked.values():
            for future in asked:
                if not future.done():
                    future.set_exception(ConnectionFailed(str(error), driver=DRIVER))
                    future.exception()  # who waits for it has it; nobody may, once unsubscribed
        self._asked.clear()

    def _ping(self) -> None:
        self._send("PING")


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """An error is a sign of life too; that the user may not PING is the other link's to tell."""
    if not answer.cancelled():
        answer.exception()
