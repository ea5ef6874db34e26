"""A client of an edge: one connection, made again for as long as the client is open."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import aiohttp

from eventbus.channels import Pattern, validate_channel
from eventbus.client.frames import Frame
from eventbus.client.link import FAILED, Link, Lost, Reconnect
from eventbus.client.options import ClientOptions, ClientState, StateChange, parse_address
from eventbus.client.registry import Registry, names
from eventbus.client.session import Session
from eventbus.client.sockets import Sockets
from eventbus.client.subscription import ChannelHandlers, Subscription
from eventbus.client.tokens import Token, TokenSource
from eventbus.errors import BusStateError, ClientClosed, ClientDisconnected, ClientError
from eventbus.tasks import Shutdown, Tasks
from eventbus.user_code import guarded

__all__ = ["EdgeClient"]

_log = logging.getLogger(__name__)


class EdgeClient:
    """See `eventbus.client.connect`, which makes one."""

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        options: ClientOptions | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is connected yet. Raises ValueError for what is no URL of an edge."""
        self.state = ClientState.DISCONNECTED
        self.connection_id = ""
        """The present connection's id: what an event's `to_others` takes."""
        self.user_id: str | None = None
        """Who the edge says one is."""
        self._address = parse_address(url)
        self._options = options or ClientOptions()
        self._tls: ssl.SSLContext | bool = True if tls is None else tls
        self._tokens = TokenSource(token, self._options.token_timeout)
        self._reconnect = Reconnect(self._options.first_delay, self._options.last_delay)
        self._subscriptions = Registry()
        self._observers: list[Callable[[StateChange], object]] = []
        self._hurry = asyncio.Event()
        self._session: Session | None = None
        self._http: aiohttp.ClientSession | None = None
        self._opened: asyncio.Future[None] | None = None
        self._connection = Tasks()
        self._handlers = Tasks()
        self._shutdown = Shutdown(self._connection, self._handlers)
        self._last_reason = "no answer"
        self._closed: ClientClosed | None = None

    async def open(self) -> None:
        """Connect and authenticate.

        Raises ClientRefused where the edge refuses the token, ClientClosed where it says to stay
        away, and ClientDisconnected after `open_timeout`.
        """
        if self._opened is not None:
            raise BusStateError("a client is opened once")
        self._require_not_closed()
        self._sockets = Sockets()
        self._http = aiohttp.ClientSession(
            connector=self._sockets.connector(self._tls), cookie_jar=aiohttp.DummyCookieJar()
        )
        self._opened = asyncio.get_running_loop().create_future()
        self._connection.start(self._run(), f"the client of {self._address.shown}")
        try:
            async with asyncio.timeout(self._options.open_timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            await self.aclose()
            raise ClientDisconnected(
                f"cannot connect to {self._address.shown} within {self._options.open_timeout:g} s: "
                f"{self._last_reason}"
            ) from None
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close, in bounded time, and end all subscriptions.

        Closing again is harmless: all callers wait for the same close, which also completes when a
        caller is cancelled. A handler may close its own client.
        """
        await self._shutdown.run(self._close)

    async def _close(self) -> None:
        await self._connection.aclose()
        self._finish(ClientClosed("the client was closed", close_code=1000), by_owner=True)
        self._subscriptions.clear()
        await self._handlers.aclose()
        if self._http is not None:
            await self._http.close()
            await self._sockets.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def on_state(self, observer: Callable[[StateChange], object]) -> Callable[[], None]:
        """Call a function at each change of state; gives what ends it. It must not block."""
        self._observers.append(observer)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._observers.remove(observer)

        return remove

    async def subscribe(
        self, channel: str, handlers: ChannelHandlers | None = None, *, history: int = 0
    ) -> Subscription:
        """Join a channel, or the channels of a pattern, now and after each reconnect.

        `handlers` is a function for every message, or a mapping of functions by event name or type
        (see `Subscription.on`); without any, iterate over the subscription. `history` asks for up
        to that many earlier messages. A channel has one subscription: a second call adds handlers.

        It waits until the edge has answered, over reconnects too. Raises InvalidPattern,
        InvalidChannel, ClientRefused and ClientClosed.
        """
        if Pattern(channel).is_exact:
            validate_channel(channel)
        self._require_open()
        subscription = self._subscriptions.get(channel)
        if is_new := subscription is None:
            subscription = Subscription(self, channel, history=history, buffer=self._options.buffer)
        subscription.add(handlers)
        if is_new:
            self._subscriptions.add(subscription)
        try:
            await subscription.joined()
        except BaseException:
            if is_new:
                await self.leave(subscription, wait=False)
            raise
        return subscription

    async def ping(self) -> float:
        """The seconds of a round trip to the edge. Raises ClientDisconnected, ClientClosed."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        await self.ask("ping")
        return loop.time() - before

    def reconnect(self) -> None:
        """Connect at once, rather than when the delay is over."""
        self._hurry.set()

    async def ask(self, action: str, **fields: Any) -> Frame:
        """Send any action of the protocol, and give its answer.

        Raises ClientRefused, ClientClosed, and ClientDisconnected where there is no connection, or
        no answer within `request_timeout`.
        """
        self._require_open()
        if self._session is None:
            raise ClientDisconnected(f"{action}: there is no connection now")
        return await self._session.ask(action, fields)

    # For subscriptions

    def settle(self, subscription: Subscription) -> None:
        """A subscription is to be joined or left at the edge, as its phase says."""
        self._subscriptions.settle(subscription)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[Any] | None":
        """Run a subscription's handlers, at most until the client closes."""
        return self._handlers.start(work, name)

    async def leave(self, subscription: Subscription, *, wait: bool = True) -> None:
        """End a subscription. Raises nothing where the connection is lost."""
        self._subscriptions.discard(subscription)
        held, session = subscription.is_held, self._session
        subscription.end(None)
        if held and session is not None and wait:
            subscription.is_held = False
            with contextlib.suppress(ClientError):  # it ends with the connection, too
                await session.ask("unsubscribe", names(subscription))
        elif held:
            self.settle(subscription)
        await subscription.aclose()

    # The connection's life

    async def _run(self) -> None:
        try:
            while self._closed is None:
                self._become(ClientState.CONNECTING)
                try:
                    await self._live()
                except Lost as lost:
                    if not await self._pause(lost):
                        return
        except ClientClosed:  # by its own token function
            return
        except Exception as exc:  # noqa: BLE001 - a fault of the client's own: told, not hidden
            _log.exception("the client of %s cannot go on", self._address.shown)
            self._finish(ClientClosed(f"the client failed: {exc!r}", close_code=FAILED))

    async def _live(self) -> None:
        """One connection, from its making to its end. Raises Lost, always."""
        options = self._options
        assert self._http is not None
        await self._tokens.get()
        self._require_not_closed()
        try:
            async with asyncio.timeout(options.handshake_timeout):
                link = await Link.open(
                    self._http, self._address.url, max_frame_bytes=options.max_frame_bytes
                )
        except TimeoutError:
            raise Lost(FAILED, f"no greeting in {options.handshake_timeout:g} s") from None
        session = Session(
            link, tokens=self._tokens, subscriptions=self._subscriptions, options=options
        )
        try:
            await session.run(
                on_ready=lambda: self._ready(session), on_steady=self._reconnect.steady
            )
        finally:
            self._session = None
            await session.aclose()

    def _ready(self, session: Session) -> None:
        self._session = session
        self.connection_id = session.connection_id
        self.user_id = session.user_id
        self._become(ClientState.CONNECTED)
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    async def _pause(self, lost: Lost) -> bool:
        """Wait before the next try; False where there is none."""
        self._last_reason = lost.reason
        self.connection_id = ""
        if lost.code == 4202:
            self._tokens.renew()
        delay = self._reconnect.after(lost.code, lost.retry_after_s)
        opened = self._opened
        if lost.refusal is not None and opened is not None and not opened.done():
            opened.set_exception(lost.refusal)
            delay = None
        if delay is None:
            reason = f"the edge says to stay away: {lost.reason} ({lost.code})"
            self._finish(ClientClosed(reason, close_code=lost.code))
            return False
        _log.info(
            "no connection to %s: %s; again in %.1f s", self._address.shown, lost.reason, delay
        )
        self._become(ClientState.DISCONNECTED, code=lost.code, reason=lost.reason, retry_in=delay)
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._hurry.wait()
        return True

    def _finish(self, closed: ClientClosed, *, by_owner: bool = False) -> None:
        """The client will not connect again."""
        if self._closed is not None:
            return
        self._closed = closed
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(closed)
            self._opened.exception()  # who opens it may have left
        for subscription in self._subscriptions:
            subscription.end(None if by_owner else closed)
        self._become(ClientState.CLOSED, code=closed.close_code, reason=str(closed))

    def _require_open(self) -> None:
        self._require_not_closed()
        if self._opened is None:
            raise BusStateError("the client is not open: use `async with connect(…) as bus`")

    def _require_not_closed(self) -> None:
        if self._closed is not None:
            raise ClientClosed(str(self._closed), close_code=self._closed.close_code)

    def _become(self, state: ClientState, **details: Any) -> None:
        self.state = state
        change = StateChange(state=state, **details)
        for observer in list(self._observers):
            try:
                with guarded():
                    observer(change)
            except Exception:  # noqa: BLE001 - an observer may raise anything
                _log.exception("an observer of the client's state failed")
