"""One connection to an edge, its liveness, and when to connect again after it.

`Link` is the connection: greeting, frames, pings, close. `Liveness` decides from the times of
incoming frames whether the edge is still there, and `Reconnect` decides from a close code when to
connect again; both are pure.
"""

import asyncio
import contextlib
import enum
import random
import urllib.parse
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from eventbus.attempts import Backoff
from eventbus.client.frames import Frame, decode_frame, encode_action
from eventbus.errors import ClientRefused
from eventbus.messages import json_decoder
from eventbus.urls import fault_text

__all__ = [
    "FAILED",
    "FrameTooLarge",
    "Greeting",
    "Link",
    "Liveness",
    "Lost",
    "Reconnect",
    "Verdict",
]


PROTOCOL: Final = "eventbus.v1"
CLOSE_S: Final = 2.0
_NO_EDGE: Final = {
    400: "it takes no WebSocket handshake there; a proxy must forward the headers Upgrade and "
    "Connection",
    401: "a proxy in between asks for credentials; the client's token goes to the edge only",
    403: "the edge, or a proxy in front of it, does not allow this client; an edge allows the host "
    "names in BROADCAST_ALLOWED_HOSTS",
    404: "there is no edge at this path, which is /ws by default",
    405: "there is no edge at this path, which is /ws by default",
    426: "it does not support this version of WebSockets",
}
"""HTTP statuses of a handshake that a retry does not change, and what to do about them."""
_PROTOCOL_ERROR: Final = 1002
_CLOSED: Final = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)
FAILED: Final = 1006
"""RFC 6455, 7.4.1: the code of a connection that ended without a close code."""
PING_AFTER: Final = 1.25
"""In heartbeats. An edge pings a silent client after one, so that this is rarely reached."""
MAX_ANSWER_S: Final = 10.0


class Lost(Exception):
    """The connection ended, or could not be opened."""

    def __init__(
        self,
        code: int,
        reason: str,
        *,
        refusal: ClientRefused | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        """`refusal` is set if a retry with the same token and address would fail again."""
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.refusal = refusal
        self.retry_after_s = retry_after_s


class FrameTooLarge(Lost):
    """The edge sent a frame that is larger than this client accepts."""


class Greeting(msgspec.Struct):
    """The first frame of an edge."""

    connection_id: str
    node: str
    heartbeat_s: float


_decode_greeting: Final = json_decoder(Greeting)


class Link:
    """A connection that has received its greeting; `read` delivers its frames."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, greeting: Greeting) -> None:
        self.greeting = greeting
        self._socket = socket
        self._liveness = Liveness(greeting.heartbeat_s, asyncio.get_running_loop().time())

    @classmethod
    async def open(
        cls,
        http: aiohttp.ClientSession,
        url: str,
        *,
        max_frame_bytes: int,
        proxy: str | None = None,
    ) -> "Link":
        """Connect, and wait for the greeting. Raises Lost; the caller limits the time."""
        try:
            socket = await http.ws_connect(
                url,
                protocols=(PROTOCOL,),
                autoping=False,
                max_msg_size=max_frame_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                proxy=proxy,
            )
        except aiohttp.WSServerHandshakeError as exc:
            path = urllib.parse.urlsplit(url).path
            reason = f"the handshake at {path} was answered by HTTP {exc.status}"
            if is_final := exc.status in _NO_EDGE:
                reason += f": {_NO_EDGE[exc.status]}"
            retry_after = exc.headers.get("Retry-After", "") if exc.headers else ""
            raise Lost(
                FAILED,
                reason,
                refusal=ClientRefused(reason, code=f"http_{exc.status}") if is_final else None,
                retry_after_s=float(retry_after) if retry_after.isdecimal() else 0.0,
            ) from None  # aiohttp's errors quote the address, which may contain secrets
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise Lost(FAILED, f"the edge cannot be reached: {fault_text(exc)}") from None
        try:
            return cls(socket, await _greeting(socket))
        except BaseException:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await socket.close()
            raise

    async def send(self, action: str, fields: dict[str, Any]) -> None:
        """Send an action. Raises Lost, and TypeError for data that is not JSON."""
        text = encode_action(action, fields)
        try:
            await self._socket.send_str(text)
        except (aiohttp.ClientError, OSError) as exc:  # ClientConnectionResetError is both
            raise Lost(FAILED, f"writing failed: {exc}") from exc

    async def read(self, on_frame: Callable[[Frame], None], on_skip: Callable[[str], None]) -> None:
        """Read until the end, and answer pings. Always raises Lost.

        A frame that cannot be decoded, or for which `on_frame` raises ValueError, is skipped:
        `on_skip` gets the reason. Ending the connection would not help, because a resume asks for
        the same frame again.
        """
        loop, socket, received = asyncio.get_running_loop(), self._socket, self._liveness.received
        while True:
            message = await socket.receive()
            received(loop.time())
            if message.type is aiohttp.WSMsgType.TEXT:
                try:
                    on_frame(decode_frame(message.data))
                except ValueError as exc:
                    on_skip(str(exc))
            elif message.type is aiohttp.WSMsgType.BINARY:
                on_skip("it is a binary frame")
            elif message.type is aiohttp.WSMsgType.PING:
                with contextlib.suppress(aiohttp.ClientError, OSError):  # then reading ends too
                    await socket.pong(message.data)
            elif message.type in _CLOSED:
                reason = message.extra if isinstance(message.extra, str) else ""
                raise Lost(_code(socket, message), reason or "the connection was closed")
            elif message.type is aiohttp.WSMsgType.ERROR:
                if socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                    raise FrameTooLarge(socket.close_code, f"reading failed: {message.data}")
                raise Lost(socket.close_code or FAILED, f"reading failed: {message.data}")

    async def watch(self) -> None:
        """Ask a silent edge for a sign of life. Raises Lost when there is none."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._liveness.check_every_s)
            match self._liveness.check(loop.time()):
                case Verdict.PING:
                    with contextlib.suppress(aiohttp.ClientError, OSError):  # then reading ends too
                        await self._socket.ping()
                case Verdict.DEAD:
                    raise Lost(FAILED, "the edge stopped answering")

    async def aclose(self) -> None:
        """Close, in bounded time. Closing twice is harmless."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S + 1):
                await self._socket.close()


async def _greeting(socket: aiohttp.ClientWebSocketResponse) -> Greeting:
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        reason = message.extra if isinstance(message.extra, str) else ""
        raise Lost(
            _code(socket, message), reason or "the connection was closed before the greeting"
        )
    try:
        return _decode_greeting(decode_frame(message.data).data)
    except ValueError as exc:
        raise Lost(_PROTOCOL_ERROR, f"the server at this address is not an edge: {exc}") from None


def _code(socket: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> int:
    """The edge's close code, which aiohttp forgets if the edge does not wait for an answer."""
    code: int | None = (
        message.data if message.type is aiohttp.WSMsgType.CLOSE else socket.close_code
    )
    return code or FAILED


class Verdict(enum.Enum):
    """What to do next."""

    WAIT = enum.auto()
    PING = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """A silent edge is pinged, and given up if it does not answer."""

    def __init__(self, heartbeat_s: float, now: float) -> None:
        """`heartbeat_s` is the edge's; times are monotonic seconds."""
        self.ping_after_s = PING_AFTER * heartbeat_s
        self.answer_s = min(heartbeat_s, MAX_ANSWER_S)
        self._received_at = now
        self._pinged_at: float | None = None
        self._looked_at = now

    @property
    def check_every_s(self) -> float:
        """How often to call `check`."""
        return self.answer_s / 4

    def received(self, now: float) -> None:
        """Something was received."""
        self._received_at = now
        self._pinged_at = None

    def check(self, now: float) -> Verdict:
        """Judge the silence so far."""
        slept, self._looked_at = now - self._looked_at > 2 * self.check_every_s, now
        if slept:
            # This process was suspended: what arrived meanwhile is still unread.
            self._received_at, self._pinged_at = (
                max(self._received_at, now - self.ping_after_s),
                None,
            )
        if self._pinged_at is not None:
            return Verdict.DEAD if now - self._pinged_at >= self.answer_s else Verdict.WAIT
        if now - self._received_at >= self.ping_after_s:
            self._pinged_at = now
            return Verdict.PING
        return Verdict.WAIT


class Reconnect:
    """The delay before the next connection, by close code and number of failures."""

    def __init__(
        self,
        first_s: float,
        last_s: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`uniform(a, b)` draws the jitter."""
        self._last_s = last_s
        self._backoff = Backoff(first_s, last_s, uniform=uniform)
        self._at_once = Backoff(first_s, first_s, jitter=1.0, uniform=uniform)
        self._has_failed = False

    def steady(self) -> None:
        """A connection has lasted long enough to start over with the first delay."""
        self._backoff.reset()
        self._has_failed = False

    def after(self, code: int, retry_after_s: float = 0.0) -> float | None:
        """The seconds to wait after a connection ended with that code; None not to reconnect.

        docs/wire-protocol.md, "Close codes": never after 40xx, at once (with jitter) after 42xx,
        and with back-off after all others. A repeated 42xx backs off too. A longer Retry-After of
        the server applies, up to the longest delay.
        """
        if 4000 <= code < 4100:
            return None
        delay = self._backoff.next()
        if 4200 <= code < 4300 and not self._has_failed:
            delay = self._at_once.delay(0)
        self._has_failed = True
        return max(delay, min(retry_after_s, self._last_s))
