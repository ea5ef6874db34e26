"""WebSockets: aiohttp reads and closes, the outbox writes its ready frames to the transport.

Frames are written past aiohttp's writer, so that one frame made once serves every connection. That
is sound because each write, aiohttp's own included, is one whole frame: no compression and no
fragmentation is negotiated here.
"""

import asyncio
import logging
from typing import Final

from aiohttp import WSMsgType, web

from edge.connection import Connection
from edge.entrance import admit
from edge.keys import NODE
from edge.node import Node
from edge.problem import Problem
from edge.protocols.framing import PING, close_reason, pong_frame
from edge.protocols.native import PROTOCOL, NativeWebSocket, decode
from edge.protocols.vocabulary import Malformed

__all__ = ["native_websocket"]

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take to answer a close frame before its socket is cut."""
_NATIVE: Final = NativeWebSocket()
_BINARY: Final = Malformed("bad_request", "a binary frame: commands are JSON in text frames", None)


async def native_websocket(request: web.Request) -> web.StreamResponse:
    """GET /ws and /ws/{channel}: what is wrong before the upgrade is raised as a Problem."""
    node = request.app[NODE]
    with node.arrival(request.remote, request.headers) as place:
        claims, channels = await admit(node, request, place, _raw_channel(request))
        ws, socket = await _upgrade(node, request)
        if socket is None:  # the client has left during the handshake
            return ws
        connection = node.connect(_NATIVE, socket, socket, claims, place)
        try:
            await connection.open(channels)
            await _serve(ws, connection)
        finally:
            node.disconnect(connection)
    return ws


async def _upgrade(
    node: Node, request: web.Request
) -> "tuple[web.WebSocketResponse, _Socket | None]":
    ws = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        max_msg_size=node.settings.max_frame_bytes + 1,  # aiohttp refuses what reaches it
        timeout=CLOSE_TIMEOUT_S,
        autoping=False,
        compress=False,
    )
    if not ws.can_prepare(request).ok:
        raise Problem("bad_request", "this address takes WebSocket connections only")
    await ws.prepare(request)
    return ws, _Socket(node, ws, request.transport) if request.transport else None


def _raw_channel(request: web.Request) -> str | None:
    """The path's channel as it came, percent-encoding included; None for the plain form."""
    if "channel" not in request.match_info:
        return None
    return request.rel_url.raw_path.split("/", 2)[2]


async def _serve(ws: web.WebSocketResponse, connection: Connection) -> None:
    async for message in ws:
        match message.type:
            case WSMsgType.TEXT:
                await connection.handle(decode(message.data))
            case WSMsgType.BINARY:
                await connection.handle(_BINARY)
            case WSMsgType.PING:
                connection.heard()
                connection.write(pong_frame(message.data))
            case WSMsgType.PONG:
                connection.heard()
            case WSMsgType.ERROR:
                # aiohttp has closed: 1007 for text that is not UTF-8, 1009 for a large frame.
                connection.ended(ws.close_code or 1006)
    connection.ended(None)


class _Socket:
    """The sink that an outbox writes to, and the peer that a connection ends."""

    def __init__(self, node: Node, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self._node = node
        self._ws = ws
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def ping(self) -> None:
        self.write(PING)

    def close(self, code: int, reason: str) -> None:
        if not self._node.closing.start(self._close(code, reason), "closing a connection"):
            self._transport.abort()

    async def _close(self, code: int, reason: str) -> None:
        message = close_reason(reason)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._ws.close(code=code, message=message, drain=False)
        except TimeoutError:
            pass
        finally:
            # A peer that is behind gets the time to read the rest; one that does not read would
            # keep its unsent bytes alive.
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
