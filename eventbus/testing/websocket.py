"""A WebSocket client of an edge for tests. It waits for every reply, and raises on refusals."""

import asyncio
import collections
import itertools
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

import aiohttp

from eventbus.client import Sockets
from eventbus.testing.errors import Refused

__all__ = ["Connect", "WebSocketClient"]

TIMEOUT_S: Final = 10.0
MAX_WAITING: Final = 10_000
"""How many frames can arrive while waiting for a reply."""
_TEXT: Final = aiohttp.WSMsgType.TEXT

Frame = dict[str, Any]


class WebSocketClient:
    """A WebSocket connection with the native protocol (docs/wire-protocol.md)."""

    def __init__(self, url: str) -> None:
        """`url` is that of the edge, such as `ws://127.0.0.1:8080/ws`. `open` connects."""
        self.connection_id = ""
        """The connection's id, for `to_others` of an event."""
        self._url = url
        self._refs = itertools.count(1)
        self._waiting: collections.deque[Frame] = collections.deque()
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def close_code(self) -> int | None:
        """The close code of the connection; None while it is open."""
        return None if self._socket is None else self._socket.close_code

    async def open(self, token: str | None = None) -> None:
        """Connect, and authenticate if there is a token. Raises Refused."""
        self._sockets = Sockets()
        self._http = aiohttp.ClientSession(connector=self._sockets.connector())
        try:
            self._socket = await self._http.ws_connect(self._url)
        except aiohttp.WSServerHandshakeError as exc:
            raise Refused("the connection", code=f"http_{exc.status}", message=exc.message) from exc
        greeting = await self.receive()
        assert greeting["event"] == "eb:connected", greeting
        self.connection_id = greeting["data"]["connection_id"]
        if token is not None:
            await self.ask("auth", data={"token": token})

    async def receive(self, *, timeout: float = TIMEOUT_S) -> Frame:  # noqa: ASYNC109 - in seconds
        """Wait for the next frame: a dict with channel, event, data, timestamp and other fields.

        Raises TimeoutError, and ConnectionError if the edge has closed the connection.
        """
        return self._waiting.popleft() if self._waiting else await self._read(timeout)

    async def send(self, action: str, **fields: Any) -> None:
        """Send an action: `send("whisper", channel="chat.7", event="typing", data={})`."""
        await self._open_socket().send_str(json.dumps({"action": action, **fields}))

    async def ask(self, action: str, **fields: Any) -> Any:
        """Send an action, and return the data of the reply. Keeps frames that arrive before it.

        Raises Refused for an error frame, and the errors of `receive`.
        """
        ref = next(self._refs)
        await self.send(action, ref=ref, **fields)
        while True:
            frame = await self._read(TIMEOUT_S)
            data = frame["data"]
            if _is_system(frame) and isinstance(data, dict) and data.get("ref") == ref:
                break
            if len(self._waiting) >= MAX_WAITING:
                raise AssertionError(f"{MAX_WAITING:,} frames arrived before the reply to {action}")
            self._waiting.append(frame)
        if frame["event"] == "eb:error":
            what = " ".join(filter(None, (action, fields.get("channel"))))
            raise Refused(what, code=data["code"], message=data["message"])
        return data

    async def subscribe(self, channel: str, **data: Any) -> Any:
        """Subscribe to a channel, with `history=10` or `offset` and `epoch` for past messages.

        Returns the data of the reply: kind, offset, epoch and other fields. Raises Refused.
        """
        return await self.ask("subscribe", channel=channel, **({"data": data} if data else {}))

    async def assert_received_nothing(self) -> None:
        """Assert that the edge has sent nothing that is unread. The error shows the frame."""
        __tracebackhide__ = True
        await self.ask("ping")
        if self._waiting:
            raise AssertionError(f"received a frame: {json.dumps(self._waiting[0])[:1000]}")

    async def aclose(self) -> None:
        """Close the connection. Can be called more than once."""
        if self._socket is not None:
            await self._socket.close()
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

    async def _read(self, patience_s: float) -> Frame:
        try:
            async with asyncio.timeout(patience_s):
                message = await self._open_socket().receive()
        except TimeoutError:
            raise TimeoutError(f"no frame was received within {patience_s:g} s") from None
        if message.type is not _TEXT:
            raise ConnectionError(f"the connection was closed with code {self.close_code}")
        frame: Frame = json.loads(message.data)
        return frame

    def _open_socket(self) -> aiohttp.ClientWebSocketResponse:
        if self._socket is None:
            raise ConnectionError("the client is not connected: call open() first")
        return self._socket


class Connect(Protocol):
    """The fixture `websocket_client`. See `eventbus.testing.edge.EdgeServer.connect`."""

    async def __call__(
        self,
        *channels: str,
        user: str | None = None,
        name: str | None = None,
        roles: Sequence[str] = (),
        permissions: Sequence[str] = (),
        grants: Sequence[str] = (),
        token: str | None = None,
    ) -> WebSocketClient:
        """Connect a client and subscribe to the channels. Raises Refused."""


def _is_system(frame: Frame) -> bool:
    name: str = frame["event"]
    return name == "pong" or name.startswith("eb:")
