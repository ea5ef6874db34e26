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

from eventbus_edge.delivery.wire import Wire
from eventbus_edge.framing.extensions import (
    Deflate,
    InvalidExtensions,
    agree,
)
from eventbus_edge.framing.frames import (
    PING,
    TEXT,
    close_reason,
)
from eventbus_edge.http.frame_gate import FrameGate
from eventbus_edge.http.server import put_gate
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols.base import WireProtocol
from eventbus_edge.protocols.vocabulary import (
    Closing,
    Failed,
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

__all__ = ["add_websocket", "answer_extensions"]


_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take to answer a close frame before its socket is cut."""
_AGREED: Final = web.ResponseKey("AGREED", Deflate)
_TURN: Final = 16
"""Messages of one client that are handled before the event loop serves the others."""


def add_websocket(app: web.Application, path: str, protocol: WireProtocol) -> None:
    """Take WebSockets of a protocol at `path`, which may end with a `{channel}` to subscribe."""

    async def websocket(request: web.Request) -> web.StreamResponse:
        try:
            return await _connect(request, protocol)
        except Problem as problem:
            if protocol.refuse is None:
                raise
            failed = Failed(problem.code, problem.detail, None, None)
            return await _refuse(request, protocol, failed, protocol.refuse(failed))

    app.router.add_get(path, websocket, allow_head=False)  # HEAD has no upgrade (RFC 6455, 4.1)


async def _connect(request: web.Request, protocol: WireProtocol) -> web.StreamResponse:
    """Open a connection and serve it; what is wrong before the upgrade is raised as a Problem."""
    node = request.app[NODE]
    with arrival(node, request) as place:
        channel = _raw_channel(request)
        claims, channels = await admit(node, request, place, channel, protocol)
        ws, socket = await _upgrade(node, request, protocol)
        if socket is None:  # the client has left during the handshake
            return ws
        connection = node.acceptor.accept(socket.wire, socket, socket, claims, place)
        try:
            await connection.open(channels)
            await _serve(ws, connection, socket.gate)
        finally:
            node.connections.remove(connection)
        await socket.closed()
    return ws


async def _refuse(
    request: web.Request, protocol: WireProtocol, failed: Failed, closing: Closing
) -> web.StreamResponse:
    """Upgrade, send the error and close, for protocols whose clients read errors in the socket.

    Raises Problem where there can be no upgrade.
    """
    node = request.app[NODE]
    ws, socket = await _upgrade(node, request, protocol)
    if socket is not None:
        node.metrics.errors.labels(failed.code).inc()
        node.metrics.closes.labels(str(closing.code)).inc()
        socket.write(socket.wire.reply(failed) or b"")
        socket.close(closing)
        socket.gate.open(_Refused())
        await socket.closed()
    return ws


class _Refused:
    """What a gate has in place of a connection, to look for the client's close frame."""

    is_closing: Final = True

    def count(self, frames: int, ping: bytes | None, *, is_last: bool) -> None:
        """Nothing is served."""


async def _upgrade(
    node: Node, request: web.Request, protocol: WireProtocol
) -> "tuple[web.WebSocketResponse, _Socket | None]":
    agreed = _agree(node, request)
    subprotocols = protocol.subprotocols
    ws = _WebSocket(
        protocols=() if subprotocols is None else (subprotocols.name,),
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
        node, ws, transport, gate, _wire(node, ws, protocol)
    )


def _agree(node: Node, request: web.Request) -> Deflate | None:
    if node.wires.deflated is None:
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


def _wire(node: Node, ws: web.WebSocketResponse, protocol: WireProtocol) -> Wire:
    agreed = ws.get(_AGREED)
    if agreed is None or node.wires.deflated is None:
        return node.wires.shared(protocol, TEXT)
    return node.wires.shared(protocol, node.wires.deflated.framing(agreed.window_bits))


def _raw_channel(request: web.Request) -> str | None:
    """The path's channel as it came, percent-encoding included; None for the plain form."""
    if "channel" not in request.match_info:
        return None
    resource = request.match_info.route.resource
    assert resource is not None, "a request for a path has a resource"
    depth = resource.canonical.partition("{channel}")[0].count("/")
    return request.rel_url.raw_path.split("/", depth)[depth]


async def _serve(ws: web.WebSocketResponse, connection: Connection, gate: FrameGate) -> None:
    gate.open(connection)
    decode = connection.outbox.format.protocol.decode
    turns = itertools.cycle(range(_TURN))
    async for message in ws:
        gate.took()
        match message.type:
            case WSMsgType.TEXT | WSMsgType.BINARY:
                await connection.handle(decode(message.data), len(message.data))
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
        wire: Wire,
    ) -> None:
        self.gate = gate
        self.wire = wire
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
        self.write(self.wire.heartbeat() or PING)

    def fileno(self) -> int:
        return fileno_of(self._transport)

    def close(self, closing: Closing) -> None:
        if self.wire.protocol.announces_close:
            self.write(self.wire.reply(closing) or b"")
        self._closed = asyncio.Event()
        self.gate.closing()
        if not self._node.connections.closing.start(self._close(closing), "closing a connection"):
            self._closed.set()
            self._transport.abort()

    async def closed(self) -> None:
        """Wait for the end of a close that the node has begun.

        A socket that is closed while its client still sends is reset, and the client may not get
        to read why (RFC 6455, 7.1.1).
        """
        if self._closed is not None:
            await self._closed.wait()

    async def _close(self, closing: Closing) -> None:
        message = close_reason(closing.text)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._ws.close(code=closing.code, message=message, drain=False)
        except TimeoutError:
            pass
        finally:
            # A peer that is behind gets the time to read the rest; one that does not read would
            # keep its unsent bytes alive.
            assert self._closed is not None, "the close has begun"
            self._closed.set()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
