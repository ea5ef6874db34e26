"""Trace spans for requests to the API, and for the handshakes of connections."""

import contextlib
from collections.abc import Iterator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from eventbus import tracing
from eventbus_edge.problem import Problem

__all__ = ["handshake", "traces"]


_TRACED: Final = "/api/"


@web.middleware
async def traces(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A span for each request to the API; must be outside the middleware for problems."""
    route = _route(request)
    if not route.startswith(_TRACED):
        return await handler(request)
    with tracing.serving(request.method, route, request.headers) as answered:
        response = await handler(request)
        answered(response.status)
        return response


@contextlib.contextmanager
def handshake(request: web.Request) -> Iterator[None]:
    """A span for the handshake of a connection; records the status of a refusal."""
    with tracing.serving(request.method, _route(request), request.headers) as answered:
        try:
            yield
        except Problem as problem:
            answered(problem.status)
            raise


def _route(request: web.Request) -> str:
    """The template of the route, without the values of a request."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""
