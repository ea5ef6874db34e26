"""GET and POST /sse: Server-Sent Events for whatever WebSockets may do but send.

Events are written past aiohttp's writer, as frames are to WebSockets, so that an event made once
serves every stream; each write is one whole chunk (RFC 9112, 7.1), as aiohttp's own are.
"""

import asyncio
import logging
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import (
    Any,
    Final,
    cast,
)

from aiohttp import (
    HttpVersion11,
    web,
)

from eventbus.drivers.base import Position
from eventbus_edge.delivery.outbox import Sink
from eventbus_edge.framing.sse import (
    COMMENT,
    NOWHERE,
    InvalidCommands,
    ManyChannels,
    OneChannel,
    WithoutCursor,
    closing,
    decode_commands,
    decode_cursor,
)
from eventbus_edge.http.body import read_json_text
from eventbus_edge.http.endpoints import cors_headers
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols.vocabulary import (
    Command,
    WireFormat,
)
from eventbus_edge.sessions.connection import (
    Connection,
    fileno_of,
    is_gone,
)
from eventbus_edge.transports.handshake import (
    Admitted,
    admit,
    arrival,
)

__all__ = ["preflight", "server_sent_events", "streamed_commands"]


_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take for what is unsent when its stream has ended."""
CLOSE_TOO_MUCH: Final = 4008
MAX_SURPLUS: Final = 64 * 1024
"""Bytes that a client may send after its request; a proxy might send some."""
_ONE: Final = OneChannel()
_WITHOUT_CURSOR: Final = WithoutCursor()
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
    "Connection": "close",
}
_MAX_AGE_S: Final = 600


_Begin = Callable[[Connection], Awaitable[None]]
"""What a stream starts with, once its connection is there."""


async def server_sent_events(request: web.Request) -> web.StreamResponse:
    """GET /sse?channel=…: what is wrong before the stream begins is raised as a Problem."""
    return await _answer(request, _by_url)


async def streamed_commands(request: web.Request) -> web.StreamResponse:
    """POST /sse: the body's commands are answered in the stream, as they are over WebSockets."""
    return await _answer(request, _by_body)


async def _answer(
    request: web.Request,
    read: Callable[[Node, web.Request, Admitted], Awaitable[tuple[WireFormat, _Begin]]],
) -> web.StreamResponse:
    node = request.app[NODE]
    cors = cors_headers(request)
    try:
        with arrival(node, request) as place:
            admitted = await admit(node, request, place, None)
            _check(node, admitted)
            wire, begin = await read(node, request, admitted)
            response = web.StreamResponse(headers=_HEADERS | cors)
            response.force_close()  # else its end would leave the socket open
            await response.prepare(request)
            transport = request.transport
            if transport is None or is_gone(transport):  # the client has left meanwhile
                return response
            stream = _Stream(transport, chunked=request.version >= HttpVersion11)
            # aiohttp tells of the end of a connection only to who reads from it.
            request.protocol.set_parser(cast(Any, stream))
            connection = node.acceptor.accept(
                wire, cast(Sink, stream), stream, admitted.claims, place
            )
            stream.connection = connection
            try:
                await begin(connection)
                await stream.ended.wait()
                connection.ended(None)
            finally:
                node.connections.remove(connection)
                stream.finish()
    except Problem as problem:
        problem.headers.update(cors)
        raise
    return response


def _check(node: Node, admitted: Admitted) -> None:
    """What a client could still make good on a WebSocket, by the action auth. Raises Problem."""
    if admitted.claims is None and node.settings.auth_required:
        raise Problem("unauthorized", "this node needs a token")


async def _by_url(
    node: Node, request: web.Request, admitted: Admitted
) -> tuple[WireFormat, _Begin]:
    if admitted.claims is None and "Origin" not in request.headers:
        node.access.origins.require_host(request.host)
    asked = admitted.channels
    names = [command.channel for command, _ in asked]
    if not names:
        raise Problem("bad_request", "no channel is asked for: give one or more as channel=")
    positions = _positions(request, names)
    if positions is not None:
        resumed = ((c, positions.get(c.channel, NOWHERE), a) for c, a in asked)
        asked = [(c._replace(resume=at), allowed) for c, at, allowed in resumed]
    wire = _ONE if len(names) == 1 else ManyChannels(names, positions or {})

    async def begin(connection: Connection) -> None:
        await connection.open(asked)

    return wire, begin


async def _by_body(
    node: Node, request: web.Request, admitted: Admitted
) -> tuple[WireFormat, _Begin]:
    if admitted.channels:
        raise Problem("bad_request", "a POST names its channels in the body, not as channel=")
    commands = await _commands(node, request)
    node.require_ready()  # it may have begun to drain while the body came

    async def begin(connection: Connection) -> None:
        await connection.open(())
        node.access.admission.charge_channels(connection.address, len(commands))
        for command in commands:
            await connection.handle(command)

    return _WITHOUT_CURSOR, begin


async def _commands(node: Node, request: web.Request) -> list[Command]:
    body = await read_json_text(request, node.settings.request_timeout)
    try:
        return [*decode_commands(body, node.settings.max_channels_per_connection)]
    except InvalidCommands as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


async def preflight(request: web.Request) -> web.Response:
    """OPTIONS /sse: what a page of an allowed origin may ask for (fetch.spec.whatwg.org)."""
    cors = cors_headers(request)
    if "Access-Control-Allow-Origin" not in cors:
        raise Problem("forbidden", "the request's origin is not allowed", headers=cors)
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": (
            "Authorization, Cache-Control, Content-Type, Last-Event-ID"
        ),
        "Access-Control-Max-Age": str(_MAX_AGE_S),
    }
    return web.Response(status=204, headers=cors | allowed)


def _positions(request: web.Request, channels: list[str]) -> dict[str, Position] | None:
    """Where the client stands in each channel; None when it does not resume."""
    # The header is newer: a browser sends it when it comes again to a URL with the parameter.
    text = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
    if not text:
        return None
    return decode_cursor(text, channels) or {}


class _Stream:
    """The sink that an outbox writes to, the peer that a connection ends, the reader of its end."""

    def __init__(self, transport: asyncio.Transport, *, chunked: bool) -> None:
        self.ended = asyncio.Event()
        self.connection: Connection | None = None
        self._transport = transport
        self._chunked = chunked
        self._surplus = 0

    # Sink

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._transport.abort()

    # Peer

    def ping(self) -> None:
        """Keep proxies from closing a silent stream. There is no answer to wait for."""
        if self.connection is not None:
            self.connection.write(COMMENT)
            self.connection.heard()

    def fileno(self) -> int:
        return fileno_of(self._transport)

    def close(self, code: int, reason: str) -> None:
        self.write(closing(code, reason))
        self.ended.set()

    # What aiohttp calls, having been given this as a parser

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Drop what is sent into a stream, for nothing is asked for; much of it ends the stream."""
        self._surplus += len(data)
        if self._surplus > MAX_SURPLUS:
            if self.connection is not None:
                self.connection.close(CLOSE_TOO_MUCH, "nothing may be sent into a stream")
            self.ended.set()
        return False, b""

    def feed_eof(self) -> None:
        self.ended.set()

    def finish(self) -> None:
        """A peer that is behind gets some time to read the rest, and no more."""
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
