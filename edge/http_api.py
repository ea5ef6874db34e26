"""HTTP beside the sockets: is the node alive, is it fit to serve, what has it counted."""

import errno
import hmac
import ipaddress
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from edge.auth import Claims, TokenRejected
from edge.keys import NODE, WORKERS_METRICS
from edge.metrics import CONTENT_TYPE_LATEST
from edge.problem import PROBLEM_JSON, Problem, bad_token

__all__ = [
    "healthz",
    "metrics",
    "problem_of",
    "problems",
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
_DOTS_OF_A_JWT: Final = 2
_NOT_STORED: Final = (
    "the bus does not store what it gets: its disk may be full, or a limit reached; the log "
    "of this node says more"
)
_PROXIED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what a handler raises as problem JSON (RFC 9457)."""
    try:
        return await handler(request)
    except Problem as exc:
        problem = exc
    except web.HTTPException as exc:
        if exc.status < HTTPStatus.BAD_REQUEST:
            raise
        problem = problem_of(exc)
    except Exception as exc:
        # What has begun to be answered, such as an upgrade, cannot become a problem.
        if request.writer.output_size:
            raise
        if isinstance(exc, OSError) and exc.errno == errno.ENAMETOOLONG:  # below /static
            problem = Problem("not_found", "no file can have such a name")
        else:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "a request"
            _log.exception("%s %s failed", request.method, route)
            problem = Problem("internal", "an internal error: the log of the node tells more")
    request.app[NODE].metrics.refusals.labels(problem.code).inc()
    return respond(problem)


def problem_of(exc: web.HTTPException) -> Problem:
    """An error that aiohttp has raised, as a problem."""
    code = _CODES.get(exc.status, "bad_request")
    allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else {}
    return Problem(code, exc.reason, status=exc.status, headers=allow)


def respond(problem: Problem) -> web.Response:
    """The answer that a problem is."""
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

    It is degraded, and says why, while the bus stores nothing that is published: all nodes are
    then, and clients still get what is not stored, histories and presence.
    """
    node = request.app[NODE]
    node.require_ready()
    body: dict[str, object] = {
        "status": "degraded" if node.bus_fault else "ready",
        "node": node.id,
        "connections": len(node.connections),
    }
    if node.bus_fault:
        body["reason"] = _NOT_STORED  # the fault names the broker, which is not for everybody
    return _json(body)


async def metrics(request: web.Request) -> web.Response:
    """What the node has counted, for Prometheus; a worker answers for all of its supervisor."""
    node = request.app[NODE]
    if not node.settings.metrics_open:
        await require_admin(request)
    workers = request.app.get(WORKERS_METRICS)
    body = node.metrics.exposition() if workers is None else await workers.exposition()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def require_admin(request: web.Request) -> Claims | None:
    """Let only those in who know the API key, or whose token has the role or permission admin.

    Without a key configured, loopback clients only. Gives what the token says, None for the others.
    Raises Problem.
    """
    node = request.app[NODE]
    key = node.settings.api_key
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip()
    if not key or scheme.lower() != "bearer" or given.count(".") != _DOTS_OF_A_JWT or given == key:
        require_key(request, key)
        return None
    try:
        claims = await node.verify(given)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None
    if not claims.is_admin:
        raise Problem("forbidden", "the token has neither the role nor the permission admin")
    return claims


def require_key(request: web.Request, key: str) -> None:
    """Let only those in who know the API key; without one configured, only loopback clients.

    Raises Problem.
    """
    if not key:
        # A proxy on this host makes everybody's address a loopback one.
        if not _is_loopback(request.remote) or any(name in request.headers for name in _PROXIED):
            message = "no BROADCAST_API_KEY is configured: loopback clients only"
            raise Problem("forbidden", message)
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), key.encode())
    if scheme.lower() != "bearer" or not right:
        message = "the header Authorization: Bearer <BROADCAST_API_KEY> is needed"
        raise Problem("unauthorized", message)


def _is_loopback(address: str | None) -> bool:
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def _json(body: Mapping[str, object]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
