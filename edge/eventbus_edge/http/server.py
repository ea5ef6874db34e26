"""The HTTP server beneath the application: its own errors are problem JSON, too.

A request that cannot be parsed, or has an unknown Expect header, never reaches a handler. aiohttp
would answer it in plain text, with its version and with the client's data, and would log that data,
which may contain a token.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import (
    Any,
    Final,
    cast,
)

from aiohttp import web
from aiohttp.http_exceptions import (
    HttpProcessingError,
    InvalidURLError,
)

from eventbus_edge.access.admission import Admission
from eventbus_edge.http.endpoints import (
    problem_of,
    respond,
)
from eventbus_edge.http.frame_gate import FrameGate
from eventbus_edge.keys import NODE
from eventbus_edge.problem import Problem

__all__ = ["Runner", "put_gate"]


MAX_HEADERS: Final = 64
"""Header lines of a request; each line, including the request line, has at most 8 KiB."""
_SHUTDOWN_S: Final = 5.0
"""How long requests other than WebSockets may take to finish once the node has drained."""
_KIND: Final = re.compile(r"[A-Za-z0-9' .-]{4,60}", re.ASCII)


class Runner(web.AppRunner):
    """Runs the application, without log lines that could contain a URL."""

    def __init__(self, app: web.Application, request_timeout: float) -> None:
        """A connection that is idle for `request_timeout` seconds between requests is closed.

        So is one that does not send the complete head of a request in that time, since aiohttp's
        keep-alive time starts with the connection.
        """
        log = logging.getLogger("eventbus_edge.http.server")
        log.addFilter(_is_the_nodes_fault)
        self._options: dict[str, Any] = {
            "access_log": None,
            "logger": log,
            "keepalive_timeout": request_timeout,
            "max_headers": MAX_HEADERS,
            "auto_decompress": False,  # a small body could become a large one
        }
        super().__init__(app, shutdown_timeout=_SHUTDOWN_S, **self._options)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        node = self.app[NODE]
        refusals = node.metrics.refusals
        return _Server(
            made.request_handler,
            made.request_factory,
            self._options,
            lambda code: refusals.labels(code).inc(),
            node.access.admission,
        )


class _Server(web.Server):
    def __init__(
        self,
        handler: Any,
        request_factory: Any,
        options: dict[str, Any],
        on_refusal: Callable[[str], None],
        admission: Admission,
    ) -> None:
        super().__init__(handler, request_factory=request_factory, **options)
        self.on_refusal = on_refusal
        self.admission = admission
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return _RequestHandler(self, loop=asyncio.get_running_loop(), **self._options)


class _RequestHandler(web.RequestHandler):
    """One HTTP connection."""

    __slots__ = ("_admission", "_gate", "_is_held", "_on_refusal", "_peer")

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._on_refusal = server.on_refusal
        self._admission = server.admission
        self._peer: str | None = None
        """The address that the socket was counted for; None if it was not."""
        self._is_held = False
        self._gate: FrameGate | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a socket, unless its address has too many, idle ones included."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if not isinstance(peer, tuple):  # a Unix socket has none
            return
        if self._admission.opened(peer[0]):
            self._peer = peer[0]
        else:
            cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket has ended."""
        if self._peer is not None:
            self._admission.ended(self._peer)
            self._peer = None
        super().connection_lost(exc)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Set a parser; that of a WebSocket is fed by the connection's gate."""
        if self._gate is not None:
            self._gate.feeds(parser)
            parser = self._gate
        super().set_parser(parser, data_received_cb)

    def put_gate(self, *, deflates: bool) -> FrameGate:
        """Put a gate before the WebSocket reader that this connection is about to get."""
        call_soon = asyncio.get_running_loop().call_soon
        self._gate = FrameGate(self, call_soon, deflates=deflates)
        return self._gate

    def hold(self) -> None:
        """Pause reading from the socket until `release`, even if aiohttp resumes it."""
        self._is_held = True
        self._pause_transport_reading()

    def release(self) -> None:
        """Resume reading, unless aiohttp's buffers are full."""
        self._is_held = False
        if not self._reading_paused:
            self._resume_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume reading, now that aiohttp's buffers have room, unless it is on hold."""
        super().resume_reading(resume_parser)
        if self._is_held:
            self._pause_transport_reading()

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
        response = self._refuse(Problem("bad_request", _what_is_wrong(exc), status=status))
        response.headers["Server"] = "eventbus"  # signals of the application do not run for it
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; an error raised before any handler (417) as a problem."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = self._refuse(problem_of(resp))
        return await super().finish_response(request, resp, start_time)

    def _refuse(self, problem: Problem) -> web.Response:
        self._on_refusal(problem.code)
        return respond(problem)


def put_gate(request: web.Request, *, deflates: bool) -> FrameGate:
    """Put a gate before the WebSocket reader of a request that is about to be upgraded."""
    protocol = request.protocol
    assert isinstance(protocol, _RequestHandler), "the application must run in a Runner"
    return protocol.put_gate(deflates=deflates)


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
