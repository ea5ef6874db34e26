"""The connection to NATS: a nats-py client and its replacements."""

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import (
    Final,
)

from nats.aio.client import (
    Client,
    Server,
)

from eventbus.attempts import Backoff, OutageLog
from eventbus.drivers.nats.auth import (
    Login,
    Servers,
)
from eventbus.drivers.nats.client import (
    FastClient,
    KnownServer,
    Receiver,
    WireHeaders,
    require_supported,
)
from eventbus.drivers.nats.connection.replies import (
    Replies,
    Reply,
)
from eventbus.drivers.nats.connection.subscriptions import (
    ServerSubscription,
    ServerSubscriptions,
)
from eventbus.drivers.nats.connection.visit import (
    Visit,
    close,
    end,
)
from eventbus.drivers.nats.errors import (
    DRIVER,
    CredentialsError,
    Faults,
    OldServerError,
    is_too_large,
    mapped,
    refused_subject,
)
from eventbus.errors import (
    ConnectionFailed,
    DriverError,
    EventBusError,
    PublishFailed,
)
from eventbus.tasks import (
    Shutdown,
    Tasks,
)

__all__ = ["ATTEMPT_S", "MIN_SERVER", "PENDING_BYTES", "NatsConnection"]

_log = logging.getLogger(__package__)

MIN_SERVER: Final = (2, 11)
"""The first version of nats-server with a time to live for each message, which state needs."""
ATTEMPT_S: Final = 2.0
"""How long one attempt waits for its reply; callers retry while they have time."""
PENDING_BYTES: Final = 256 * 1024
"""Unsent bytes; beyond, publishes wait for the socket, or fail without a connection."""
PING_S: Final = 2
"""A silent connection is closed after two unanswered pings, which takes 4 to 6 s."""
_DIAL_S: Final = 2
_MAX_BACKOFF_S: Final = 4.0
_SERVER_BACKOFF: Final = Backoff(0.05, _MAX_BACKOFF_S, jitter=1)
_WATCH_S: Final = 0.5
_FOUND_PAYLOAD_S: Final = 60.0
_LEFT_LAST: Final = 3
"""A server that was left on purpose counts as having failed so often: others come first."""


class NatsConnection:
    """A nats-py client, its replacements, and the subscriptions that they carry."""

    def __init__(
        self,
        servers: Servers,
        login: Login,
        *,
        connect_timeout: float = 10.0,
        volatile_root: str = "",
        on_lost: Callable[[], None],
        on_reconnected: Callable[[], None],
    ) -> None:
        """`on_lost` and `on_reconnected` are called in the event loop.

        Messages to subjects that begin with `volatile_root` are not kept for the next connection.
        """
        self.unsent = 0
        """Volatile messages that were refused or dropped because there was no connection."""
        self.rebuilds = 0
        """How often a client was replaced by a new one."""
        self.moves = 0
        """How often a server was left because another one reaches JetStream, and it does not."""
        self.replies = Replies(login.inbox_prefix)
        self.size_refusals = 0
        """How often the server has closed the connection because a message was too large."""
        self._announced_payload = 0
        self._found_payload: tuple[int, float] | None = None
        self._servers = servers
        self.faults = Faults(self.address, login.refusal)
        self._login = login
        self._connect_timeout = connect_timeout
        self._volatile_root = volatile_root
        self._notify_lost = on_lost
        self._notify_reconnected = on_reconnected
        self._client: FastClient | None = None
        self.subscriptions = ServerSubscriptions(lambda: self.client, self.echo)
        self._outage = OutageLog(_log, "the connection to NATS at %s is back", self.address)
        self._refusals = 0
        self._connected = asyncio.Event()
        self._closing = False
        self._current = ""
        """The server that was connected last."""
        self._leaving = ""
        """The server that is left on purpose, until there is another."""
        self._target = ""
        """The server to try first then, if one was chosen."""
        self._tasks = Tasks()
        self._shutdown = Shutdown()

    @property
    def address(self) -> str:
        """The servers' addresses, without secrets."""
        return self._servers.shown

    @property
    def inbox_prefix(self) -> str:
        """The prefix of reply subjects."""
        return self._login.inbox_prefix

    @property
    def is_connected(self) -> bool:
        """Whether a message could be sent now."""
        return self._connected.is_set() and not self._closing

    @property
    def client(self) -> FastClient:
        """The current client. Raises ConnectionFailed when there is none."""
        if self._client is None or self._closing:
            raise self.not_open()
        return self._client

    @property
    def max_payload(self) -> int:
        """The size of the largest message that the server accepts, as far as it is known."""
        if self._found_payload is None:
            return self._announced_payload
        found, until = self._found_payload
        is_found = until > time.monotonic()
        return min(found, self._announced_payload) if is_found else self._announced_payload

    def refuse_size(self, size: int) -> None:
        """The server does not accept messages of that size, although it announces more.

        The limit of an account or user is not announced. It may change, so this is forgotten after
        a while.
        """
        self._found_payload = (size - 1, time.monotonic() + _FOUND_PAYLOAD_S)

    @property
    def why_silent(self) -> str:
        """Why there was no answer, for errors."""
        return "no answer" if self.is_connected else f"not connected: {self.faults.why}"

    def refuse_volatile(self, subject: str) -> PublishFailed:
        """Count a message that cannot be sent now, and is not kept; the error to raise."""
        self.unsent += 1
        return PublishFailed(
            f"a message for {subject} was not sent, and is not kept for later: no connection to "
            f"{self.address}: {self.faults.why}",
            driver=DRIVER,
        )

    @staticmethod
    def not_open() -> ConnectionFailed:
        """The error for a connection that is closed."""
        return ConnectionFailed("the connection to NATS is not open", driver=DRIVER)

    async def open(self) -> None:
        """Connect. Raises ConnectionFailed after `connect_timeout`, or at once when refused."""
        require_supported()
        client = await self._dial(self._connect_timeout)
        if why := self._too_old(client):
            await close(client)
            raise OldServerError(why, driver=DRIVER)
        self._client = client
        await self.listen(self.replies.filter, self.replies.receive)
        if client.is_connected:
            self._note_server()
            self._connected.set()
        self._tasks.keep(self._watch, "the watchdog of the connection to NATS")

    async def wait_connected(self, seconds: float) -> bool:
        """Whether there is a connection within that time."""
        if not self._connected.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._connected.wait()
        return self.is_connected

    async def listen(
        self,
        subject: str,
        receiver: Receiver,
        group: str = "",
        on_again: Callable[[], None] = lambda: None,
    ) -> ServerSubscription:
        """Subscribe, on later connections, too. The server need not have processed it on return.

        With `group`, subscribe as a member of that queue group. `on_again` is called when messages
        may have been missed because the server refused the subscription after a reconnect.
        """
        return await self.subscriptions.add(subject, receiver, group, on_again)

    async def unlisten(self, subscription: ServerSubscription) -> None:
        """Unsubscribe; doing it twice is harmless."""
        await self.subscriptions.remove(subscription)

    async def settle(self, subscription: ServerSubscription) -> None:
        """Wait until the server has accepted a subscription.

        Raises SubscribeDenied, and ConnectionFailed without an answer in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout
        while (left := deadline - loop.time()) > 0:
            if await self.wait_connected(left) and await self.echo():
                await self.subscriptions.require(subscription)
                return
        raise ConnectionFailed(
            f"subscribing to {subscription.subject}: no answer from {self.address} within "
            f"{self._connect_timeout:g} s",
            driver=DRIVER,
        )

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        parts: list[tuple[bytes, WireHeaders]] | None = None,
        *,
        seconds: float = ATTEMPT_S,
    ) -> Reply | None:
        """Send a request once; None without a reply. Raises PublishFailed and ConnectionFailed.

        With `parts`, a reply of many messages is collected there; see `Replies.expect`.
        """
        reply_to, answer = self.replies.expect(subject, seconds, parts)
        try:
            with mapped(f"a request to {subject}"):
                await self.client.publish(subject, payload, reply=reply_to)
            return await answer
        finally:
            self.replies.forget(reply_to)

    async def echo(self, seconds: float = ATTEMPT_S) -> bool:
        """Whether the server has processed everything sent before; flush() would not prove it.

        nats-py writes the PING of a flush before its pending commands.
        """
        reply_to, answer = self.replies.expect("", seconds)
        try:
            with mapped("a round trip"):
                await self.client.publish(reply_to)
            return await answer is not None
        finally:
            self.replies.forget(reply_to)

    def visit(self, server: KnownServer) -> Visit:
        """A short connection to another server, with the same credentials."""
        return Visit(server, self._servers, self._login)

    async def move(self, server: KnownServer) -> None:
        """Leave the current server for that one, or for any other if it cannot be reached.

        Like any lost connection, this is reported by `on_lost`, and by `on_reconnected` afterwards.
        """
        if self.is_connected:
            self.moves += 1
            self._target = server.netloc
            await self._leave()

    async def aclose(self) -> None:
        """Close within bounded time; pending bytes are written if the socket accepts them."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        self._closing = True
        await self._tasks.aclose()
        self._connected.set()  # wakes callers of `wait_connected`, which return False
        self.replies.close()
        self.subscriptions.clear()
        if self._client is not None:
            await close(self._client)

    async def _dial(self, seconds: float) -> FastClient:
        """Connect a new client."""
        client = FastClient(self._login, self._servers)
        self.faults.clear()
        is_made = False
        # Both end in this function, which retrieves their exceptions.
        connecting = asyncio.create_task(self._connect(client), name="connecting to NATS")
        refused = asyncio.create_task(self.faults.refused.wait(), name="awaiting a refusal")
        try:
            await asyncio.wait(
                (connecting, refused), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if connecting.done():
                with mapped(f"connecting to {self.address}"):
                    connecting.result()
                is_made = True
                self._announced_payload = client.max_payload
                return client
        except EventBusError:
            raise
        except Exception as exc:  # an invalid address or key, or not a NATS server
            raise ConnectionFailed(f"connecting to {self.address}: {exc}", driver=DRIVER) from exc
        finally:
            refused.cancel()
            try:
                await end(connecting)
                await asyncio.gather(refused, return_exceptions=True)
            except BaseException:  # cancelled meanwhile: the caller does not get the client
                is_made = False
                raise
            finally:
                if not is_made:
                    client.close_transport()
                    await close(client)
        faults = self.faults
        why = faults.why if faults.refused.is_set() else f"not within {seconds:g} s: {faults.why}"
        raise ConnectionFailed(
            f"cannot connect to {self.address}: {why}", driver=DRIVER
        ) from faults.last

    def _too_old(self, client: FastClient) -> str:
        """Why the server cannot be used; empty when it can."""
        found = client.connected_server_version
        if (found.major, found.minor) >= MIN_SERVER:
            return ""
        return (
            f"the nats-server at {self.address} is version {found.major}.{found.minor}."
            f"{found.patch}: eventbus needs {MIN_SERVER[0]}.{MIN_SERVER[1]} or later, and 2.12 for "
            "delayed events"
        )

    async def _connect(self, client: Client) -> None:
        try:
            self._login.load()  # nats-py would read a seed here, and raise an error of its own
        except CredentialsError as exc:
            self.faults.note(exc)
            raise
        await client.connect(
            self._servers.urls,
            name="eventbus",
            error_cb=self._on_error,
            disconnected_cb=self._for(client, self._on_disconnected),
            reconnected_cb=self._for(client, self._on_reconnected),
            closed_cb=self._for(client, self._on_closed),
            lame_duck_mode_cb=self._for(client, self._on_lame_duck),
            connect_timeout=_DIAL_S,
            reconnect_time_wait=0.2,  # type: ignore[arg-type] # seconds, fractions are accepted
            max_reconnect_attempts=-1,
            reconnect_to_server_handler=self._next_server,
            ping_interval=PING_S,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            flush_timeout=ATTEMPT_S,
            **self._servers.credentials(),
            **self._login.options,
        )

    def _for(
        self, client: Client, callback: Callable[[], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Wrap a callback so that it ignores replaced clients, and does not raise.

        nats-py awaits callbacks in its reconnect task, which an exception would end.
        """

        async def call() -> None:
            try:
                if client is self._client:
                    await callback()
            except Exception:  # noqa: BLE001 - see above
                _log.exception("a callback of the connection to NATS failed")

        return call

    def _next_server(self, pool: list[Server], _info: object) -> tuple[Server | None, float]:
        """The server with the fewest attempts, after a growing random delay.

        Of several, the one that was lost comes last: if it does not answer, trying it takes long.
        """

        def order(server: Server) -> tuple[int, bool, bool]:
            netloc = server.uri.netloc
            handicap = _LEFT_LAST if netloc == self._leaving else 0
            return server.reconnects + handicap, netloc != self._target, netloc == self._current

        server = min(pool, key=order)
        return server, _SERVER_BACKOFF.delay(server.reconnects)

    async def _on_error(self, exc: Exception) -> None:
        """Handle an error that nats-py reports. Like all of its callbacks, this must not raise."""
        try:
            self._handle_error(exc)
        except Exception:  # noqa: BLE001 - nats-py's reading, or reconnecting, would end
            _log.exception("handling an error of the connection to NATS failed")

    def _handle_error(self, exc: Exception) -> None:
        kind, subject = refused_subject(exc)
        if kind == "publish":
            self.replies.refuse(subject)
        elif kind == "subscription" and subject == self.replies.filter.lower():
            self.replies.deny()
        elif is_too_large(exc):
            self.size_refusals += 1
        self.subscriptions.note(exc)
        self.faults.note(exc)

    async def _on_disconnected(self) -> None:
        if self._connected.is_set():
            self._connected.clear()
            self._refusals = self.subscriptions.refusals
            self.subscriptions.on_lost()
            if self._client is not None and self._volatile_root:
                self.unsent += self._client.drop_unsent(self._volatile_root)
            if not self._closing:
                self._outage.begin()
                _log.warning("the connection to NATS at %s is lost", self.address)
                self._notify_lost()

    async def _on_reconnected(self) -> None:
        self._leaving = self._target = ""
        self._note_server()
        if self._closing or self._connected.is_set():
            return
        self._announced_payload = self.client.max_payload
        if why := self._too_old(self.client):  # its cluster may have newer servers
            self.faults.log(logging.ERROR, why)
        self._connected.set()
        self.faults.clear()
        self._outage.ended()
        self.replies.give_up()
        self._notify_reconnected()
        self._tasks.start(self._verify(self._refusals), "verifying subscriptions at NATS")

    def _note_server(self) -> None:
        if (url := self.client.connected_url) is not None:
            self._current = url.netloc

    async def _verify(self, refusals: int) -> None:
        try:
            await self.subscriptions.verify(refusals)
        except DriverError as exc:  # lost again: the next connection is verified, too
            _log.info("%s", exc)

    async def _on_closed(self) -> None:
        """Some errors close a client for good; the watchdog replaces it."""
        if not self._closing:
            if (why := self.client.last_error) is not None:
                self.faults.note(why)  # nats-py reports it nowhere else
            await self._on_disconnected()

    async def _on_lame_duck(self) -> None:
        _log.info("a NATS server is about to stop; connecting to another")
        await self._leave()

    async def _leave(self) -> None:
        client = self.client
        if client.connected_url is not None:
            self._leaving = client.connected_url.netloc
        await client.force_reconnect()

    async def _watch(self) -> None:
        backoff = Backoff(0.2, _MAX_BACKOFF_S, jitter=1)
        while True:
            await asyncio.sleep(_WATCH_S)
            client = self.client
            if self.is_connected and self.subscriptions.is_retry_due:
                await self._retry_refused()
            if client.is_deaf:
                _log.error("reading from NATS has stopped; reconnecting")
                await client.force_reconnect()
            elif (why := client.stuck) or client.is_closed:
                if why:
                    _log.error("nats-py stopped reconnecting (%s); creating a new client", why)
                    client.close_transport()
                    await close(client)
                try:
                    await self._rebuild()
                    backoff.reset()
                except ConnectionFailed as exc:
                    if not self.faults.refused.is_set():  # that was logged
                        self.faults.log(logging.WARNING, str(exc))
                    await asyncio.sleep(backoff.next())

    async def _retry_refused(self) -> None:
        self.replies.allow()
        try:
            await self.subscriptions.retry()
        except DriverError as exc:  # also when replies are still refused
            _log.info("%s", exc)

    async def _rebuild(self) -> None:
        """Replace a closed client."""
        self._connected.clear()
        client = await self._dial(self._connect_timeout)
        self.rebuilds += 1
        self._client = client
        await self.subscriptions.move(client)
        if client.is_connected:
            await self._on_reconnected()
