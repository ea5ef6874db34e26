"""What goes wrong with a connection to NATS: kept, told in the log, and put into words."""

import asyncio
import contextlib
import logging
import secrets
import ssl
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
    CredentialsError,
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
    mapped,
)
from eventbus.errors import (
    ConnectionFailed,
    EventBusError,
    PublishDenied,
    PublishFailed,
)
from eventbus.ratelimit import RateLimitedLog
from eventbus.tasks import Tasks

__all__ = [
    "ATTEMPT_S",
    "Faults",
    "Listening",
    "NatsConnection",
    "Replies",
    "Reply",
    "refused_subject",
]


_log = logging.getLogger(__name__)

_REFUSALS: Final = (
    nats_errors.AuthorizationError,
    nats_errors.SecureConnRequiredError,
    CredentialsError,
    ssl.SSLError,
)
"""What does not pass by waiting."""
_REFUSED_WORDS: Final = (
    "authorization violation",
    "authentication expired",  # "user …" or "account …", of those who are connected
    "authentication revoked",
)
_ENDS: Final = (ConnectionResetError, BrokenPipeError, nats_errors.UnexpectedEOF)
"""What is left to hear of a connection when the server has refused it, and closed."""


class Faults:
    """The faults of one connection and of those that take its place."""

    def __init__(self, address: str, login: Login) -> None:
        """`address` is for the log, without secrets."""
        self.count = 0
        """How many errors the client has reported."""
        self.refusals = 0
        """How often a login was refused, or ended."""
        self.refused = asyncio.Event()
        """Set when the server will not have us."""
        self.last: BaseException | None = None
        self._address = address
        self._login = login
        self._log = RateLimitedLog(_log)

    def clear(self) -> None:
        """Forget what was: another attempt begins, or there is a connection."""
        self.last = None
        self.refused.clear()

    def note(self, exc: BaseException) -> None:
        """Take an error of the client's, and log it; one that goes on is told now and then."""
        self.count += 1
        if self.refused.is_set() and isinstance(exc, _ENDS):
            return
        self.last = exc
        if self._is_refusal(exc):
            self.refusals += 1
            self.refused.set()
            self.tell(logging.ERROR, self.why)
        else:
            self.tell(logging.WARNING, self.why)

    def tell(self, level: int, what: str) -> None:
        """Log it; after that, what is the same is told again each ten seconds at the most."""
        self._log.log(level, "NATS at %s: %s", self._address, what, kind=what)

    @property
    def why(self) -> str:
        """The last fault in words, saying which setting to look at."""
        exc = self.last
        if exc is None:
            return "no answer"
        if isinstance(exc, CredentialsError):
            return str(exc)
        if isinstance(exc, nats_errors.SecureConnRequiredError):
            return (
                "the server speaks no TLS, which NATS_URL (tls://), NATS_CA or NATS_CERT asks for; "
                "nothing was sent to it"
            )
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted (see NATS_CA): {exc.verify_message}"
        if isinstance(exc, ssl.SSLError):
            return f"no TLS with the server (does it want another NATS_CERT?): {exc}"
        if self._is_refusal(exc):
            return self._login.refusal()
        return str(exc) or type(exc).__name__

    @staticmethod
    def _is_refusal(exc: BaseException) -> bool:
        text = str(exc).lower()
        return isinstance(exc, _REFUSALS) or any(words in text for words in _REFUSED_WORDS)


def refused_subject(exc: BaseException) -> tuple[str, str]:
    """Of a permissions violation: `publish` or `subscription`, and the subject in lower case.

    Two empty texts for other errors.
    """
    text = str(exc).lower()
    kind, _, rest = text.partition("permissions violation for ")[2].partition(" to ")
    return kind, rest.partition('"')[2].partition('"')[0]


ATTEMPT_S: Final = 2.0
"""How long one attempt waits for its answer; retries follow while the caller has time."""
_SWEEP_S: Final = 0.1


class Reply(NamedTuple):
    """An answer; `status` is 503 when nobody was there to give one."""

    payload: bytes
    status: str


class _Waiting(NamedTuple):
    future: "asyncio.Future[Reply | None]"
    subject: str
    deadline: float
    parts: list[tuple[bytes, WireHeaders]] | None


class Replies:
    """Futures by the last token of their reply subject, swept of those whose time is over.

    nats-py's own `publish_async` never completes what was under way when a server dies, and its
    window stays taken; here each future completes: with a reply, or with None.
    """

    def __init__(self, prefix: str = "_INBOX") -> None:
        """`prefix` is what the reply subjects begin with."""
        self.prefix = f"{prefix}.{secrets.token_hex(11)}"
        self._waiting: dict[str, _Waiting] = {}
        self._next = 0
        self._denied = False
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def filter(self) -> str:
        """What to subscribe to."""
        return f"{self.prefix}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self,
        subject: str,
        seconds: float,
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> "tuple[str, asyncio.Future[Reply | None]]":
        """A reply subject for a request to `subject`, and its answer; None after `seconds`.

        With `parts`, messages are added to it until one with a status comes, which is the answer.
        Whoever awaits the future gives the reply subject to `forget` in the end. Raises
        PublishFailed where the server has refused to deliver answers.
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
        """Drop what was expected; unknown subjects are ignored."""
        self._waiting.pop(reply_subject.rpartition(".")[2], None)

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Take an answer off the wire."""
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
        """Answer None to all, so that they try again at once: their requests may be lost."""
        self._denied = False
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_result(None)
        self._waiting.clear()

    def refuse(self, subject: str) -> None:
        """Fail the requests to `subject` (in lower case), which the server does not permit."""
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
        """Fail all: the server does not permit to listen to the answers."""
        self._denied = True
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(self._denial())
        self._waiting.clear()

    def _denial(self) -> PublishFailed:
        return PublishFailed(
            f"no permission to listen to {self.filter}, where answers come: set "
            "NATS_INBOX_PREFIX to the prefix that the NATS user is granted",
            driver=DRIVER,
        )

    def close(self) -> None:
        """Answer None to all, and stop the timer."""
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


PENDING_BYTES: Final = 256 * 1024
"""Unsent bytes; more of them wait for the socket, or are refused while there is no connection."""
PING_S: Final = 5
_DIAL_S: Final = 2
_MAX_BACKOFF_S: Final = 4.0
_SERVER_BACKOFF: Final = Backoff(0.05, _MAX_BACKOFF_S, jitter=1)
_WATCH_S: Final = 0.5
_CLOSE_S: Final = 2.0
_MAX_DENIED: Final = 1000


class Listening:
    """One subscription, which outlives the clients that carry it."""

    __slots__ = ("group", "key", "receiver", "subject")

    def __init__(self, subject: str, receiver: Receiver, group: str) -> None:
        self.subject = subject
        self.receiver = receiver
        self.group = group
        self.key: Any = None


class NatsConnection:
    """A nats-py client, its replacements, and what is subscribed through them."""

    def __init__(
        self,
        servers: Servers,
        login: Login,
        *,
        connect_timeout: float = 10.0,
        on_lost: Callable[[], None],
        on_back: Callable[[], None],
    ) -> None:
        """`on_lost` and `on_back` are called in the event loop at each loss and recovery."""
        self.rebuilds = 0
        """How often a client had to be replaced by a new one."""
        self.replies = Replies(login.inbox_prefix)
        self.max_payload = 0
        self._servers = servers
        self.faults = Faults(self.address, login)
        """What went wrong, and how often."""
        self._login = login
        self._connect_timeout = connect_timeout
        self._on_lost = on_lost
        self._on_back = on_back
        self._client: FastClient | None = None
        self._listening: dict[int, Listening] = {}
        self._denied: dict[str, None] = {}
        self._connected = asyncio.Event()
        self._closing = False
        self._leaving = ""
        self._tasks = Tasks()

    @property
    def address(self) -> str:
        """The servers' addresses, without secrets."""
        return self._servers.shown

    @property
    def inbox_prefix(self) -> str:
        """What reply subjects begin with."""
        return self._login.inbox_prefix

    @property
    def is_connected(self) -> bool:
        """Whether a message could be sent at this moment."""
        return self._connected.is_set() and not self._closing

    @property
    def client(self) -> FastClient:
        """The present client. Raises ConnectionFailed while there is none."""
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

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> Listening:
        """Subscribe, also over later connections. The server need not know when this returns.

        With `group`, as a member of that queue group.
        """
        client = self.client
        listening = Listening(subject, receiver, group)
        self._listening[id(listening)] = listening
        self._denied.pop(subject.lower(), None)
        with mapped(f"listening to {subject}"):
            if not client.is_closed:
                listening.key = await client.listen(subject, receiver, group)
        return listening

    async def unlisten(self, listening: Listening) -> None:
        """End a subscription; ending it twice is harmless."""
        if self._listening.pop(id(listening), None) is None or self._client is None:
            return
        if listening.key is not None and not self._client.is_closed:
            # nats-py refuses where it has forgotten the subscription with a lost connection.
            with contextlib.suppress(nats_errors.Error):
                await self._client.unlisten(listening.key)

    def is_denied(self, subject: str) -> bool:
        """Whether the server has refused a subscription to `subject`."""
        return subject.lower() in self._denied

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        parts: list[tuple[bytes, WireHeaders]] | None = None,
    ) -> Reply | None:
        """One attempt to get an answer; None when there was none. Raises PublishFailed, mapped.

        With `parts`, an answer of many messages is gathered there; see `Replies.expect`.
        """
        reply_to, answer = self.replies.expect(subject, ATTEMPT_S, parts)
        try:
            with mapped(f"a request to {subject}"):
                await self.client.publish(subject, payload, reply=reply_to)
            return await answer
        finally:
            self.replies.forget(reply_to)

    async def echo(self) -> bool:
        """Whether the server has taken all that was sent before. flush() would not prove it.

        nats-py writes the PING of a flush before the commands that are pending.
        """
        reply_to, answer = self.replies.expect("", ATTEMPT_S)
        try:
            with mapped("a round trip"):
                await self.client.publish(reply_to)
            return await answer is not None
        finally:
            self.replies.forget(reply_to)

    async def aclose(self) -> None:
        """Close in bounded time; what is pending is written if the socket takes it."""
        self._closing = True
        await self._tasks.aclose()
        self._connected.set()  # who waits for a connection wakes, and finds that there is none
        self.replies.close()
        self._listening.clear()
        if self._client is not None:
            await _close(self._client)

    async def _dial(self, seconds: float) -> FastClient:
        """A client that is connected."""
        client = FastClient()
        client.login, client.known_servers = self._login, self._servers
        self.faults.clear()
        is_made = False
        connecting = asyncio.create_task(self._connect(client))
        refused = asyncio.create_task(self.faults.refused.wait())
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
        except Exception as exc:  # an address or a key that cannot be read, a server that is none
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
            self._login.load()  # nats-py reads a seed here, and raises what is no error of NATS
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
            reconnect_time_wait=0.2,  # type: ignore[arg-type] # seconds, of which it takes parts
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
        """A callback that a client which has been replaced does not reach.

        It raises nothing: nats-py awaits it in the task that reconnects, which an exception ends.
        """

        async def call() -> None:
            try:
                if client is self._client:
                    await callback()
            except Exception:  # noqa: BLE001 - see above
                _log.exception("a callback of the connection to NATS failed")

        return call

    def _next_server(self, pool: list[Server], _info: object) -> tuple[Server | None, float]:
        """The server tried least, after a random wait that grows, so that not all come at once."""
        others = [server for server in pool if server.uri.netloc != self._leaving] or pool
        server = min(others, key=lambda other: other.reconnects)
        return server, _SERVER_BACKOFF.delay(server.reconnects)

    async def _on_error(self, exc: Exception) -> None:
        """Take an error that nats-py reports; like all of its callbacks, it raises nothing."""
        try:
            self._take_error(exc)
        except Exception:  # noqa: BLE001 - nats-py's reading, or reconnecting, would end
            _log.exception("an error of the connection to NATS could not be taken in")

    def _take_error(self, exc: Exception) -> None:
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
                self._on_lost()

    async def _on_reconnected(self) -> None:
        self._leaving = ""
        if self._closing or self._connected.is_set():
            return
        self.max_payload = self.client.max_payload
        self._connected.set()
        self.faults.clear()
        _log.info("connected to NATS at %s again", self.address)
        self.replies.give_up()
        self._on_back()

    async def _on_closed(self) -> None:
        """Some errors close a client for good; the watchdog makes another."""
        if not self._closing:
            if (why := self.client.last_error) is not None:
                self.faults.note(why)  # nats-py tells it in no other way
            await self._on_disconnected()

    async def _on_lame_duck(self) -> None:
        client = self.client
        if client.connected_url is not None:
            self._leaving = client.connected_url.netloc
        _log.info("a NATS server is about to stop; going to another")
        await client.force_reconnect()

    async def _watch(self) -> None:
        backoff = Backoff(0.2, _MAX_BACKOFF_S, jitter=1)
        while True:
            await asyncio.sleep(_WATCH_S)
            client = self.client
            if client.is_deaf:
                _log.error("the reading of messages from NATS has stopped; connecting anew")
                await client.force_reconnect()
            elif (why := client.stuck) or client.is_closed:
                if why:
                    _log.error("reconnecting to NATS has failed (%s); making a new client", why)
                    client.close_transport()
                    await _close(client)
                try:
                    await self._rebuild()
                    backoff.reset()
                except ConnectionFailed as exc:
                    if not self.faults.refused.is_set():  # which was told
                        self.faults.tell(logging.WARNING, str(exc))
                    await asyncio.sleep(backoff.next())

    async def _rebuild(self) -> None:
        """Put a new client in the place of one that is closed."""
        self._connected.clear()
        client = await self._dial(self._connect_timeout)
        self.rebuilds += 1
        self._client = client
        with mapped("subscribing anew"):
            for key, listening in list(self._listening.items()):
                if key in self._listening:
                    listening.key = await client.listen(
                        listening.subject, listening.receiver, listening.group
                    )
        if client.is_connected:
            await self._on_reconnected()


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    except Exception as exc:  # noqa: BLE001 - it is let go whatever its state was
        _log.warning("closing a NATS client: %s", str(exc) or type(exc).__name__)
