"""The connection to NATS: a nats-py client, its replacements, and requests with their replies."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

from nats import errors as nats_errors
from nats.aio.client import (
    Client,
    Server,
)

from eventbus.backoff import Backoff
from eventbus.drivers.nats.auth import (
    Login,
    Servers,
)
from eventbus.drivers.nats.client import (
    FastClient,
    Receiver,
    WireHeaders,
    require_supported,
)
from eventbus.drivers.nats.errors import (
    DRIVER,
    CredentialsError,
    Faults,
    mapped,
    refused_subject,
)
from eventbus.errors import (
    ConnectionFailed,
    EventBusError,
    PublishDenied,
    PublishFailed,
)
from eventbus.tasks import (
    Shutdown,
    Tasks,
)

__all__ = [
    "ATTEMPT_S",
    "PENDING_BYTES",
    "NatsConnection",
    "Replies",
    "Reply",
    "ServerSubscription",
]

_log = logging.getLogger(__name__)

ATTEMPT_S: Final = 2.0
"""How long one attempt waits for its reply; callers retry while they have time."""
_SWEEP_S: Final = 0.1
PENDING_BYTES: Final = 256 * 1024
"""Unsent bytes; beyond, publishes wait for the socket, or fail without a connection."""
PING_S: Final = 5
_DIAL_S: Final = 2
_MAX_BACKOFF_S: Final = 4.0
_SERVER_BACKOFF: Final = Backoff(0.05, _MAX_BACKOFF_S, jitter=1)
_WATCH_S: Final = 0.5
_CLOSE_S: Final = 2.0
_MAX_DENIED: Final = 1000


class Reply(NamedTuple):
    """A reply; its `status` is 503 when the subject has no subscribers."""

    payload: bytes
    status: str


class _Waiting(NamedTuple):
    future: "asyncio.Future[Reply | None]"
    subject: str
    deadline: float
    parts: list[tuple[bytes, WireHeaders]] | None


class Replies:
    """Pending requests by the last token of their reply subject; expired ones are swept.

    nats-py's `publish_async` never completes requests that were pending when a server died, and
    they fill its window for good. Here every future completes: with a reply, or with None.
    """

    def __init__(self, prefix: str = "_INBOX") -> None:
        """`prefix` begins all reply subjects."""
        self.prefix = f"{prefix}.{secrets.token_hex(11)}"
        self._waiting: dict[str, _Waiting] = {}
        self._next = 0
        self._denied = False
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def filter(self) -> str:
        """The subject filter of all replies."""
        return f"{self.prefix}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self,
        subject: str,
        seconds: float,
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> "tuple[str, asyncio.Future[Reply | None]]":
        """A reply subject for a request to `subject`, and its reply; None after `seconds`.

        With `parts`, messages are added to it until one with a status arrives, which is the reply.
        The caller passes the reply subject to `forget` in the end. Raises PublishFailed when the
        server has refused the subscription to replies.
        """
        if self._denied:
            raise self._denial()
        loop = asyncio.get_running_loop()
        self._next += 1
        token = str(self._next)
        future: asyncio.Future[Reply | None] = loop.create_future()
        self._waiting[token] = _Waiting(future, subject, loop.time() + seconds, parts)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        return f"{self.prefix}.{token}", future

    def forget(self, reply_subject: str) -> None:
        """Drop a request; unknown subjects are ignored."""
        self._waiting.pop(reply_subject.rpartition(".")[2], None)

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Handle a message on a reply subject."""
        token = subject.rpartition(".")[2]
        waiting = self._waiting.get(token)
        if waiting is None:
            return
        if waiting.parts is not None and not headers.status:
            waiting.parts.append((payload, headers))
            return
        del self._waiting[token]
        if not waiting.future.done():
            waiting.future.set_result(Reply(payload, headers.status))

    def give_up(self) -> None:
        """Complete all requests with None: they may be lost, and are retried at once."""
        self._denied = False
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_result(None)
        self._waiting.clear()

    def refuse(self, subject: str) -> None:
        """Fail the requests to `subject` (in lower case): the server denied the permission."""
        for token, waiting in list(self._waiting.items()):
            if waiting.subject.lower() == subject:
                del self._waiting[token]
                if not waiting.future.done():
                    waiting.future.set_exception(
                        PublishDenied(
                            f"no permission to publish to {waiting.subject}: the NATS user must "
                            "be granted it",
                            driver=DRIVER,
                        )
                    )

    def deny(self) -> None:
        """Fail all requests: the server denied the subscription to replies."""
        self._denied = True
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._denial())
        self._waiting.clear()

    def _denial(self) -> PublishFailed:
        return PublishFailed(
            f"no permission to subscribe to {self.filter}, where replies arrive: set "
            "NATS_INBOX_PREFIX to the prefix that the NATS user is granted",
            driver=DRIVER,
        )

    def close(self) -> None:
        """Complete all requests with None, and stop the timer."""
        self.give_up()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for token, waiting in list(self._waiting.items()):
            if waiting.deadline <= now:
                del self._waiting[token]
                if not waiting.future.done():
                    waiting.future.set_result(None)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._waiting else None


class ServerSubscription:
    """A subscription at the server; it outlives the client that made it."""

    __slots__ = ("group", "key", "receiver", "subject")

    def __init__(self, subject: str, receiver: Receiver, group: str) -> None:
        self.subject = subject
        self.receiver = receiver
        self.group = group
        self.key: Any = None


class NatsConnection:
    """A nats-py client, its replacements, and the subscriptions that they carry."""

    def __init__(
        self,
        servers: Servers,
        login: Login,
        *,
        connect_timeout: float = 10.0,
        on_lost: Callable[[], None],
        on_reconnected: Callable[[], None],
    ) -> None:
        """`on_lost` and `on_reconnected` are called in the event loop."""
        self.rebuilds = 0
        """How often a client was replaced by a new one."""
        self.replies = Replies(login.inbox_prefix)
        self.max_payload = 0
        self._servers = servers
        self.faults = Faults(self.address, login.refusal)
        self._login = login
        self._connect_timeout = connect_timeout
        self._notify_lost = on_lost
        self._notify_reconnected = on_reconnected
        self._client: FastClient | None = None
        self._subscriptions: dict[int, ServerSubscription] = {}
        self._denied: dict[str, None] = {}
        self._connected = asyncio.Event()
        self._closing = False
        self._leaving = ""
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
            raise ConnectionFailed("the connection to NATS is not open", driver=DRIVER)
        return self._client

    async def open(self) -> None:
        """Connect. Raises ConnectionFailed after `connect_timeout`, or at once when refused."""
        require_supported()
        self._client = await self._dial(self._connect_timeout)
        await self.listen(self.replies.filter, self.replies.receive)
        if self._client.is_connected:
            self._connected.set()
        self._tasks.keep(self._watch, "the watchdog of the connection to NATS")

    async def wait_connected(self, seconds: float) -> bool:
        """Whether there is a connection within that time."""
        if not self._connected.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._connected.wait()
        return self.is_connected

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> ServerSubscription:
        """Subscribe, on later connections, too. The server need not have processed it on return.

        With `group`, subscribe as a member of that queue group.
        """
        client = self.client
        subscription = ServerSubscription(subject, receiver, group)
        self._subscriptions[id(subscription)] = subscription
        self._denied.pop(subject.lower(), None)
        with mapped(f"subscribing to {subject}"):
            if not client.is_closed:
                subscription.key = await client.listen(subject, receiver, group)
        return subscription

    async def unlisten(self, subscription: ServerSubscription) -> None:
        """Unsubscribe; doing it twice is harmless."""
        if self._subscriptions.pop(id(subscription), None) is None or self._client is None:
            return
        if subscription.key is not None and not self._client.is_closed:
            # nats-py fails when it lost the subscription together with the connection.
            with contextlib.suppress(nats_errors.Error):
                await self._client.unlisten(subscription.key)

    def is_denied(self, subject: str) -> bool:
        """Whether the server has denied a subscription to `subject`."""
        return subject.lower() in self._denied

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> Reply | None:
        """Send a request once; None without a reply. Raises PublishFailed and ConnectionFailed.

        With `parts`, a reply of many messages is collected there; see `Replies.expect`.
        """
        reply_to, answer = self.replies.expect(subject, ATTEMPT_S, parts)
        try:
            with mapped(f"a request to {subject}"):
                await self.client.publish(subject, payload, reply=reply_to)
            return await answer
        finally:
            self.replies.forget(reply_to)

    async def echo(self) -> bool:
        """Whether the server has processed everything sent before; flush() would not prove it.

        nats-py writes the PING of a flush before its pending commands.
        """
        reply_to, answer = self.replies.expect("", ATTEMPT_S)
        try:
            with mapped("a round trip"):
                await self.client.publish(reply_to)
            return await answer is not None
        finally:
            self.replies.forget(reply_to)

    async def aclose(self) -> None:
        """Close within bounded time; pending bytes are written if the socket accepts them."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        self._closing = True
        await self._tasks.aclose()
        self._connected.set()  # wakes callers of `wait_connected`, which return False
        self.replies.close()
        self._subscriptions.clear()
        if self._client is not None:
            await _close(self._client)

    async def _dial(self, seconds: float) -> FastClient:
        """Connect a new client."""
        client = FastClient()
        client.login, client.known_servers = self._login, self._servers
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
                self.max_payload = client.max_payload
                return client
        except EventBusError:
            raise
        except Exception as exc:  # an invalid address or key, or not a NATS server
            raise ConnectionFailed(f"connecting to {self.address}: {exc}", driver=DRIVER) from exc
        finally:
            connecting.cancel()
            refused.cancel()
            await asyncio.gather(connecting, refused, return_exceptions=True)
            if not is_made:
                client.close_transport()
                await _close(client)
        faults = self.faults
        why = faults.why if faults.refused.is_set() else f"not within {seconds:g} s: {faults.why}"
        raise ConnectionFailed(
            f"cannot connect to {self.address}: {why}", driver=DRIVER
        ) from faults.last

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
        """The server with the fewest attempts, after a growing random delay."""
        others = [server for server in pool if server.uri.netloc != self._leaving] or pool
        server = min(others, key=lambda other: other.reconnects)
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
        elif kind == "subscription":
            self._denied[subject] = None
            if subject == self.replies.filter.lower():
                self.replies.deny()
            while len(self._denied) > _MAX_DENIED:
                del self._denied[next(iter(self._denied))]
        self.faults.note(exc)

    async def _on_disconnected(self) -> None:
        if self._connected.is_set():
            self._connected.clear()
            if not self._closing:
                _log.warning("the connection to NATS at %s is lost", self.address)
                self._notify_lost()

    async def _on_reconnected(self) -> None:
        self._leaving = ""
        if self._closing or self._connected.is_set():
            return
        self.max_payload = self.client.max_payload
        self._connected.set()
        self.faults.clear()
        _log.info("reconnected to NATS at %s", self.address)
        self.replies.give_up()
        self._notify_reconnected()

    async def _on_closed(self) -> None:
        """Some errors close a client for good; the watchdog replaces it."""
        if not self._closing:
            if (why := self.client.last_error) is not None:
                self.faults.note(why)  # nats-py reports it nowhere else
            await self._on_disconnected()

    async def _on_lame_duck(self) -> None:
        client = self.client
        if client.connected_url is not None:
            self._leaving = client.connected_url.netloc
        _log.info("a NATS server is about to stop; connecting to another")
        await client.force_reconnect()

    async def _watch(self) -> None:
        backoff = Backoff(0.2, _MAX_BACKOFF_S, jitter=1)
        while True:
            await asyncio.sleep(_WATCH_S)
            client = self.client
            if client.is_deaf:
                _log.error("reading from NATS has stopped; reconnecting")
                await client.force_reconnect()
            elif (why := client.stuck) or client.is_closed:
                if why:
                    _log.error("nats-py stopped reconnecting (%s); creating a new client", why)
                    client.close_transport()
                    await _close(client)
                try:
                    await self._rebuild()
                    backoff.reset()
                except ConnectionFailed as exc:
                    if not self.faults.refused.is_set():  # that was logged
                        self.faults.log(logging.WARNING, str(exc))
                    await asyncio.sleep(backoff.next())

    async def _rebuild(self) -> None:
        """Replace a closed client."""
        self._connected.clear()
        client = await self._dial(self._connect_timeout)
        self.rebuilds += 1
        self._client = client
        with mapped("subscribing again"):
            for key, subscription in list(self._subscriptions.items()):
                if key in self._subscriptions:
                    subscription.key = await client.listen(
                        subscription.subject, subscription.receiver, subscription.group
                    )
        if client.is_connected:
            await self._on_reconnected()


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    except Exception as exc:  # noqa: BLE001 - it is let go whatever its state was
        _log.warning("closing a NATS client: %s", str(exc) or type(exc).__name__)
