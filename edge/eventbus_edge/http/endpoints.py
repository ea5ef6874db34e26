"""Health, readiness and metrics endpoints, and the middlewares of all requests."""

import errno
import hmac
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from eventbus.user_code import guarded
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
)
from eventbus_edge.keys import (
    NODE,
    WORKERS_METRICS,
)
from eventbus_edge.metrics.metrics import CONTENT_TYPE_LATEST
from eventbus_edge.problem import (
    PROBLEM_JSON,
    Problem,
    bad_token,
)

__all__ = [
    "KNOWN",
    "cors_headers",
    "healthz",
    "metrics",
    "problem_of",
    "problems",
    "rate_limited",
    "readyz",
    "require_admin",
    "respond",
]


_log = logging.getLogger(__name__)

_CODES: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large",
}
KNOWN: Final = web.RequestKey("KNOWN", bool)
"""Set on requests of clients that may use the HTTP API: they are not rate-limited."""
_PROBES: Final = frozenset({"/healthz", "/readyz"})
_DOTS_OF_A_JWT: Final = 2
_NOT_STORED: Final = (
    "the bus does not store messages: its disk may be full, or a limit reached; see the log of "
    "this node"
)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what a handler raises as problem JSON (RFC 9457)."""
    try:
        with guarded():
            return await handler(request)
    except Problem as exc:
        problem = exc
    except web.HTTPException as exc:
        if exc.status < HTTPStatus.BAD_REQUEST:
            raise
        problem = problem_of(exc)
    except Exception as exc:
        # A response that has begun, such as an upgrade, cannot be replaced by a problem.
        if request.writer.output_size:
            raise
        if isinstance(exc, OSError) and exc.errno == errno.ENAMETOOLONG:  # below /static
            problem = Problem("not_found", "the name is too long for a file")
        else:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "a request"
            _log.exception("%s %s failed", request.method, route)
            problem = Problem("internal", "an internal error: see the log of the node")
    request.app[NODE].metrics.refusals.labels(problem.code).inc()
    response = respond(problem)
    if problem.code == "rate_limited":
        response.force_close()  # otherwise the next request would cost as much
    return response


@web.middleware
async def rate_limited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Rate-limit the requests of each address; one with a wrong token or key counts twice.

    Probes are counted separately, so that a flood does not make the node look dead.
    """
    admission = request.app[NODE].access.admission
    kind = "probe " if request.path in _PROBES else ""
    try:
        key = admission.request(request.remote, request.headers, kind)
    except Problem as exc:
        if request.path == "/sse":
            exc.headers.update(cors_headers(request))
        raise
    try:
        response = await handler(request)
    except Problem as exc:
        if exc.status == HTTPStatus.UNAUTHORIZED:
            admission.charge_requests(key, 1.0)
        raise
    if request.get(KNOWN, False):
        admission.charge_requests(key, -1.0)
    return response


def cors_headers(request: web.Request) -> dict[str, str]:
    """Headers that let pages of allowed origins read a response, including errors."""
    origin = request.headers.get("Origin")
    headers = {"Vary": "Origin"}
    if origin and request.app[NODE].access.origins.allows(origin, request.host):
        headers["Access-Control-Allow-Origin"] = origin
    return headers


def problem_of(exc: web.HTTPException) -> Problem:
    """An error raised by aiohttp as a problem."""
    code = _CODES.get(exc.status, "bad_request")
    allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else {}
    return Problem(code, exc.reason, status=exc.status, headers=allow)


def respond(problem: Problem) -> web.Response:
    """The response for a problem."""
    return web.Response(
        body=problem.body(),
        status=problem.status,
        headers=problem.headers,
        content_type=PROBLEM_JSON,
    )


async def healthz(request: web.Request) -> web.Response:
    """The process is alive."""
    return _json({"status": "alive", "node": request.app[NODE].id})


async def readyz(request: web.Request) -> web.Response:
    """The node can serve: 503 while it drains or has no bus.

    It is degraded, with a reason, while the bus does not store messages. Then all nodes are, and
    clients still get volatile messages, histories and presence.
    """
    node = request.app[NODE]
    node.require_ready()
    body: dict[str, object] = {
        "status": "degraded" if node.bus_health.fault else "ready",
        "node": node.id,
        "connections": len(node.connections),
    }
    if node.bus_health.fault:
        body["reason"] = _NOT_STORED  # the fault itself names the broker, which is not public
    return _json(body)


async def metrics(request: web.Request) -> web.Response:
    """The metrics for Prometheus; a worker answers for all workers of its supervisor."""
    node = request.app[NODE]
    if not node.settings.metrics_open:
        await require_admin(request)
        request[KNOWN] = True
    workers = request.app.get(WORKERS_METRICS)
    body = node.metrics.exposition() if workers is None else await workers.exposition()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def require_admin(request: web.Request) -> Claims | None:
    """Require the API key, or a token with the role or permission admin. Raises Problem.

    If no key is configured, some clients need none; see `Hosts.why_a_key_is_needed`. Returns the
    claims of the token, None for clients without one.
    """
    node = request.app[NODE]
    key = node.settings.api_key
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip()
    if not key or scheme.lower() != "bearer" or given.count(".") != _DOTS_OF_A_JWT or given == key:
        _require_key(request, key)
        return None
    try:
        claims = await node.access.authenticator.verify(given)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None
    if not claims.is_admin:
        raise Problem("forbidden", "the token has neither the role nor the permission admin")
    return claims


def _require_key(request: web.Request, key: str) -> None:
    if not key:
        why = request.app[NODE].access.hosts.why_a_key_is_needed(
            request.remote, request.version, request.raw_path, request.headers
        )
        if why:
            raise Problem(
                "forbidden",
                "no BROADCAST_API_KEY is configured, so only clients on this machine have access; "
                f"this request is refused: {why}",
            )
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), key.encode())
    if scheme.lower() != "bearer" or not right:
        message = "the header Authorization: Bearer <BROADCAST_API_KEY> is required"
        raise Problem("unauthorized", message)


def _json(body: Mapping[str, object]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
