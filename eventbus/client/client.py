"""A client of an edge: one connection, which is replaced for as long as the client is open."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import aiohttp

from eventbus.attempts import OutageLog, is_power_of_two
from eventbus.channels import Pattern, validate_channel
from eventbus.client.frames import Frame, HistoryPage, Member
from eventbus.client.joined import JoinedChannel
from eventbus.client.link import FAILED, FrameTooLarge, Link, Lost, Reconnect
from eventbus.client.options import (
    ClientOptions,
    ClientState,
    StateChange,
    check_history,
    check_type,
    parse_address,
)
from eventbus.client.registry import Registry, names
from eventbus.client.requests import members_in, page_in
from eventbus.client.session import Session
from eventbus.client.sockets import Sockets
from eventbus.client.subscription import ChannelHandlers, Subscription
from eventbus.client.tokens import Token, TokenSource
from eventbus.errors import BusStateError, ClientClosed, ClientDisconnected, ClientError
from eventbus.tasks import Shutdown, Tasks
from eventbus.urls import proxy_for
from eventbus.user_code import check_callable, check_not_async, guarded

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
        """Does not connect yet. Raises ValueError for a bad URL, and TypeError."""
        if options is not None:
            check_type("options", options, ClientOptions)
        if tls is not None:
            check_type("tls", tls, ssl.SSLContext)
        self.state = ClientState.DISCONNECTED
        self.connection_id = ""
        """The id of the current connection, for `to_others` of an event."""
        self.user_id: str | None = None
        """The user that the edge has authenticated."""
        self.skipped = 0
        """How many frames of the edge could not be read, and were skipped."""
        self._address = parse_address(url)
        self._outage = OutageLog(_log, "connected to %s", self._address.shown, level=logging.INFO)
        self._options = options or ClientOptions()
        self._tls: ssl.SSLContext | bool = True if tls is None else tls
        self._tokens = TokenSource(token, self._options.token_timeout)
        self._reconnect = Reconnect(self._options.first_delay, self._options.last_delay)
        self._subscriptions = Registry()
        self._observers: list[Callable[[StateChange], object]] = []
        self._reconnect_now = asyncio.Event()
        self._session: Session | None = None
        self._http: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._opened: asyncio.Future[None] | None = None
        self._connection = Tasks()
        self._handlers = Tasks()
        self._shutdown = Shutdown(self._connection, self._handlers)
        self._last_reason = "no answer"
        self._too_large = 0
        self._closed: ClientClosed | None = None

    async def open(self) -> None:
        """Connect and authenticate.

        Raises ClientRefused if the edge refuses the token, ClientClosed if its close code forbids
        reconnecting, ClientDisconnected after `open_timeout`, and ConfigError for a proxy in the
        environment that cannot be used.
        """
        if self._opened is not None:
            raise BusStateError("a client is opened once")
        self._require_not_closed()
        self._proxy = proxy_for(self._address.url)
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
        """Call a function at each change of state; returns a function that removes it.

        `observer` must not block. Raises TypeError for an async function, which nothing awaits.
        """
        check_callable(observer, "an observer", 1)
        check_not_async(observer, "an observer")
        self._observers.append(observer)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._observers.remove(observer)

        return remove

    async def subscribe(
        self, channel: str, handlers: ChannelHandlers | None = None, *, history: int = 0
    ) -> Subscription:
        """Subscribe to a channel, or to the channels of a pattern, now and after each reconnect.

        `handlers` is a function for every message, or a mapping of functions by event name or type
        (see `Subscription.on`). Without handlers, iterate over the subscription. `history` requests
        up to that many earlier messages, of a channel that the client has not joined yet. Each call
        returns a subscription of its own; the client joins the channel once, and leaves it when the
        last of them ends.

        Returns when the edge has answered, after reconnects if necessary. Raises InvalidPattern,
        InvalidChannel, TypeError, ValueError, ClientRefused and ClientClosed.
        """
        is_pattern = not Pattern(channel).is_exact
        if not is_pattern:
            validate_channel(channel)
        check_history(history, is_pattern=is_pattern)
        self._require_open()
        joined = self._subscriptions.get(channel)
        if is_new := joined is None:
            joined = JoinedChannel(channel, history=history)
        subscription = Subscription(self, joined, buffer=self._options.buffer)
        joined.add(subscription)
        try:
            subscription.add(handlers)
            if is_new:
                self._subscriptions.add(joined)
            await joined.joined()
        except BaseException:
            await self.leave(subscription, wait=False)
            raise
        return subscription

    async def presence(self, channel: str) -> list[Member]:
        """The members of a presence channel that this client may join, joined or not.

        Raises InvalidChannel, ClientRefused, ClientDisconnected, ClientClosed.
        """
        return members_in(await self.ask("presence", channel=validate_channel(channel)))

    async def history(
        self, channel: str, limit: int = 100, *, since: int | None = None
    ) -> HistoryPage:
        """Stored messages of a channel that this client may join: the first after `since`.

        Without the offset `since`, the last ones. Raises as `presence` does.
        """
        data = {"limit": limit} if since is None else {"limit": limit, "since": since}
        return page_in(await self.ask("history", channel=validate_channel(channel), data=data))

    async def ping(self) -> float:
        """Measure a round trip to the edge, in seconds. Raises ClientDisconnected, ClientClosed."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        await self.ask("ping")
        return loop.time() - before

    def reconnect(self) -> None:
        """Connect now instead of waiting for the end of the delay."""
        self._reconnect_now.set()

    async def ask(self, action: str, **fields: Any) -> Frame:
        """Send any action of the protocol; returns the answer.

        Raises ClientRefused, ClientClosed, and ClientDisconnected if there is no connection, or no
        answer within `request_timeout`.
        """
        self._require_open()
        if self._session is None:
            raise ClientDisconnected(f"{action}: there is no connection now")
        return await self._session.ask(action, fields)

    # For subscriptions

    def settle(self, joined: JoinedChannel) -> None:
        """Join or leave a channel at the edge, as its phase says."""
        self._subscriptions.settle(joined)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[Any] | None":
        """Run a subscription's handlers, at most until the client closes."""
        return self._handlers.start(work, name)

    async def leave(self, subscription: Subscription, *, wait: bool = True) -> None:
        """End a subscription, and its channel with the last one.

        A lost connection is not an error.
        """
        joined = subscription.of_channel
        joined.discard(subscription)
        subscription.end(None)
        if not len(joined):
            await self._leave_channel(joined, wait=wait)
        elif joined.waits_for_room:  # this was the slow one
            joined.cursor.wait()
            self.settle(joined)
        await subscription.aclose()

    async def _leave_channel(self, joined: JoinedChannel, *, wait: bool) -> None:
        self._subscriptions.discard(joined)
        held, session = joined.is_held, self._session
        joined.end(None)
        if held and session is not None and wait:
            joined.left()
            with contextlib.suppress(ClientError):  # the connection's end ends it, too
                await session.ask("unsubscribe", names(joined))
        elif held:
            self.settle(joined)

    # The connection's life

    async def _run(self) -> None:
        try:
            while self._closed is None:
                self._set_state(ClientState.CONNECTING)
                try:
                    await self._connect()
                except Lost as lost:
                    if not await self._pause(lost):
                        return
        except ClientClosed:  # by its own token function
            return
        except Exception as exc:  # noqa: BLE001 - a fault of the client itself: reported, not hidden
            _log.exception("the client of %s failed and is closed", self._address.shown)
            self._finish(ClientClosed(f"the client failed: {exc!r}", close_code=FAILED))

    async def _connect(self) -> None:
        """One connection, from connecting to its end. Always raises Lost."""
        options = self._options
        assert self._http is not None
        await self._tokens.get()
        self._require_not_closed()
        try:
            async with asyncio.timeout(options.handshake_timeout):
                link = await Link.open(
                    self._http,
                    self._address.url,
                    max_frame_bytes=options.max_frame_bytes,
                    proxy=self._proxy,
                )
        except TimeoutError:
            raise Lost(FAILED, f"no greeting in {options.handshake_timeout:g} s") from None
        session = Session(
            link, tokens=self._tokens, subscriptions=self._subscriptions, options=options
        )
        try:
            await session.run(
                on_ready=lambda: self._ready(session), on_steady=self._steady, on_skip=self._skip
            )
        finally:
            self._session = None
            await session.aclose()

    def _ready(self, session: Session) -> None:
        self._session = session
        self.connection_id = session.connection_id
        self.user_id = session.user_id
        self._set_state(ClientState.CONNECTED)
        self._outage.ended()
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _steady(self) -> None:
        self._reconnect.steady()
        self._too_large = 0

    def _skip(self, reason: str) -> None:
        self.skipped += 1
        if is_power_of_two(self.skipped):
            _log.warning(
                "skipped a frame of %s that cannot be read (%d so far): %s",
                self._address.shown,
                self.skipped,
                reason[:200],
            )

    def _skip_too_large(self, reason: str) -> None:
        """Leave out a message that is too large to receive.

        A resume would ask for it again, so that the second time all channels continue with new
        messages, and report the gap.
        """
        self._skip(reason)
        self._too_large += 1
        if self._too_large > 1:
            self._subscriptions.forget_positions()

    async def _pause(self, lost: Lost) -> bool:
        """Wait before the next attempt; False if there will be none."""
        self._last_reason = lost.reason
        self.connection_id = ""
        if isinstance(lost, FrameTooLarge):
            self._skip_too_large(lost.reason)
        if lost.code == 4202:
            self._tokens.renew()
        delay = self._reconnect.after(lost.code, lost.retry_after_s)
        opened = self._opened
        if lost.refusal is not None and opened is not None and not opened.done():
            opened.set_exception(lost.refusal)
            delay = None
        if delay is None:
            reason = f"the edge does not allow reconnecting: {lost.reason} ({lost.code})"
            self._finish(ClientClosed(reason, close_code=lost.code))
            return False
        self._outage.begin()
        _log.info(
            "no connection to %s: %s; connecting again in %.1f s",
            self._address.shown,
            lost.reason,
            delay,
        )
        self._set_state(
            ClientState.DISCONNECTED, code=lost.code, reason=lost.reason, retry_in=delay
        )
        self._reconnect_now.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._reconnect_now.wait()
        return True

    def _finish(self, closed: ClientClosed, *, by_owner: bool = False) -> None:
        """End the client for good."""
        if self._closed is not None:
            return
        self._closed = closed
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(closed)
            self._opened.exception()  # perhaps nobody waits for open() any longer
        for joined in self._subscriptions:
            joined.end(None if by_owner else closed)
        self._set_state(ClientState.CLOSED, code=closed.close_code, reason=str(closed))

    def _require_open(self) -> None:
        self._require_not_closed()
        if self._opened is None:
            raise BusStateError("the client is not open: use `async with connect(…) as bus`")

    def _require_not_closed(self) -> None:
        if self._closed is not None:
            raise ClientClosed(str(self._closed), close_code=self._closed.close_code)

    def _set_state(self, state: ClientState, **details: Any) -> None:
        self.state = state
        change = StateChange(state=state, **details)
        for observer in list(self._observers):
            try:
                with guarded():
                    observer(change)
            except Exception:  # noqa: BLE001 - an observer may raise anything
                _log.exception("an observer of the client's state failed")
