"""Whether the far end is still there, by what was heard of it. Pure, without a clock."""

import asyncio
import contextlib
import enum
import random
from collections.abc import Callable
from typing import (
    Any,
    Final,
)

import aiohttp
import msgspec

from eventbus.client.frames import (
    Frame,
    decode_frame,
    encode_action,
)
from eventbus.errors import ClientRefused
from eventbus.urls import fault_text

__all__ = ["FAILED", "Greeting", "Link", "Liveness", "Lost", "Reconnect", "Verdict"]


ASK_AFTER: Final = 1.25
"""In heartbeats. An edge asks a silent client after one, so that an idle connection is not idle."""
MAX_ANSWER_S: Final = 10.0


class Verdict(enum.Enum):
    """What is to be done."""

    WAIT = enum.auto()
    ASK = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """A far end that is silent is asked, and given up when it does not answer."""

    def __init__(self, heartbeat_s: float, now: float) -> None:
        """`heartbeat_s` is the edge's own; times are monotonic seconds."""
        self.ask_after_s = ASK_AFTER * heartbeat_s
        self.answer_s = min(heartbeat_s, MAX_ANSWER_S)
        self._heard_at = now
        self._asked_at: float | None = None
        self._looked_at = now

    @property
    def look_every_s(self) -> float:
        """How often to call `look`."""
        return self.answer_s / 4

    def heard(self, now: float) -> None:
        """Something came, of whatever kind."""
        self._heard_at = now
        self._asked_at = None

    def look(self, now: float) -> Verdict:
        """Look at the silence so far."""
        slept, self._looked_at = now - self._looked_at > 2 * self.look_every_s, now
        if slept:
            # It was this process that was not listening: what came meanwhile is still unread.
            self._heard_at, self._asked_at = max(self._heard_at, now - self.ask_after_s), None
        if self._asked_at is not None:
            return Verdict.DEAD if now - self._asked_at >= self.answer_s else Verdict.WAIT
        if now - self._heard_at >= self.ask_after_s:
            self._asked_at = now
            return Verdict.ASK
        return Verdict.WAIT


FAILED: Final = 1006
"""RFC 6455, 7.4.1: the code of a connection that ended without one."""


class Reconnect:
    """Counts failures, and gives each its delay."""

    def __init__(
        self, first_s: float, last_s: float, uniform: Callable[[float, float], float] | None = None
    ) -> None:
        """`uniform(a, b)` gives the jitter: that of `random` by default."""
        self.failures = 0
        self._first_s = first_s
        self._last_s = last_s
        self._uniform = uniform or random.uniform

    def steady(self) -> None:
        """A connection has lived long enough for the next delay to be a first one."""
        self.failures = 0

    def after(self, code: int, retry_after_s: float = 0.0) -> float | None:
        """The seconds to wait after a connection ended with that code; None to stay away.

        The bands of docs/wire-protocol.md, "Close codes": 40xx never, 42xx at once, jittered, and
        all others after a back-off that doubles. What says "at once" again and again backs off too.
        A server's Retry-After holds where it is longer, up to the longest delay.
        """
        if 4000 <= code < 4100:
            return None
        at_once = 4200 <= code < 4300 and self.failures == 0
        bound = min(self._last_s, self._first_s * 2.0 ** min(self.failures, 64))
        delay = self._uniform(0.0, self._first_s) if at_once else self._uniform(bound / 2, bound)
        self.failures += 1
        return max(delay, min(retry_after_s, self._last_s))


PROTOCOL: Final = "eventbus.v1"
CLOSE_S: Final = 2.0
_NO_EDGE: Final = frozenset({400, 401, 403, 404, 405, 426})
"""HTTP's answers to a handshake that another try does not change."""
_PROTOCOL_ERROR: Final = 1002
_CLOSED: Final = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


class Lost(Exception):
    """The connection has ended, or could not be made."""

    def __init__(
        self,
        code: int,
        reason: str,
        *,
        refusal: ClientRefused | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        """`refusal` is there where another try with what one has would end in the same way."""
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.refusal = refusal
        self.retry_after_s = retry_after_s


class Greeting(msgspec.Struct):
    """What an edge says first."""

    connection_id: str
    node: str
    heartbeat_s: float


class Link:
    """A connection that was greeted; `read` brings its frames."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, greeting: Greeting) -> None:
        self.greeting = greeting
        self._socket = socket
        self._liveness = Liveness(greeting.heartbeat_s, asyncio.get_running_loop().time())

    @classmethod
    async def open(cls, http: aiohttp.ClientSession, url: str, *, max_frame_bytes: int) -> "Link":
        """Connect, and wait for the greeting. Raises Lost; the caller bounds the time."""
        try:
            socket = await http.ws_connect(
                url,
                protocols=(PROTOCOL,),
                autoping=False,
                max_msg_size=max_frame_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as exc:
            reason = f"the handshake was answered by HTTP {exc.status}"
            is_final = exc.status in _NO_EDGE
            retry_after = exc.headers.get("Retry-After", "") if exc.headers else ""
            raise Lost(
                FAILED,
                reason,
                refusal=ClientRefused(reason, code=f"http_{exc.status}") if is_final else None,
                retry_after_s=float(retry_after) if retry_after.isdecimal() else 0.0,
            ) from None  # aiohttp's errors quote the address, with what is secret in it
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise Lost(FAILED, f"it cannot be reached: {fault_text(exc)}") from None
        try:
            return cls(socket, await _greeting(socket))
        except BaseException:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await socket.close()
            raise

    async def send(self, action: str, fields: dict[str, Any]) -> None:
        """Send an action. Raises Lost, and TypeError for data that cannot be JSON."""
        text = encode_action(action, fields)
        try:
            await self._socket.send_str(text)
        except (aiohttp.ClientError, OSError) as exc:  # ClientConnectionResetError is both
            raise Lost(FAILED, f"it cannot be written to: {exc}") from exc

    async def read(self, on_frame: Callable[[Frame], None]) -> None:
        """Read until the end, and answer pings. Raises Lost, always.

        A ValueError of `on_frame` is the edge's fault, and ends the connection.
        """
        loop, socket, heard = asyncio.get_running_loop(), self._socket, self._liveness.heard
        while True:
            message = await socket.receive()
            heard(loop.time())
            if message.type is aiohttp.WSMsgType.TEXT:
                try:
                    on_frame(decode_frame(message.data))
                except ValueError as exc:
                    await socket.close(code=_PROTOCOL_ERROR, message=b"no frame of eventbus.v1")
                    what = f"what came is no frame of {PROTOCOL}: {exc}"
                    raise Lost(_PROTOCOL_ERROR, what) from None
            elif message.type is aiohttp.WSMsgType.PING:
                with contextlib.suppress(aiohttp.ClientError, OSError):  # then reading ends too
                    await socket.pong(message.data)
            elif message.type in _CLOSED:
                reason = message.extra if isinstance(message.extra, str) else ""
                raise Lost(_code(socket, message), reason or "the connection was closed")
            elif message.type is aiohttp.WSMsgType.ERROR:
                raise Lost(socket.close_code or FAILED, f"it cannot be read: {message.data}")

    async def watch(self) -> None:
        """Ask a silent edge for a sign of life. Raises Lost when there is none."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._liveness.look_every_s)
            match self._liveness.look(loop.time()):
                case Verdict.ASK:
                    with contextlib.suppress(aiohttp.ClientError, OSError):  # then reading ends too
                        await self._socket.ping()
                case Verdict.DEAD:
                    raise Lost(FAILED, "the edge fell silent")

    async def aclose(self) -> None:
        """Close, in bounded time; closing again is harmless."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S + 1):
                await self._socket.close()


async def _greeting(socket: aiohttp.ClientWebSocketResponse) -> Greeting:
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        reason = message.extra if isinstance(message.extra, str) else ""
        raise Lost(_code(socket, message), reason or "it was closed before a greeting")
    try:
        return msgspec.json.decode(decode_frame(message.data).data, type=Greeting)
    except ValueError as exc:
        raise Lost(_PROTOCOL_ERROR, f"there is no edge at this address: {exc}") from None


def _code(socket: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> int:
    """What the edge closed with. aiohttp forgets it where the edge does not wait for an answer."""
    code: int | None = (
        message.data if message.type is aiohttp.WSMsgType.CLOSE else socket.close_code
    )
    return code or FAILED
