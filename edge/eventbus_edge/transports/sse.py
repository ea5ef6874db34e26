"""GET and POST /sse: Server-Sent Events, with everything that WebSockets offer except sending.

Events bypass aiohttp's writer, as frames of WebSockets do, so that an event encoded once serves
every stream; each write is one whole chunk (RFC 9112, 7.1), as aiohttp's own are.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import (
    Final,
    cast,
)

import msgspec
from aiohttp import (
    HttpVersion11,
    web,
)

from eventbus.drivers import Position
from eventbus.messages import json_decoder
from eventbus_edge.delivery import Sink, Wire
from eventbus_edge.framing import sse
from eventbus_edge.http import give_input, read_json_text
from eventbus_edge.keys import NODE
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols import (
    CloseReason,
    Closing,
    Malformed,
    Returns,
    Subscribe,
    SubscribePattern,
    WireProtocol,
)
from eventbus_edge.sessions import Connection, fileno_of, is_gone
from eventbus_edge.transports.handshake import (
    Admitted,
    Request,
    admit,
    arrive,
)

__all__ = ["add_sse"]


_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take for what is unsent when its stream has ended."""
_UNREACHABLE_AFTER: Final = 2.0
"""After how many heartbeats without an acknowledgement a client counts as gone."""
MAX_SURPLUS: Final = 64 * 1024
"""Bytes that a client may send after its request; a proxy might send some."""
MAX_BODY_BYTES: Final = 128 * 1024
MAX_COMMAND_BYTES: Final = 1024
"""A body may have so many for each channel of a connection, if that is more. The longest name and a
position take half of it.
"""
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would buffer events
    "Connection": "close",
}


_Begin = Callable[[Connection], Awaitable[None]]
"""What a stream starts with, once its connection is there."""


_Read = Callable[[Node, web.Request, Admitted, WireProtocol], Awaitable[tuple[Wire, _Begin]]]


def add_sse(app: web.Application, path: str, protocol: WireProtocol) -> None:
    """Answer requests for `path` with streams of a protocol.

    An error before the stream begins is raised as a Problem.
    """

    async def server_sent_events(request: web.Request) -> web.StreamResponse:
        """GET /sse?channel=…"""
        return await _answer(request, protocol, _by_url)

    async def streamed_commands(request: web.Request) -> web.StreamResponse:
        """POST /sse: the body's commands are answered in the stream, as over WebSockets."""
        return await _answer(request, protocol, _by_body)

    app.router.add_get(path, server_sent_events)
    app.router.add_post(path, streamed_commands)


async def _answer(request: web.Request, protocol: WireProtocol, read: _Read) -> web.StreamResponse:
    node = request.app[NODE]
    asked = Request.of(request)
    with arrive(node, asked) as slot:
        admitted = await admit(node, asked, slot, protocol)
        _check(node, admitted)
        wire, begin = await read(node, request, admitted, protocol)
        response = web.StreamResponse(headers=_HEADERS)
        response.force_close()  # else its end would leave the socket open
        if request.method == "HEAD":  # what GET would answer, without a stream
            return response
        with contextlib.suppress(ConnectionError):  # the client has left
            await response.prepare(request)
        transport = request.transport
        if transport is None or is_gone(transport):
            return response
        _end_if_unreachable(transport, _UNREACHABLE_AFTER * node.settings.heartbeat)
        stream = _Stream(request.protocol, transport, chunked=request.version >= HttpVersion11)
        # aiohttp reports the end of a connection only to its reader.
        give_input(request, stream)
        connection = node.acceptor.accept(wire, cast(Sink, stream), stream, admitted.claims, slot)
        stream.connection = connection
        try:
            await begin(connection)
            await stream.ended.wait()
            connection.ended(None)
        finally:
            node.connections.remove(connection)
            stream.finish()
    return response


def _check(node: Node, admitted: Admitted) -> None:
    """What a client could still make good on a WebSocket, by the action auth. Raises Problem."""
    if admitted.claims is None and node.settings.auth_required:
        raise Problem("unauthorized", "this node needs a token")


async def _by_url(
    node: Node, request: web.Request, admitted: Admitted, protocol: WireProtocol
) -> tuple[Wire, _Begin]:
    if admitted.claims is None and "Origin" not in request.headers:
        node.access.origins.require_host(request.host)
    channels = admitted.channels
    names = [command.channel for command, _ in channels]
    if not names:
        raise Problem("bad_request", "the request names no channel: give one or more as channel=")
    positions = _positions(request, names)
    if positions is not None:
        resumed = ((c, positions.get(c.channel, sse.NOWHERE), a) for c, a in channels)
        channels = [(c._replace(resume=at), allowed) for c, at, allowed in resumed]
    if len(names) == 1:
        wire = node.wires.shared(protocol, sse.ONE_CHANNEL)
    else:
        wire = node.wires.own(protocol, sse.ManyChannels(names, positions or {}))

    async def begin(connection: Connection) -> None:
        if (work := connection.open(channels)) is not None:
            await work

    return wire, begin


async def _by_body(
    node: Node, request: web.Request, admitted: Admitted, protocol: WireProtocol
) -> tuple[Wire, _Begin]:
    if admitted.channels:
        raise Problem("bad_request", "a POST names its channels in the body, not as channel=")
    commands = await _commands(node, request, protocol)
    node.require_ready()  # it may have begun to drain while the body came

    async def begin(connection: Connection) -> None:
        connection.open(())
        node.access.admission.charge_channels(connection.address, len(commands))
        async for command in node.connections.turns.paced(commands):
            await connection.handle(command)

    return node.wires.shared(protocol, sse.WITHOUT_CURSOR), begin


_decode_frames: Final = json_decoder(list[msgspec.Raw])


async def _commands(
    node: Node, request: web.Request, protocol: WireProtocol
) -> list[Subscribe | SubscribePattern | Malformed]:
    """The body's commands: a JSON array of what a WebSocket's client sends as frames.

    A single one that is malformed is answered within the stream. Raises Problem for anything but
    an array of commands to subscribe.
    """
    most = node.settings.max_channels_per_connection
    most_bytes = max(MAX_BODY_BYTES, most * MAX_COMMAND_BYTES)
    body = await read_json_text(request, node.settings.request_timeout, most_bytes)
    try:
        frames = _decode_frames(body)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise _bad_body(f"it is not a JSON array of commands: {exc}") from None
    if len(frames) > most:
        raise _bad_body(f"it has {len(frames)} commands: at most {most} are allowed")
    commands: list[Subscribe | SubscribePattern | Malformed] = []
    async for number, frame in node.connections.turns.paced(enumerate(frames)):
        command = protocol.decode(bytes(frame).decode())
        if not isinstance(command, Subscribe | SubscribePattern | Malformed):
            raise _bad_body(f"command {number} is not a subscribe: only those are allowed here")
        commands.append(command)
    return commands


def _bad_body(what: str) -> Problem:
    return Problem("bad_request", f"the body is not valid: {what}")


def _positions(request: web.Request, channels: list[str]) -> dict[str, Position] | None:
    """The client's position in each channel; None when it does not resume."""
    # The header is newer: a browser sends it when it reconnects to a URL with the parameter.
    text = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
    if not text:
        return None
    return sse.decode_cursor(text, channels) or {}


def _end_if_unreachable(transport: asyncio.Transport, seconds: float) -> None:
    """Let the kernel end a connection whose client acknowledges nothing for that long.

    A client of a stream sends nothing, so a machine that has vanished would remain present until
    TCP gives up, which takes some 15 minutes. The comments between events make TCP notice it. This
    is an option of Linux (RFC 5482; tcp(7)).
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    fileno = fileno_of(transport)
    if option is None or fileno == -1:
        return
    # A copy of the descriptor: event loops do not allow setting options of their own sockets.
    with socket.socket(fileno=os.dup(fileno)) as copy:
        if copy.family in (socket.AF_INET, socket.AF_INET6):
            copy.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


class _Stream:
    """The sink that an outbox writes to, the peer that a connection ends, the reader of its end."""

    def __init__(
        self, protocol: web.RequestHandler, transport: asyncio.Transport, *, chunked: bool
    ) -> None:
        self.ended = asyncio.Event()
        self.connection: Connection | None = None
        self._protocol = protocol
        self._transport = transport
        transport.set_write_buffer_limits(high=1, low=0)
        self._chunked = chunked
        self._surplus = 0

    # Sink

    @property
    def is_behind(self) -> bool:
        """Whether bytes are unsent."""
        return self._protocol.writing_paused

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
            self.connection.write(sse.COMMENT)
            self.connection.keep_alive()

    def fileno(self) -> int:
        return fileno_of(self._transport)

    def close(self, closing: Closing) -> None:
        # A stream has no close frame: the protocol says in its last event why it ends.
        assert self.connection is not None, "a connection closes its own stream"
        payload = self.connection.outbox.format.protocol.reply(closing)
        if payload is not None:
            returns_at_once = closing.returns is Returns.AT_ONCE
            self.write(sse.closing(payload, returns_at_once=returns_at_once))
        self.ended.set()

    # Called by aiohttp, which uses this as a parser

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Drop what the client sends, which should be nothing; too much of it ends the stream."""
        self._surplus += len(data)
        if self._surplus > MAX_SURPLUS:
            if self.connection is not None:
                text = "nothing may be sent into a stream"
                self.connection.close(CloseReason.UNEXPECTED_DATA, text)
            self.ended.set()
        return False, b""

    def feed_eof(self) -> None:
        self.ended.set()

    def finish(self) -> None:
        """A peer that is behind gets some time to read the rest, and no more."""
        self.connection = None  # they refer to each other
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
