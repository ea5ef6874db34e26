"""What all requests pass: traces, errors as problems, rate limits, and other origins."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler

from eventbus.user_code import guarded
from eventbus_edge.access import Admission
from eventbus_edge.http.front import OPENERS
from eventbus_edge.http.routing import answer_options, share
from eventbus_edge.http.traces import trace_requests
from eventbus_edge.keys import NODE
from eventbus_edge.problem import PROBLEM_JSON, Problem, internal_error

__all__ = [
    "KNOWN_MIDDLEWARES",
    "REFUND",
    "REFUSERS",
    "add_middleware",
    "counted",
    "problem_of",
    "respond",
]


_log = logging.getLogger(__name__)

Refuser: TypeAlias = Callable[[web.Request, Problem], Awaitable[web.StreamResponse]]

_CODES: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large",
}
REFUND: Final = web.RequestKey("REFUND", float)
"""The part of a request's price, which is 1, that its address gets back.

All of it for clients that may use the HTTP API: they are not rate-limited.
"""
REFUSERS: Final[web.AppKey[dict[Any, Refuser]]] = web.AppKey("REFUSERS", dict)
"""How handlers answer a Problem in their own way, wherever it was raised.

A protocol may have its errors within the socket, for instance. A refuser that cannot do so raises
a Problem.
"""
KNOWN_MIDDLEWARES: Final[web.AppKey[tuple[Any, ...]]] = web.AppKey("KNOWN_MIDDLEWARES", tuple)
"""The middlewares whose work the opener of a WebSocket does itself."""
_PROBES: Final = frozenset({"/healthz", "/readyz"})


def add_middleware(app: web.Application) -> None:
    """Add what all requests pass, outermost first."""
    app[REFUSERS] = {}
    app[OPENERS] = {}
    app.middlewares.extend([trace_requests, _problems, _refusals, _rate_limited, answer_options])
    app[KNOWN_MIDDLEWARES] = tuple(app.middlewares)
    app.on_response_prepare.append(share)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer exceptions of handlers as problem JSON (RFC 9457)."""
    try:
        with guarded():
            return await handler(request)
    except Problem as exc:
        problem = exc.forget_origin()
    except web.HTTPException as exc:
        if exc.status < HTTPStatus.BAD_REQUEST:
            raise
        problem = problem_of(exc)
    except Exception:
        # A response that has begun, such as an upgrade, cannot be replaced by a problem.
        if request.writer.output_size:
            raise
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "a request"
        _log.exception("%s %s failed", request.method, route)
        problem = internal_error()
    request.app[NODE].metrics.refusals.labels(problem.code).inc()
    return respond(problem)


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a handler that is among REFUSERS answer the problems of its requests itself."""
    try:
        return await handler(request)
    except Problem as problem:
        refuse = request.app[REFUSERS].get(request.match_info.handler)
        if refuse is None:
            raise
        return await refuse(request, problem)


@web.middleware
async def _rate_limited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Rate-limit the requests of each address; one with a wrong token or key counts twice.

    Probes are counted separately, so that a flood does not make the node look dead.
    """
    admission = request.app[NODE].access.admission
    kind = "probe " if request.path in _PROBES else ""
    with counted(admission, request.remote, request.headers, kind) as key:
        response = await handler(request)
    if refund := request.get(REFUND, 0.0):
        admission.charge_requests(key, -refund)
    return response


class counted:  # noqa: N801 - reads as contextlib's managers do, and costs less
    """`with counted(…) as key:` around a request that is rate-limited. Raises Problem."""

    __slots__ = ("_admission", "_key")

    def __init__(
        self,
        admission: Admission,
        remote: str | None,
        headers: Mapping[str, str],
        kind: str = "",
    ) -> None:
        """See `Admission.request`."""
        self._admission = admission
        self._key = admission.request(remote, headers, kind)

    def __enter__(self) -> str:
        return self._key

    def __exit__(self, _: object, exc: BaseException | None, _traceback: object) -> None:
        if isinstance(exc, Problem) and exc.status == HTTPStatus.UNAUTHORIZED:
            self._admission.charge_requests(self._key, 1.0)


def problem_of(exc: web.HTTPException) -> Problem:
    """An error raised by aiohttp as a problem."""
    code = _CODES.get(exc.status, "bad_request")
    allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else {}
    return Problem(code, exc.reason, status=exc.status, headers=allow)


def respond(problem: Problem) -> web.Response:
    """The response for a problem."""
    response = web.Response(
        body=problem.body(),
        status=problem.status,
        headers=problem.headers,
        content_type=PROBLEM_JSON,
    )
    if problem.code == "rate_limited":
        response.force_close()  # otherwise the next request would cost as much
    elif problem.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()  # the rest of the body may never come (RFC 9110, 15.5.9)
    return response
