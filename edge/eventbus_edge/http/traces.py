"""Spans of what is asked of a node: its API, and the handshakes of connections."""

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
    """A span for each request to the API. It stands outside of what answers problems."""
    route = _route(request)
    if not route.startswith(_TRACED):
        return await handler(request)
    with tracing.serving(request.method, route, request.headers) as answered:
        response = await handler(request)
        answered(response.status)
        return response


@contextlib.contextmanager
def handshake(request: web.Request) -> Iterator[None]:
    """A span for what a connection must pass before it stands; with the status of a refusal."""
    with tracing.serving(request.method, _route(request), request.headers) as answered:
        try:
            yield
        except Problem as problem:
            answered(problem.status)
            raise


def _route(request: web.Request) -> str:
    """The route's form, without what a request puts into it."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""
