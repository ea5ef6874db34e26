"""One connection to one Redis server. It is never reconnected, but replaced by another one.

redis-py opens it (TLS, AUTH, SELECT) and parses the protocol. Here, one task reads and one writes,
so that any number of commands can be in flight, and those of one event loop turn share one write to
the socket.
"""

import asyncio
import collections
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection

from eventbus.drivers.redis.errors import DRIVER, is_denied, mapped, to_error
from eventbus.errors import ConnectionFailed, SubscribeDenied
from eventbus.tasks import Tasks

__all__ = ["DEAD_S", "PING_S", "CommandLink", "Link", "ListenLink", "OnMessage", "disconnect"]


_log = logging.getLogger(__name__)

PING_S: Final = 1.0
"""A connection that is silent for this long is pinged."""
DEAD_S: Final = 4.0
"""A connection that does not answer for this long is given up."""

_DISCONNECT_S: Final = 1.0

_OVER_TCP: Final = "if the server speaks TLS, set BROADCAST_REDIS_TLS=true"
_OVER_TLS: Final = (
    "if the server asks for a client's certificate, set BROADCAST_REDIS_TLS_CERT and "
    "BROADCAST_REDIS_TLS_KEY"
)
"""A server may end the connection before its alert about a missing certificate has been read."""

_REPLIES: Final = (
    exceptions.ResponseError,
    exceptions.BusyLoadingError,
    exceptions.AuthenticationError,
)
"""Errors that are replies; all others end the connection."""

OnMessage = Callable[[bytes | None, bytes, bytes], None]
"""Takes the glob (None for an exact subscription), the channel and the message."""


async def disconnect(connection: Connection, *, is_lost: bool = False) -> None:
    """Close a connection and wait until its socket is closed, in bounded time.

    Over TLS, closing is an exchange with the server: an event loop that ends before it is finished
    leaves the socket open. Nobody waits for a server that does not answer: pass `is_lost`.
    """
    # It is closed in any case. After the timeout, asyncio does it by itself.
    with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_DISCONNECT_S):
            await connection.disconnect(nowait=is_lost)


class Link(ABC):
    """A connection with a reader, a writer, and a liveness check."""

    def __init__(self, connection: Connection, address: str, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called once, if the connection is lost without being closed."""
        self.address = address
        self.error: ConnectionFailed | None = None
        """Why the connection was lost or closed."""
        self._connection = connection
        self._on_lost = on_lost
        self._out: list[bytes] = []
        self._wake = asyncio.Event()
        self._heard = 0.0
        self._is_connected = False
        self._tasks = Tasks()

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used."""
        return self._is_connected and self.error is None

    async def open(self) -> None:
        """Connect and authenticate, within the connection's timeouts. Raises ConnectionFailed."""
        try:
            is_tls = isinstance(self._connection, SSLConnection)
            with mapped(
                f"connecting to Redis at {self.address}",
                "check BROADCAST_REDIS_HOST and BROADCAST_REDIS_PORT; "
                + (_OVER_TLS if is_tls else _OVER_TCP),
            ):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await disconnect(self._connection)
            raise
        self._connection.socket_timeout = None  # from here on, _watch decides
        self._heard = asyncio.get_running_loop().time()
        self._is_connected = True
        for part in (self._read, self._write, self._watch):
            self._tasks.start(self._run(part()), f"the connection to Redis at {self.address}")

    async def aclose(self) -> None:
        """Close; commands in flight fail. Closing twice is harmless."""
        is_lost = self.error is not None
        self._fail(ConnectionFailed(f"the connection to {self.address} is closed", driver=DRIVER))
        try:
            await self._tasks.aclose()
        finally:  # also when the caller is cancelled
            await disconnect(self._connection, is_lost=is_lost)

    def _send(self, *args: bytes | str | int) -> None:
        if self.error is not None:
            raise self.error
        self._out += self._connection.pack_command(*args)
        self._wake.set()

    @abstractmethod
    def _take(self, reply: Any) -> None:
        """Handle one reply; an error reply is an exception."""

    @abstractmethod
    def _abandon(self, error: ConnectionFailed) -> None:
        """Fail everything that waits for a reply."""

    @abstractmethod
    def _ping(self) -> None:
        """Send a ping."""

    async def _run(self, work: Any) -> None:
        try:
            with mapped(f"the connection to Redis at {self.address} is lost"):
                await work
        except ConnectionFailed as exc:
            self._lose(exc)
        except Exception as exc:  # noqa: BLE001 - a malformed message, or a bug in this program
            # The connection is useless without this task, so it is replaced.
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
            try:
                await self._connection.send_packed_command(b"".join(out), check_health=False)
            except TypeError as exc:
                # asyncio on Python 3.12.1 and 3.13.0, when the connection is lost: CPython
                # gh-136234.
                raise ConnectionResetError("the connection is lost") from exc

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(PING_S)
            now = loop.time()
            if now - before > 2 * PING_S:
                self._heard = now  # this process was suspended
            silent = now - self._heard
            if silent > DEAD_S:
                raise ConnectionFailed(
                    f"Redis at {self.address} has not answered for {silent:.1f} s", driver=DRIVER
                )
            if silent >= PING_S / 2:
                self._ping()


@final
class CommandLink(Link):
    """A connection for commands, whose replies arrive in order."""

    def __init__(self, connection: Connection, address: str, on_lost: Callable[[], None]) -> None:
        """See Link."""
        super().__init__(connection, address, on_lost)
        self._waiting: collections.deque[asyncio.Future[Any]] = collections.deque()

    def call(self, *args: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply, or the server's error.

        A lost connection raises ConnectionFailed, here or in the future: the command may have been
        executed.
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
                future.exception()  # perhaps nobody waits for it any more

    def _ping(self) -> None:
        self.call("PING").add_done_callback(_retrieve)


class _Sent(NamedTuple):
    """A command whose reply has not arrived; `future` is for the reply to a subscription."""

    command: str
    name: bytes = b""
    future: asyncio.Future[None] | None = None


@final
class ListenLink(Link):
    """A connection for subscriptions and their messages."""

    def __init__(
        self,
        connection: Connection,
        address: str,
        on_lost: Callable[[], None],
        on_message: OnMessage,
        on_moved: Callable[[], None],
    ) -> None:
        """`on_message` is called for each message, and must not raise.

        `on_moved` is called when the server ends or refuses subscriptions because another node may
        have their slot.
        """
        super().__init__(connection, address, on_lost)
        self.refused: dict[tuple[str, bytes], str] = {}
        """Subscriptions that the user has no permission for, and why. `listen` retries them."""
        self._on_message = on_message
        self._on_moved = on_moved
        self._confirmed: dict[tuple[str, bytes], asyncio.Future[None]] = {}
        self._sent: collections.deque[_Sent] = collections.deque()
        """In order, as the replies are. The reply of an error does not name its command."""

    def listens(self, command: str, name: bytes) -> bool:
        """Whether a subscription is requested or confirmed."""
        return (command, name) in self._confirmed

    def listen(self, command: str, name: bytes) -> asyncio.Future[None]:
        """Subscribe, if not done yet; the future is done when the server confirms it.

        `command` is SUBSCRIBE, PSUBSCRIBE or SSUBSCRIBE. Raises ConnectionFailed, here or in the
        future, which also gets SubscribeDenied.
        """
        if (future := self._confirmed.get((command, name))) is None:
            self._send(command, name)
            future = asyncio.get_running_loop().create_future()
            self._confirmed[command, name] = future
            self._sent.append(_Sent(command, name, future))
        return future

    def unlisten(self, command: str, name: bytes) -> None:
        """Unsubscribe, if there is a subscription."""
        self.refused.pop((command, name), None)
        if self._confirmed.pop((command, name), None) is not None and self.error is None:
            unsubscribe = command.replace("SUB", "UNSUB")
            self._send(unsubscribe, name)
            self._sent.append(_Sent(unsubscribe, name))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, exceptions.RedisError):
            self._refuse(reply)
            return
        match reply:
            case [b"message" | b"smessage", channel, data]:
                self._on_message(None, channel, data)
            case [b"pmessage", glob, channel, data]:
                self._on_message(glob, channel, data)
            case [b"sunsubscribe", name, _] if not self._is_next("SUNSUBSCRIBE", name):
                self._end(name)
            case [bytes() as kind, name, _]:
                if not self._is_next(kind.decode().upper(), name):
                    raise exceptions.InvalidResponse(f"an answer to nothing: {kind!r} {name!r}")
                self._confirm(self._sent.popleft())
            case _:  # to PING
                self._sent.popleft()

    def _is_next(self, command: str, name: bytes) -> bool:
        return bool(self._sent) and self._sent[0][:2] == (command, name)

    def _confirm(self, sent: _Sent) -> None:
        if sent.future is not None:
            self.refused.pop((sent.command, sent.name), None)
            if not sent.future.done():
                sent.future.set_result(None)

    def _end(self, name: bytes) -> None:
        """The server has ended a subscription of its own accord."""
        future = self._confirmed.get(("SSUBSCRIBE", name))
        if future is not None and future.done():  # otherwise a newer one is under way
            del self._confirmed["SSUBSCRIBE", name]
            self._on_moved()

    def _refuse(self, error: exceptions.RedisError) -> None:
        """Handle an error, which is the answer to the oldest command."""
        if not self._sent or not isinstance(error, exceptions.ResponseError):
            raise error  # about the connection: it is replaced
        command, name, future = self._sent.popleft()
        if future is None:
            # To PING: an error shows, too, that the server is alive. To the end of a subscription:
            # its messages continue, and are ignored.
            return
        key = command, name
        is_current = self._confirmed.get(key) is future
        if is_current:
            del self._confirmed[key]
        shown = name.decode(errors="replace")
        if is_denied(error):
            kind: type[ConnectionFailed] = SubscribeDenied
            why = (
                f"no permission to subscribe to {shown}: the Redis user must be granted it: {error}"
            )
            if is_current:
                self.refused[key] = why
        else:
            kind = ConnectionFailed
            why = str(to_error(error, f"subscribing to {shown} at {self.address}"))
            self._on_moved()
        if not future.done():
            future.set_exception(kind(why, driver=DRIVER))
            future.exception()  # nobody waits for it once unsubscribed

    def _abandon(self, error: ConnectionFailed) -> None:
        for _, _, future in self._sent:
            if future is not None and not future.done():
                future.set_exception(ConnectionFailed(str(error), driver=DRIVER))
                future.exception()  # nobody waits for it once unsubscribed
        self._sent.clear()

    def _ping(self) -> None:
        self._send("PING")
        self._sent.append(_Sent("PING"))


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Ignore the answer: an error shows, too, that the server is alive."""
    if not answer.cancelled():
        answer.exception()
