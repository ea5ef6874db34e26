"""Trace spans for requests to the API; handshakes have theirs in `transports.handshake`."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from eventbus import tracing

__all__ = ["route_of", "trace_requests"]


_TRACED: Final = "/api/"


@web.middleware
async def trace_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A span for each request to the API; must be outside the middleware for problems."""
    route = route_of(request)
    if not route.startswith(_TRACED):
        return await handler(request)
    with tracing.serving(request.method, route, request.headers) as answered:
        response = await handler(request)
        answered(response.status)
        return response


def route_of(request: web.Request) -> str:
    """The template of the route, without the values of a request."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""
