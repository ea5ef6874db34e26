"""What all routes have in common: OPTIONS, pages of other origins, and answers to wrong requests.

See RFC 9110 §9.3.7 for OPTIONS, and https://fetch.spec.whatwg.org, 3.3, for pages of other origins.
"""

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from eventbus_edge.keys import NODE, node_of
from eventbus_edge.problem import Problem

__all__ = ["answer_options", "share"]

_SHARED: Final = ("/api/", "/broadcasting/", "/sse", "/healthz", "/readyz")
"""Paths whose answers pages of allowed origins may read. /static/ is open to all of them."""
_WEBSOCKETS: Final = "/ws"
_REQUEST_HEADERS: Final = (
    "Authorization, Cache-Control, Content-Type, Idempotency-Key, Last-Event-ID, traceparent, "
    "tracestate, X-CSRF-TOKEN, X-Requested-With, X-Socket-ID"
)
_MAX_AGE_S: Final = 600


@web.middleware
async def answer_options(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer OPTIONS for every route; answer requests that no route serves with what is served."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as exc:
        exc.with_traceback(None)  # its frames refer to the route, which keeps it
        allowed = ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))
        if request.method == "OPTIONS":
            return _answer_options(request, allowed)
        raise Problem(
            "method_not_allowed",
            f"this path does not serve {request.method}; allowed: {allowed}",
            headers={"Allow": allowed},
        ) from None
    except web.HTTPNotFound as exc:
        exc.with_traceback(None)
        is_disabled = not request.app[NODE].settings.websocket_enabled
        code = "websocket_disabled" if is_disabled and _is_websocket(request) else "not_found"
        raise Problem(code, _what_is_served(request)) from None


def _answer_options(request: web.Request, allowed: str) -> web.Response:
    headers = {"Allow": allowed}
    is_preflight = "Origin" in request.headers and (
        "Access-Control-Request-Method" in request.headers
    )
    if is_preflight and _is_shared(request):
        origins = node_of(request.app, request.path).access.origins
        origins.require(request.headers["Origin"], request.host)
        headers |= {
            "Access-Control-Allow-Methods": allowed,
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": str(_MAX_AGE_S),
        }
    return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)


def _what_is_served(request: web.Request) -> str:
    served = "Server-Sent Events are served at /sse, the HTTP API below /api/; see also /"
    if not request.app[NODE].settings.websocket_enabled:
        return (
            "nothing is served at this path, and this node accepts no WebSockets "
            f"(BROADCAST_WEBSOCKET_ENABLED); {served}"
        )
    return (
        "nothing is served at this path: WebSockets connect to /ws or /ws/<channel>; "
        f"{served}. Behind a proxy with a path prefix, the proxy must remove the prefix"
    )


async def share(request: web.Request, response: web.StreamResponse) -> None:
    """Let pages of allowed origins read a response, including errors and streams.

    Pages of all origins may read why they cannot open a WebSocket: that their origin is not
    allowed, or that nothing is served at this path. Browsers hide the answer to the handshake, so
    they ask again without an upgrade, which is always refused. The answer to a handshake, which may
    not have been read by aiohttp, does not have the header.
    """
    if not _is_shared(request):
        is_unknown = isinstance(request.match_info.http_exception, web.HTTPNotFound)
        if is_unknown or (_is_websocket(request) and hdrs.UPGRADE not in request.headers):
            response.headers["Access-Control-Allow-Origin"] = "*"
        return
    response.headers["Vary"] = "Origin"
    origin = request.headers.get("Origin")
    origins = node_of(request.app, request.path).access.origins
    if origin and origins.allows(origin, request.host):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "Allow, Retry-After"


def _is_shared(request: web.Request) -> bool:
    return request.path.startswith(_SHARED)


def _is_websocket(request: web.Request) -> bool:
    return request.path == _WEBSOCKETS or request.path.startswith(f"{_WEBSOCKETS}/")
