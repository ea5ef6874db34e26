"""`/static`: the browser client, and what the edge's own pages are made of."""

from pathlib import Path
from typing import Final

from aiohttp import web

__all__ = ["STATIC", "add_static"]

STATIC: Final = Path(__file__).parent / "static"
_HEADERS: Final = {
    # A page imports the client from the edge, whatever origin it has itself; nothing here is
    # secret, and no cookie is looked at (fetch.spec.whatwg.org, 3.3.5).
    "Access-Control-Allow-Origin": "*",
    # Asked for again by its ETag: a page and its scripts are of one version.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def add_static(app: web.Application) -> None:
    """Add the route of the static files."""
    app.router.add_static("/static", STATIC)
    app.on_response_prepare.append(_describe)


async def _describe(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith("/static/"):
        response.headers.update(_HEADERS)
