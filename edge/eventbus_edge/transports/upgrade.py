"""The opening handshake of WebSockets (RFC 6455, section 4.2), and its paths."""

import asyncio
import binascii
import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import (
    Final,
    NamedTuple,
)

from aiohttp import (
    HttpVersion11,
    web,
)
from multidict import CIMultiDictProxy

from eventbus_edge.access import Slot
from eventbus_edge.framing import (
    TEXT_FRAMES,
    Deflate,
    FrameReader,
    InvalidExtensions,
    negotiate_extensions,
)
from eventbus_edge.http import (
    OPENERS,
    REFUSERS,
    Detached,
    Front,
    Head,
    Opener,
    counted,
    detach,
)
from eventbus_edge.keys import node_of
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem
from eventbus_edge.protocols import Failed, WireProtocol
from eventbus_edge.sessions import is_gone
from eventbus_edge.transports.handshake import (
    Request,
    admit,
    arrive,
    offered_protocols,
    require_upgrade,
)
from eventbus_edge.transports.websocket import WebSocket

__all__ = ["add_websocket"]


_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ANY_CHANNEL: Final = "{channel:(?s:.*)}"
_VERSION: Final = "13"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==", re.ASCII)
"""Base64 of 16 bytes."""
_HEAD: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Server: eventbus\r\n"
    b"Sec-WebSocket-Accept: %b\r\n"
)


def add_websocket(app: web.Application, path: str, protocol: WireProtocol) -> None:
    """Accept WebSockets of a protocol at `path`, which may end with a `{channel}` to subscribe.

    An ordinary handshake is read by the first protocol of its socket, any other by aiohttp.
    """

    async def websocket(request: web.Request) -> web.StreamResponse:
        await _connect(_by_aiohttp(request, protocol))
        return _Answered()

    async def refuse(request: web.Request, problem: Problem) -> web.StreamResponse:
        _refuse(_by_aiohttp(request, protocol), problem)
        return _Answered()

    async def opened(head: Head, front: Front) -> None:
        await _open(_by_front(node_of(app, head.path), front, head, route, protocol))

    if protocol.refuse is not None:
        app[REFUSERS][websocket] = refuse
    # HEAD has no upgrade (RFC 6455, 4.1)
    resource = app.router.add_get(path, websocket, allow_head=False).resource
    assert resource is not None, "a route that was added for a path has a resource"
    route = resource.canonical
    plain = path.removesuffix(_ANY_CHANNEL)
    if "{" not in plain and plain.endswith("/") == (plain != path):
        app[OPENERS][plain] = Opener(route, opened)


class _Answered(web.StreamResponse):
    """The response to a request whose socket aiohttp no longer owns: it writes nothing."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


class _Handshake(NamedTuple):
    """A handshake, however it was read."""

    node: Node
    protocol: WireProtocol
    request: Request
    has_body: bool
    """Or it is not of HTTP/1.1."""
    socket: Callable[[], asyncio.Transport | None]
    """Returns the socket; None if the client has left, even if that has not been read yet."""
    detach: Callable[[], Detached]


def _by_aiohttp(request: web.Request, protocol: WireProtocol) -> _Handshake:
    return _Handshake(
        node_of(request.app, request.path),
        protocol,
        Request.of(request, _raw_channel(request)),
        request.version < HttpVersion11 or request.body_exists,
        lambda: _socket_of(request),
        lambda: detach(request),
    )


def _socket_of(request: web.Request) -> asyncio.Transport | None:
    """The socket of a request; None if the client has left."""
    transport = request.transport
    return None if transport is None or is_gone(transport) else transport


def _by_front(
    node: Node, front: Front, head: Head, route: str, protocol: WireProtocol
) -> _Handshake:
    headers = head.headers
    channel = head.path.rpartition("/")[2] if route.endswith("}") else None
    request = Request("GET", route, front.remote, headers["Host"], headers, head.query, channel)
    return _Handshake(node, protocol, request, False, front.socket, front.detach)


async def _open(handshake: _Handshake) -> None:
    """Do what the application's middlewares do for a handshake that aiohttp has read."""
    node, protocol, request = handshake[:3]
    try:
        with counted(node.access.admission, request.remote, request.headers):
            await _connect(handshake)
    except Problem as problem:
        if protocol.refuse is None:
            raise
        _refuse(handshake, problem)


async def _connect(handshake: _Handshake) -> None:
    """Open a connection; an error before the upgrade is raised as a Problem."""
    node, request = handshake.node, handshake.request
    slot = arrive(node, request)
    try:
        handshake = _agree(handshake)
        claims, channels = await admit(node, request, slot, handshake.protocol)
        socket = _upgrade(handshake, _read_opening(handshake), slot)
    except BaseException:
        slot.release()
        raise
    if socket is None:
        slot.release()
        return
    try:
        connection = node.acceptor.accept(socket.wire, socket, socket, claims, slot)
        await socket.open(connection, channels)
    except BaseException:
        socket.abort()
        raise


def _agree(handshake: _Handshake) -> _Handshake:
    """With the protocol's form for this client. Raises Problem."""
    agreed = handshake.protocol.agree(dict(handshake.request.query))
    if isinstance(agreed, Failed):
        raise Problem(agreed.code, agreed.message)
    return handshake if agreed is handshake.protocol else handshake._replace(protocol=agreed)


def _refuse(handshake: _Handshake, problem: Problem) -> None:
    """Upgrade, send the error and close, for protocols whose clients read errors in the socket.

    Raises the problem if there can be no upgrade.
    """
    node, refuse = handshake.node, handshake.protocol.refuse
    assert refuse is not None
    try:
        opening = _read_opening(handshake)
    except Problem:
        raise problem from None
    failed = Failed(problem.code, problem.detail, None, None)
    closing = refuse(failed)
    socket = _upgrade(handshake, opening, None)
    if socket is not None:
        node.metrics.errors.labels(failed.code).inc()
        node.metrics.closes.labels(str(closing.code)).inc()
        socket.refuse(failed, closing)


class _Opening(NamedTuple):
    """What a valid handshake asks for."""

    key: str
    deflate: Deflate | None
    """The compression that is agreed on."""


def _read_opening(handshake: _Handshake) -> _Opening:
    """Check a handshake. Raises Problem."""
    return _Opening(_key(handshake), _deflate(handshake))


def _upgrade(handshake: _Handshake, opening: _Opening, slot: Slot | None) -> WebSocket | None:
    """Take the socket over; None if the client has left in the meantime."""
    node, protocol, deflate = handshake.node, handshake.protocol, opening.deflate
    transport = handshake.socket()
    if transport is None:
        return None
    key = opening.key.encode() + _GUID
    answer = _HEAD % binascii.b2a_base64(
        hashlib.sha1(key, usedforsecurity=False).digest(), newline=False
    )
    known = protocol.subprotocols
    if known is not None:
        offers = handshake.request.headers.getall("Sec-WebSocket-Protocol", ())
        if offers and known.name in offered_protocols(offers):
            answer += f"Sec-WebSocket-Protocol: {known.name}\r\n".encode()
    wire = node.wires.shared(protocol, TEXT_FRAMES)
    if deflate is not None and node.wires.deflated is not None:
        answer += f"Sec-WebSocket-Extensions: {deflate.answer}\r\n".encode()
        wire = node.wires.shared(protocol, node.wires.deflated.framing(deflate.window_bits))
    answer += b"\r\n"
    reader = FrameReader(node.settings.max_frame_bytes, deflates=deflate is not None)
    detached = handshake.detach()
    return WebSocket(detached, answer, wire, reader, connections=node.connections, slot=slot)


def _key(handshake: _Handshake) -> str:
    """The key of a valid handshake (RFC 6455, section 4.2.1). Raises Problem."""
    headers = handshake.request.headers
    is_plain = headers.get("Upgrade") == "websocket" and headers.get("Connection") == "Upgrade"
    if not is_plain:
        require_upgrade(headers)
    if handshake.has_body or (not is_plain and not _asks_for_websocket(headers)):
        raise Problem(
            "bad_request",
            "this address takes WebSocket connections only: requests of HTTP/1.1 without a body, "
            "with the header Upgrade: websocket",
        )
    if headers.getall("Sec-WebSocket-Version", ()) != [_VERSION]:
        raise Problem(
            "bad_request",
            f"the header Sec-WebSocket-Version must be given once, with the value {_VERSION}",
            status=HTTPStatus.UPGRADE_REQUIRED,
            headers={
                "Sec-WebSocket-Version": _VERSION,
                "Upgrade": "websocket",  # RFC 9110, 15.5.22 and 7.8
                "Connection": "Upgrade",
            },
        )
    keys = headers.getall("Sec-WebSocket-Key", ())
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Problem(
            "bad_request",
            "the header Sec-WebSocket-Key must be given once, with 16 bytes in Base64",
        )
    return keys[0]


def _asks_for_websocket(headers: CIMultiDictProxy[str]) -> bool:
    return "websocket" in _tokens(headers, "Upgrade") and "upgrade" in _tokens(
        headers, "Connection"
    )


def _tokens(headers: CIMultiDictProxy[str], name: str) -> list[str]:
    """The elements of a header that is a list, in lower case."""
    values = ",".join(headers.getall(name, ()))
    return [token.strip(" \t").lower() for token in values.split(",")]


def _deflate(handshake: _Handshake) -> Deflate | None:
    """The compression that is agreed on. Raises Problem for a malformed header."""
    offers = handshake.request.headers.getall("Sec-WebSocket-Extensions", ())
    if not offers:
        return None
    try:
        agreed = negotiate_extensions(", ".join(offers))
    except InvalidExtensions as exc:
        raise Problem("bad_request", f"the header Sec-WebSocket-Extensions: {exc}") from None
    return None if handshake.node.wires.deflated is None else agreed


def _raw_channel(request: web.Request) -> str | None:
    """The path's channel as it came, percent-encoding included; None for the plain form."""
    if "channel" not in request.match_info:
        return None
    resource = request.match_info.route.resource
    assert resource is not None, "a request for a path has a resource"
    depth = resource.canonical.partition("{channel}")[0].count("/")
    return request.rel_url.raw_path.split("/", depth)[depth]
