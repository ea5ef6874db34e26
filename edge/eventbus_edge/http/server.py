"""The HTTP server beneath the application: its own errors are problem JSON, too.

A request that cannot be parsed, or has an unknown Expect header, never reaches a handler. aiohttp
would answer it in plain text, with its version and with the client's data, and would log that data,
which may contain a token.
"""

import asyncio
import functools
import logging
import re
from collections.abc import (
    Callable,
    Mapping,
)
from http import HTTPStatus
from typing import (
    Any,
    Final,
    cast,
)

from aiohttp import (
    HttpVersion10,
    HttpVersion11,
    StreamReader,
    web,
)
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import (
    BadHttpMessage,
    HttpProcessingError,
    InvalidURLError,
    LineTooLong,
)
from aiohttp.web_protocol import _ErrInfo

from eventbus_edge.http.body import body_too_large
from eventbus_edge.http.front import (
    OPENERS,
    Detached,
    Front,
    Fronts,
    Opener,
)
from eventbus_edge.http.middleware import (
    KNOWN_MIDDLEWARES,
    problem_of,
    respond,
)
from eventbus_edge.keys import NODE
from eventbus_edge.lingering import LINGER_S, MAX_SURPLUS, MUCH, READ_BYTES, Linger
from eventbus_edge.node import Node
from eventbus_edge.problem import Problem

__all__ = ["Runner", "detach"]


MAX_HEADERS: Final = 64
"""Header lines of a request."""
MAX_TARGET_BYTES: Final = 8190
MAX_HEADER_BYTES: Final = 8192
"""Of one header line. Differs from MAX_TARGET_BYTES, so that aiohttp's error says which it was."""
_MAX_HEADS: Final = 64
"""Requests of one packet that are parsed one by one; see `_RequestHandler._parse`."""
_S_PER_BODY_BYTE: Final = 4e-9
"""What it takes to read and parse a body: 1 ms for the 256 KiB that are read at once."""
_SHUTDOWN_S: Final = 5.0
"""How long requests other than WebSockets may take to finish once the node has drained."""
_END_OF_HEAD: Final = b"\r\n\r\n"
_TOO_MANY_HEADERS: Final = "Too many headers"
_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
_HOST: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?", re.ASCII
)
"""A header Host (RFC 9110, 7.2): uri-host and port of RFC 3986."""
_VERSION_FAULT: Final = web.RequestKey("VERSION_FAULT", bool)
_KIND: Final = re.compile(r"[A-Za-z0-9' .-]{4,60}", re.ASCII)


class Runner(web.AppRunner):
    """Runs the application, without log lines that could contain a URL."""

    def __init__(self, app: web.Application, request_timeout: float) -> None:
        """A connection that is idle for `request_timeout` seconds between requests is closed.

        So is one that does not send the complete head of a request in that time: aiohttp's
        keep-alive time starts with the first bytes.
        """
        log = logging.getLogger("eventbus_edge.http.server")
        log.addFilter(_is_the_nodes_fault)
        self._options: dict[str, Any] = {
            "access_log": None,
            "logger": log,
            "keepalive_timeout": request_timeout,
            "max_headers": MAX_HEADERS,
            "max_line_size": MAX_TARGET_BYTES,
            "max_field_size": MAX_HEADER_BYTES,
            "auto_decompress": False,  # a small body could become a large one
        }
        super().__init__(app, shutdown_timeout=_SHUTDOWN_S, **self._options)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        app = self.app
        node = app[NODE]
        refusals = node.metrics.refusals
        # An application's own middlewares have to see every request.
        openers = app[OPENERS] if tuple(app.middlewares) == app[KNOWN_MIDDLEWARES] else {}
        return _Server(
            server.request_handler,
            server.request_factory,
            self._options,
            lambda code: refusals.labels(code).inc(),
            node=node,
            openers=openers,
        )


class _Server(web.Server):
    def __init__(
        self,
        handler: Any,
        request_factory: Any,
        options: dict[str, Any],
        on_refusal: Callable[[str], None],
        *,
        node: Node,
        openers: Mapping[str, Opener],
    ) -> None:
        super().__init__(self._handle, request_factory=self._request, **options)
        self.on_refusal = on_refusal
        self._handler = handler
        self._make = request_factory
        self.admission = node.access.admission
        self.sockets = node.connections
        self._turns = node.connections.turns
        self._options = options
        self._fronts = Fronts(
            openers,
            functools.partial(_RequestHandler, self, loop=asyncio.get_running_loop(), **options),
            self.admission,
            on_refusal,
            self._turns,
            timeout=options["keepalive_timeout"],
            max_headers=options["max_headers"],
        )

    def _request(self, message: RawRequestMessage, *parts: Any) -> web.BaseRequest:
        """Make a request; the answer to an unknown version of HTTP is not of that version."""
        if message.version in _VERSIONS:
            return cast(web.BaseRequest, self._make(message, *parts))
        request: web.BaseRequest = self._make(message._replace(version=HttpVersion11), *parts)
        request[_VERSION_FAULT] = True
        return request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request to the application, unless it breaks HTTP where aiohttp is lenient."""
        protocol = cast(_RequestHandler, request.protocol)
        await (self._turns.pause() if protocol.has_more else self._turns.enter())
        if (refusal := protocol.take_refusal()) is not None:
            return self._refuse(refusal)  # it is counted already
        if _VERSION_FAULT in request:
            problem = Problem("bad_request", "the HTTP version must be 1.0 or 1.1", status=505)
        elif not _HOST.fullmatch(request.headers.get("Host", "")):
            problem = Problem("bad_request", "the header Host must be a host, or host:port")
        elif _waits_to_send_too_much(request):
            problem = body_too_large(request.client_max_size)
        else:
            return cast(web.StreamResponse, await self._handler(request))
        self.on_refusal(problem.code)
        response = self._refuse(problem)
        response.force_close()
        return response

    def _refuse(self, problem: Problem) -> web.Response:
        response = respond(problem)
        response.headers["Server"] = "eventbus"  # signals of the application do not run for it
        return response

    def __call__(self) -> Front:  # type: ignore[override]  # a protocol, as its callers need
        return Front(self._fronts)

    def pre_shutdown(self) -> None:
        """Close the sockets that wait for a request."""
        self._fronts.close_idle()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's
        """Wait for requests in progress, and end all sockets."""
        await self._fronts.shutdown(_SHUTDOWN_S if timeout is None else timeout)
        await super().shutdown(timeout)


class _RequestHandler(web.RequestHandler):
    """One HTTP connection."""

    __slots__ = (
        "_admission", "_on_refusal", "_peer", "_refusal", "_sockets", "_turns", "_waits",
    )  # fmt: skip

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._on_refusal = server.on_refusal
        self._admission = server.admission
        self._sockets = server.sockets
        self._turns = server.sockets.turns
        self._waits = False
        """Whether nothing is read before a later turn."""
        self._peer: str | None = None
        """The address that the socket was counted for; None if it was not."""
        self._refusal: Problem | None = None

    def take_over(
        self, transport: asyncio.Transport, peer: str | None, data: bytes, refusal: Problem | None
    ) -> None:
        """Serve a socket from its first bytes on; `refusal` answers the first request."""
        self._peer = peer
        self._refusal = refusal
        transport.set_protocol(self)
        self.connection_made(transport)
        self.data_received(data)

    @property
    def has_more(self) -> bool:
        """Whether more requests wait, which the client sent without waiting for answers.

        aiohttp handles them in one turn of the event loop if no handler has to wait for anything.
        """
        return bool(self._messages)

    def take_refusal(self) -> Problem | None:
        """The answer to this request, if it is known already."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket has ended."""
        if self._peer is not None:
            self._admission.ended(self._peer)
            self._peer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; those who send much at once take turns."""
        if len(data) < MUCH:
            self._parse(data)
            return
        self._turns.serve(functools.partial(self._parse, data))
        if not self._waits:
            self._waits = True
            self._pause_transport_reading()
            self._turns.wait(self._read_on)

    def _read_on(self) -> None:
        if not self._waits:  # the socket was given away meanwhile
            return
        self._waits = False
        self._turns.count_read(READ_BYTES, _S_PER_BODY_BYTE)
        if not self._reading_paused and not self._buffer_paused:
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        """Resume reading, unless it is not this client's turn; aiohttp calls this, too."""
        if not self._waits:
            super()._resume_transport_reading()

    def _parse(self, data: bytes) -> None:
        """Parse data; valid requests before an invalid one in the same packet are answered first.

        aiohttp drops the requests of a packet in which it finds a fault. So a packet is parsed in
        pieces, each of which ends with the head of at most one request.
        """
        for piece in _pieces(data):
            super().data_received(piece)
            if self._messages and isinstance(fault := self._messages[-1][0], _ErrInfo):
                fault.exc.with_traceback(None)  # its frames refer to this connection
                self._end_body()
                return

    def _end_body(self) -> None:
        """End the body that is being received: it is malformed, and its rest never comes.

        aiohttp would let its reader wait for it.
        """
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body is malformed"))

    def give_input(self, reader: Any) -> None:
        """Pass what the client sends from now on to `reader`, and drop requests that wait."""
        self._messages.clear()  # or else aiohttp would not read on, if there are many
        self.set_parser(reader)

    def detach(self) -> "Detached":
        """Give the transport away: here the connection ends, as if its socket had."""
        transport, received = self.transport, _Received()
        assert transport is not None, "an upgrade is of an open connection"
        self.set_parser(cast(Any, received))
        if self._waits:  # its next protocol expects a socket that is read
            self._read_on()
        return Detached(transport, bytes(received.data), self._leave())

    def _leave(self) -> Callable[[], None]:
        """Release the transport. Returns the function to call when its socket has ended."""
        self.transport = None  # or else it would be closed
        peer, self._peer = self._peer, None
        super().connection_lost(None)
        return _nothing if peer is None else functools.partial(self._admission.ended, peer)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer an invalid request; for other errors the response has already begun."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        response = self._refuse(_problem_of_head(status, exc))
        response.headers["Server"] = "eventbus"  # signals of the application do not run for it
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; an error raised before any handler (417) as a problem."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = self._refuse(problem_of(resp))
        resp, is_lost = await super().finish_response(request, resp, start_time)
        if not is_lost:
            await self._settle(request.content, resp)
        return resp, is_lost

    async def _settle(self, body: StreamReader, resp: web.StreamResponse) -> None:
        """Drop the unread rest of a body, or end the socket in such a way that it is not reset.

        aiohttp would read the rest for 10 s, however much comes, and then close.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        is_read = body.is_eof() or (bool(resp.keep_alive) and await _drop(body))
        if is_read and resp.keep_alive:
            return
        is_expected = is_read and resp.status < HTTPStatus.BAD_REQUEST and not self._payload_parser
        if self.transport is None or (is_expected and not transport.can_write_eof()):
            return  # the client has left or is done sending: aiohttp closes TLS at once
        ended, sockets = self._leave(), self._sockets

        def end(linger: Linger) -> None:
            sockets.remove_socket(linger)
            ended()

        sockets.add_socket(Linger(transport, sockets.turns, end, sockets.note_surplus))

    def _refuse(self, problem: Problem) -> web.Response:
        self._on_refusal(problem.code)
        return respond(problem)


async def _drop(body: StreamReader) -> bool:
    """Read the rest of a body; False if it is too long, too slow or malformed."""
    room = MAX_SURPLUS
    try:
        async with asyncio.timeout(LINGER_S):
            while room > 0 and not body.is_eof():
                room -= len(await body.readany())
    except (TimeoutError, web.RequestPayloadError, ConnectionError):
        return False
    return body.is_eof()


def detach(request: web.Request) -> Detached:
    """Take the socket of a request; its handler then returns a response that writes nothing."""
    protocol = request.protocol
    assert isinstance(protocol, _RequestHandler), "the application must run in a Runner"
    return protocol.detach()


def give_input(request: web.Request, reader: Any) -> None:
    """Pass what the client sends behind a request to a reader with `feed_data` and `feed_eof`.

    `feed_data(data)` returns False and b"". `feed_eof()` is called when the client has ended its
    side, or the socket has. Requests that the client has sent behind this one are dropped.
    """
    protocol = request.protocol
    assert isinstance(protocol, _RequestHandler), "the application must run in a Runner"
    protocol.give_input(reader)


class _Received:
    """A parser that keeps what it is fed."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing follows."""


def _waits_to_send_too_much(request: web.BaseRequest) -> bool:
    """Whether a client waits to be asked for a body that would be refused (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return False
    return (request.content_length or 0) > request.client_max_size


def _nothing() -> None:
    """The socket was not counted."""


def _pieces(data: bytes) -> list[bytes]:
    """The data, cut after the ends of heads; the end of a head is an empty line."""
    pieces: list[bytes] = []
    start = 0
    # A single character is found ten times faster, and most bodies do not have it.
    while len(pieces) < _MAX_HEADS and (found := data.find(b"\r", start)) >= 0:
        end = data.find(_END_OF_HEAD, found) + len(_END_OF_HEAD)
        if end < len(_END_OF_HEAD):
            break
        pieces.append(data[start:end])
        start = end
    if start == 0:
        return [data]
    return [*pieces, data[start:]] if start < len(data) else pieces


def _problem_of_head(status: int, exc: BaseException | None) -> Problem:
    """What is wrong with a request that cannot be parsed."""
    if isinstance(exc, LineTooLong):
        if exc.args[1] == MAX_TARGET_BYTES:
            text = f"the request's target is longer than {MAX_TARGET_BYTES} bytes"
            return Problem("bad_request", text, status=HTTPStatus.REQUEST_URI_TOO_LONG)
        text = f"a header line is longer than {MAX_HEADER_BYTES} bytes"
        return Problem("bad_request", text, status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if isinstance(exc, BadHttpMessage) and exc.message.startswith(_TOO_MANY_HEADERS):
        text = f"the request has more than {MAX_HEADERS} header lines"
        return Problem("bad_request", text, status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return Problem("bad_request", _what_is_wrong(exc), status=status)


def _what_is_wrong(exc: BaseException | None) -> str:
    """The kind of fault, without the client's data: aiohttp puts it after a colon, or alone."""
    if isinstance(exc, InvalidURLError):
        return "this is not a valid HTTP request: its URL is invalid"
    kind = exc.message.partition(":")[0].strip() if isinstance(exc, HttpProcessingError) else ""
    return (
        f"this is not a valid HTTP request: {kind}"
        if _KIND.fullmatch(kind)
        else "this is not a valid HTTP request"
    )


def _is_the_nodes_fault(record: logging.LogRecord) -> bool:
    """False for invalid requests: they are the client's fault, and aiohttp quotes their data."""
    cause = record.exc_info[1] if record.exc_info else None
    return not isinstance(cause, HttpProcessingError | web.RequestPayloadError)
