"""Clients of an edge that resume: WebSockets, the Pusher protocol, Server-Sent Events.

They share no code with the project's own client, so that a bug in that client cannot hide a bug in
the edge. Each moves to the next edge when it reconnects.
"""

import asyncio
import contextlib
import hmac
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from eventbus.cli.chaos.ledger import Log, Message
from eventbus.errors import EventBusError
from eventbus.messages import json_decoder

__all__ = ["EVENT", "KINDS", "Access", "NativeReceiver", "Receiver", "Refused"]

EVENT: Final = "chaos"
"""The name of the events of a run."""
SILENCE_S: Final = 6.0
"""After this silence a receiver sends a ping; after the same time again, it reconnects."""
_HANDSHAKE_S: Final = 15.0
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 1.0
_FINAL: Final = frozenset({400, 401, 403, 404, 405, 426})
"""HTTP statuses for which a retry is useless."""
_TEMPORARY: Final = frozenset({"unavailable", "rate_limited", "limit_exceeded", "internal"})
"""Error codes after which a retry may succeed."""
_MAY_RECONNECT: Final = 4100
"""Clients may reconnect after this close code and all higher ones."""
_PING: Final = '{"event":"pusher:ping","data":{}}'
_PONG: Final = '{"event":"pusher:pong","data":{}}'


class Refused(EventBusError):
    """An edge refuses these clients permanently."""


class Access(NamedTuple):
    """The edges' addresses, and the clients' credentials."""

    urls: Sequence[str]
    """Base addresses: http:// or https://."""
    token: str | None = None
    pusher_key: str = ""
    """The app key for clients of the Pusher protocol."""
    pusher_secret: str = ""
    """Its secret, if the channels are private."""


class _Body(msgspec.Struct):
    by: str
    n: int


class _Frame(msgspec.Struct):
    event: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    channel: str | None = None
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    cursor: str | None = None


class _Answer(msgspec.Struct):
    """The data of an edge's own event."""

    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    recovered: bool | None = None
    cursor: str | None = None
    code: str | int | None = None
    status: int | None = None
    message: str = ""
    error: str = ""


class _Greeting(msgspec.Struct):
    socket_id: str


class _Ended(Exception):
    """The connection has ended, or is no longer usable."""


_decode_frame: Final = json_decoder(_Frame)
_decode_body: Final = json_decoder(_Body)
_decode_answer: Final = json_decoder(_Answer)
_decode_greeting: Final = json_decoder(_Greeting)
_decode_text: Final = json_decoder(str)


class Receiver:
    """One client of one channel, which reconnects and resumes until it is cancelled."""

    kind = ""

    def __init__(self, access: Access, log: Log, turn: int) -> None:
        """`turn` selects the first edge."""
        self.log = log
        self.joined = asyncio.Event()
        self.ends: Counter[str] = Counter()
        """How often connections ended, by reason."""
        self._access = access
        self._turn = turn
        self._socket: socket.socket | None = None
        self._failures = 0
        self._returns_at = 0.0

    async def run(self) -> None:
        """Receive until cancelled. Raises Refused."""
        while True:
            base = self._access.urls[self._turn % len(self._access.urls)]
            connector = aiohttp.TCPConnector(socket_factory=self._make_socket)
            try:
                async with aiohttp.ClientSession(connector=connector) as http:
                    await self._connection(http, base.rstrip("/"))
            except aiohttp.ClientResponseError as exc:
                if exc.status in _FINAL:
                    raise Refused(f"{self.log.name}: {base} answers {exc.status}") from None
                self.ends[f"HTTP {exc.status}"] += 1
            except (aiohttp.ClientError, OSError, TimeoutError, _Ended, msgspec.DecodeError) as exc:
                self.ends[str(exc) or type(exc).__name__] += 1
            self._turn += 1
            self._failures += 1
            longest = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2**self._failures)
            pause = random.uniform(0, longest)  # noqa: S311 - jitter
            await asyncio.sleep(max(0.0, self._returns_at - time.monotonic()) + pause)

    def cut(self, away_s: float = 0.0) -> None:
        """Cut the connection, as a network would; reconnect after `away_s`, or a little later."""
        self._returns_at = time.monotonic() + away_s
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    async def _connection(self, http: aiohttp.ClientSession, base: str) -> None:
        raise NotImplementedError

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        self._socket = socket.socket(family, kind, protocol)
        return self._socket

    def _headers(self) -> Mapping[str, str]:
        token = self._access.token
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _joined(self, answer: _Answer) -> None:
        if answer.recovered is False or (answer.recovered is None and self.joined.is_set()):
            self.log.gap(time.monotonic())
        self._failures = 0
        self.log.joined(time.monotonic())
        self.joined.set()

    def _received(self, body: bytes | str | msgspec.Raw) -> None:
        data = _decode_body(body)
        self.log.received(Message(data.by, data.n), time.monotonic())

    def _refused(self, answer: _Answer) -> None:
        text = answer.message or answer.error
        code = answer.code or answer.status
        is_final = code in _FINAL if answer.code is None else code not in _TEMPORARY
        if isinstance(answer.code, int) and answer.code >= _MAY_RECONNECT:
            is_final = False
        if is_final:
            raise Refused(f"{self.log.name}: {self.log.channel}: {code}: {text}")
        raise _Ended(f"refused: {text}"[:80])


async def _read_frames(
    ws: aiohttp.ClientWebSocketResponse, ping: str, take: Callable[[str], str | None]
) -> None:
    """Pass on text frames until the connection ends, or has been silent for too long.

    `take` handles a frame, and returns the reply or None.
    """
    has_pinged = False
    while True:
        try:
            message = await ws.receive(timeout=SILENCE_S)
        except TimeoutError:
            if has_pinged:
                raise _Ended("silence") from None
            has_pinged = True
            await ws.send_str(ping)
            continue
        has_pinged = False
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise _Ended(f"closed with {ws.close_code or message.data or 1006}")
        if (answer := take(message.data)) is not None:
            await ws.send_str(answer)


class NativeReceiver(Receiver):
    """A WebSocket client of the native protocol."""

    kind = "websocket"

    def __init__(self, access: Access, log: Log, turn: int) -> None:
        super().__init__(access, log, turn)
        self._position: dict[str, object] = {}

    async def _connection(self, http: aiohttp.ClientSession, base: str) -> None:
        async with asyncio.timeout(_HANDSHAKE_S):
            ws = await http.ws_connect(
                f"{base}/ws",
                headers=self._headers(),
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                max_msg_size=0,
            )
        async with ws:
            request = {"action": "subscribe", "channel": self.log.channel, "data": self._position}
            await ws.send_str(msgspec.json.encode(request).decode())
            await _read_frames(ws, '{"action":"ping"}', self._take)

    def _take(self, text: str) -> None:
        frame = _decode_frame(text)
        if frame.event == EVENT and frame.channel == self.log.channel:
            self._received(frame.data)
            self._move(frame)
        elif frame.event == "eb:subscribed":
            answer = _decode_answer(frame.data)
            self._joined(answer)
            self._move(answer)
        elif frame.event == "eb:error":
            self._refused(_decode_answer(frame.data))

    def _move(self, at: _Frame | _Answer) -> None:
        if at.offset is not None:
            self._position = {"offset": at.offset, "epoch": at.epoch}
            if at.mark is not None:
                self._position["mark"] = at.mark


class PusherReceiver(Receiver):
    """A WebSocket client of the Pusher protocol, which requests cursors."""

    kind = "pusher"

    def __init__(self, access: Access, log: Log, turn: int) -> None:
        super().__init__(access, log, turn)
        self._cursor: str | None = None
        self._name = f"private-{log.channel}" if access.pusher_secret else log.channel

    async def _connection(self, http: aiohttp.ClientSession, base: str) -> None:
        async with asyncio.timeout(_HANDSHAKE_S):
            ws = await http.ws_connect(
                f"{base}/app/{self._access.pusher_key}?protocol=7&cursor=1",
                headers=self._headers(),
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                max_msg_size=0,
            )
        async with ws:
            await _read_frames(ws, _PING, self._take)

    def _take(self, text: str) -> str | None:
        frame = _decode_frame(text)
        match frame.event:
            case "pusher:connection_established":
                return self._subscribe(_decode_greeting(_decode_text(frame.data)).socket_id)
            case "chaos" if frame.channel == self._name:
                self._received(_decode_text(frame.data))
                self._cursor = frame.cursor or self._cursor
            case "pusher_internal:subscription_succeeded":
                self._joined(_decode_answer(_decode_text(frame.data)))
                self._cursor = frame.cursor or self._cursor
            case "eventbus:gap":
                answer = _decode_answer(_decode_text(frame.data))
                self._joined(answer)
                self._cursor = answer.cursor or self._cursor
            case "pusher:subscription_error" | "pusher:error":
                self._refused(_decode_answer(frame.data))
            case "pusher:ping":
                return _PONG
        return None

    def _subscribe(self, socket_id: str) -> str:
        data = {"channel": self._name}
        if secret := self._access.pusher_secret:
            signed = f"{socket_id}:{self._name}".encode()
            signature = hmac.new(secret.encode(), signed, "sha256").hexdigest()
            data["auth"] = f"{self._access.pusher_key}:{signature}"
        if self._cursor is not None:
            data["cursor"] = self._cursor
        return msgspec.json.encode({"event": "pusher:subscribe", "data": data}).decode()


class SseReceiver(Receiver):
    """A client of Server-Sent Events, which resumes with Last-Event-ID."""

    kind = "sse"

    def __init__(self, access: Access, log: Log, turn: int) -> None:
        super().__init__(access, log, turn)
        self._id: str | None = None

    async def _connection(self, http: aiohttp.ClientSession, base: str) -> None:
        headers = {**self._headers(), "Accept": "text/event-stream"}
        if self._id is not None:
            headers["Last-Event-ID"] = self._id
        patience = aiohttp.ClientTimeout(total=None, connect=_HANDSHAKE_S, sock_read=2 * SILENCE_S)
        async with http.get(
            f"{base}/sse",
            params={"channel": self.log.channel},
            headers=headers,
            timeout=patience,
            raise_for_status=True,
        ) as response:
            newest: str | None = None
            async for line in response.content:
                if line.startswith(b"id: "):
                    newest = line[4:].strip().decode()
                elif line.startswith(b"data: "):
                    self._take(_decode_frame(line[6:]))
                    self._id = newest or self._id
            raise _Ended("the stream ended")

    def _take(self, frame: _Frame) -> None:
        match frame.event:
            case "chaos" if frame.channel == self.log.channel:
                self._received(frame.data)
            case "eb:subscribed":
                self._joined(_decode_answer(frame.data))
            case "eb:error":
                self._refused(_decode_answer(frame.data))
            case "eb:closing":
                raise _Ended(f"closed with {_decode_answer(frame.data).code}")


KINDS: Final[Mapping[str, type[Receiver]]] = {
    each.kind: each for each in (NativeReceiver, PusherReceiver, SseReceiver)
}
"""Receiver classes by protocol name."""
