"""WebSockets: aiohttp reads and closes, the outbox writes its ready frames to the transport.

Frames are written past aiohttp's writer, so that one frame made once serves every connection. That
is sound because each write, aiohttp's own included, is one whole frame, and because what is
deflated follows from nothing before it: `server_no_context_takeover` is agreed on. aiohttp inflates
what clients deflate, and bounds it, inflated, as it bounds plain frames.
"""

import asyncio
import itertools
import logging
import zlib
from typing import (
    Any,
    Final,
)

from aiohttp import (
    HttpVersion11,
    WebSocketError,
    WSCloseCode,
    WSMsgType,
    web,
)

from eventbus_edge.framing.extensions import (
    Deflate,
    InvalidExtensions,
    agree,
)
from eventbus_edge.framing.frames import (
    PING,
    close_reason,
)
from eventbus_edge.http.frame_gate import FrameGate
from eventbus_edge.http.server import put_gate
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols.native import (
    PROTOCOL,
    NativeWebSocket,
    decode,
)
from eventbus_edge.protocols.vocabulary import (
    Malformed,
    WireFormat,
)
from eventbus_edge.sessions.connection import (
    Connection,
    fileno_of,
    is_gone,
)
from eventbus_edge.transports.handshake import (
    admit,
    arrival,
)

__all__ = ["answer_extensions", "native_websocket"]


_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take to answer a close frame before its socket is cut."""
_NATIVE: Final = NativeWebSocket()
_AGREED: Final = web.ResponseKey("AGREED", Deflate)
_TURN: Final = 16
"""Messages of one client that are handled before the event loop serves the others."""
_BINARY: Final = Malformed("bad_request", "a binary frame: commands are JSON in text frames", None)


async def native_websocket(request: web.Request) -> web.StreamResponse:
    """GET /ws and /ws/{channel}: what is wrong before the upgrade is raised as a Problem."""
    node = request.app[NODE]
    with arrival(node, request) as place:
        claims, channels = await admit(node, request, place, _raw_channel(request))
        ws, socket = await _upgrade(node, request)
        if socket is None:  # the client has left during the handshake
            return ws
        connection = node.acceptor.accept(_format(node, ws), socket, socket, claims, place)
        try:
            await connection.open(channels)
            await _serve(ws, connection, socket.gate)
        finally:
            node.connections.remove(connection)
        await socket.closed()
    return ws


async def _upgrade(
    node: Node, request: web.Request
) -> "tuple[web.WebSocketResponse, _Socket | None]":
    agreed = _agree(node, request)
    ws = _WebSocket(
        protocols=(PROTOCOL,),
        max_msg_size=node.settings.max_frame_bytes + 1,  # aiohttp refuses what reaches it
        timeout=CLOSE_TIMEOUT_S,
        autoping=False,
        compress=agreed is not None,
    )
    if agreed is not None:
        ws[_AGREED] = agreed
    if request.version < HttpVersion11 or not ws.can_prepare(request).ok:
        raise Problem("bad_request", "this address takes WebSocket connections only")
    gate = put_gate(request, deflates=agreed is not None)
    await ws.prepare(request)
    transport = request.transport
    return ws, None if transport is None or is_gone(transport) else _Socket(
        node, ws, transport, gate
    )


def _agree(node: Node, request: web.Request) -> Deflate | None:
    if node.deflated is None:
        return None
    try:
        return agree(", ".join(request.headers.getall("Sec-WebSocket-Extensions", ())))
    except InvalidExtensions as exc:
        raise Problem("bad_request", f"the header Sec-WebSocket-Extensions: {exc}") from None


async def answer_extensions(_request: web.Request, response: web.StreamResponse) -> None:
    """Put what was agreed on into the handshake's answer.

    aiohttp's own answer lacks what was not asked for, and what is as it would be anyway. An offer
    that it does not understand, for its quotes or spaces, comes to nothing: there it has none.
    """
    if (agreed := response.get(_AGREED)) is not None:
        if "Sec-WebSocket-Extensions" in response.headers:
            response.headers["Sec-WebSocket-Extensions"] = agreed.answer
        else:
            del response[_AGREED]


def _format(node: Node, ws: web.WebSocketResponse) -> WireFormat:
    agreed = ws.get(_AGREED)
    if agreed is None or node.deflated is None:
        return _NATIVE
    return node.deflated.format(agreed.window_bits)


def _raw_channel(request: web.Request) -> str | None:
    """The path's channel as it came, percent-encoding included; None for the plain form."""
    if "channel" not in request.match_info:
        return None
    return request.rel_url.raw_path.split("/", 2)[2]


async def _serve(ws: web.WebSocketResponse, connection: Connection, gate: FrameGate) -> None:
    gate.open(connection)
    turns = itertools.cycle(range(_TURN))
    async for message in ws:
        gate.took()
        match message.type:
            case WSMsgType.TEXT:
                await connection.handle(decode(message.data), len(message.data))
            case WSMsgType.BINARY:
                await connection.handle(_BINARY, len(message.data))
            case WSMsgType.ERROR:
                # aiohttp has closed: 1007 for text that is not UTF-8, 1009 for a large frame.
                connection.ended(_code_of(message.data))
        if next(turns) == 0:
            await asyncio.sleep(0)  # what was read already is handled without a wait
    connection.ended(None)


def _code_of(fault: BaseException) -> int:
    """The code of the close frame that was sent for a fault."""
    if isinstance(fault, WebSocketError):
        return fault.code
    return WSCloseCode.PROTOCOL_ERROR if isinstance(fault, zlib.error) else 1006


class _WebSocket(web.WebSocketResponse):
    """Closes with 1002 for data that cannot be inflated, where aiohttp has 1000 for it.

    And waits for the client's close frame where aiohttp, while it is receiving, does not.
    """

    async def receive(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - aiohttp's
        message = await super().receive(timeout)
        if message.type is WSMsgType.CLOSING:
            self._closing = False  # by the node; `close` goes on once this has returned
        return message

    async def close(
        self,
        *,
        code: int = WSCloseCode.OK,
        message: bytes = b"",
        drain: bool = True,
    ) -> bool:
        if isinstance(self.exception(), zlib.error):
            code, message = WSCloseCode.PROTOCOL_ERROR, b"a frame cannot be inflated"
        return await super().close(code=code, message=message, drain=drain)


class _Socket:
    """The sink that an outbox writes to, and the peer that a connection ends."""

    def __init__(
        self,
        node: Node,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        gate: FrameGate,
    ) -> None:
        self.gate = gate
        self._node = node
        self._ws = ws
        self._transport = transport
        self._closed: asyncio.Event | None = None

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._transport.abort()

    def ping(self) -> None:
        self.write(PING)

    def fileno(self) -> int:
        return fileno_of(self._transport)

    def close(self, code: int, reason: str) -> None:
        self._closed = asyncio.Event()
        self.gate.closing()
        if not self._node.connections.closing.start(
            self._close(code, reason), "closing a connection"
        ):
            self._closed.set()
            self._transport.abort()

    async def closed(self) -> None:
        """Wait for the end of a close that the node has begun.

        A socket that is closed while its client still sends is reset, and the client may not get
        to read why (RFC 6455, 7.1.1).
        """
        if self._closed is not None:
            await self._closed.wait()

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
            assert self._closed is not None, "the close has begun"
            self._closed.set()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
