"""One session with an edge, over one link: authentication, requests, joins of subscriptions."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from eventbus.attempts import Backoff, OutageLog
from eventbus.client.frames import Frame
from eventbus.client.link import FAILED, Link, Lost
from eventbus.client.options import ClientOptions
from eventbus.client.registry import Registry
from eventbus.client.requests import OnAnswer, Requests
from eventbus.client.tokens import TokenSource
from eventbus.errors import ClientDisconnected, ClientError, ClientRefused
from eventbus.messages import json_decoder

__all__ = ["Session"]

_log = logging.getLogger(__name__)

_RENEW_AGAIN: Final = Backoff(5.0, 5.0, jitter=0.8)


class _Notice(msgspec.Struct):
    """The fields that are read of an edge's own events, and of answers to `auth`."""

    user_id: str | None = None
    code: str = ""
    message: str = ""


_decode_notice: Final = json_decoder(_Notice)


class Session:
    """Lives as long as its link; a new link gets a new session."""

    def __init__(
        self,
        link: Link,
        *,
        tokens: TokenSource,
        subscriptions: Registry,
        options: ClientOptions,
    ) -> None:
        """The link has its greeting, and nothing was read from it since."""
        self.connection_id = link.greeting.connection_id
        self.user_id: str | None = None
        """The authenticated user."""
        self._link = link
        self._tokens = tokens
        self._subscriptions = subscriptions
        self._requests = Requests(options.max_requests)
        self._request_timeout_s = options.request_timeout
        self._steady_after_s = options.steady_after
        self._outage = OutageLog(_log, "the token was renewed")

    async def run(
        self,
        *,
        on_ready: Callable[[], None],
        on_steady: Callable[[], None],
        on_skip: Callable[[str], None],
    ) -> None:
        """Authenticate, and keep the subscriptions joined until the end. Always raises Lost.

        `on_ready` is called when the edge has accepted the token, `on_steady` when the connection
        has lasted for `steady_after`, and `on_skip` with the reason for each frame that cannot be
        read.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._link.read(self._receive, on_skip))
                group.create_task(self._link.watch())
                await self._authenticate()
                self._subscriptions.connected()
                on_ready()
                group.create_task(self._subscriptions.run(self.ask))
                group.create_task(self._renew())
                await asyncio.sleep(self._steady_after_s)
                on_steady()
        except BaseExceptionGroup as group:
            raise _ending(group) from None

    async def aclose(self) -> None:
        """Fail unanswered requests, and close the link."""
        self._requests.fail(lambda: ClientDisconnected("the connection was lost"))
        self._subscriptions.lost()
        await self._link.aclose()

    async def ask(
        self, action: str, fields: dict[str, Any], on_answer: OnAnswer | None = None
    ) -> Frame:
        """Send an action; returns the answer. See `Requests.expect` for `on_answer`.

        Raises ClientRefused, and ClientDisconnected if the connection ends or there is no answer
        within `request_timeout`.
        """
        ref, answer = self._requests.expect(action, fields.get("channel"), on_answer)
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._link.send(action, {**fields, "ref": ref})
                return await answer
        except Lost as lost:
            raise ClientDisconnected(f"{action}: {lost.reason}") from lost
        except TimeoutError:
            seconds = self._request_timeout_s
            raise ClientDisconnected(f"{action}: no answer within {seconds:g} s") from None
        finally:
            self._requests.forget(ref)

    # The token

    async def _authenticate(self) -> None:
        token = await self._tokens.get()
        if not token:
            return
        try:
            answer = await self._ask_auth(token)
        except ClientRefused as exc:
            if exc.code not in ("unauthorized", "token_expired"):
                raise Lost(FAILED, str(exc)) from exc
            refusal = exc if self._tokens.refused() else None
            code = 4001 if self._tokens.is_fixed else 4202
            raise Lost(code, str(exc), refusal=refusal) from exc
        except ClientDisconnected as exc:
            raise Lost(FAILED, str(exc)) from exc
        try:
            self.user_id = _decode_notice(answer.data).user_id
        except ValueError as exc:
            raise Lost(FAILED, f"auth: the edge's answer cannot be read: {exc}") from exc

    async def _renew(self) -> None:
        """Send the edge a new token whenever it asks for one."""
        while True:
            await self._tokens.expiring.wait()
            self._tokens.expiring.clear()
            if self._tokens.is_fixed:
                _log.warning(
                    "the token expires and cannot be renewed: pass a function that returns tokens"
                )
                continue
            self._tokens.renew()
            try:
                await self._ask_auth(await self._tokens.get() or "")
                self._outage.ended()
            except (ClientError, Lost) as exc:
                self._outage.failed("the token could not be renewed: %s", exc)
                await asyncio.sleep(_RENEW_AGAIN.delay(0))
                # An edge closes with 4001 after three bad tokens: after the first, wait for 4202.
                if not isinstance(exc, ClientRefused):
                    self._tokens.expiring.set()

    async def _ask_auth(self, token: str) -> Frame:
        answer = await self.ask("auth", {"data": {"token": token}})
        self._tokens.accepted()
        return answer

    # Incoming frames

    def _receive(self, frame: Frame) -> None:
        if not frame.is_system:
            self._subscriptions.receive(frame)
        elif not self._requests.answer(frame):
            self._handle_system(frame)

    def _handle_system(self, frame: Frame) -> None:
        """Handle an edge's own event that is not an answer."""
        match frame.event:
            case "eb:token.expiring":
                self._tokens.expiring.set()
            case "eb:error":
                notice = _decode_notice(frame.data)
                _log.warning("the edge reports: %s (%s)", notice.message, notice.code)
            case _:
                self._subscriptions.handle_system(frame)


def _ending(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Why a connection ended: the first Lost, unless the client itself failed."""
    lost, others = group.split(Lost)
    if others is not None or lost is None:
        return group
    first = lost.exceptions[0]
    assert isinstance(first, Lost)
    return first
