"""`/static`: the browser client, and what the edge's own pages are made of."""

from pathlib import Path
from typing import Final

from aiohttp import web

__all__ = ["STATIC", "add_static", "page"]

STATIC: Final = Path(__file__).parent / "static"
_HEADERS: Final = {
    # A page imports the client from the edge, whatever origin it has itself; nothing here is
    # secret, and no cookie is looked at (fetch.spec.whatwg.org, 3.3.5).
    "Access-Control-Allow-Origin": "*",
    # Asked for again by its ETag: a page and its scripts are of one version.
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_static(app: web.Application) -> None:
    """Add the route of the static files."""
    app.router.add_static("/static", STATIC)
    app.on_response_prepare.append(_describe)


def page(name: str) -> web.FileResponse:
    """One of the edge's own pages, under a policy by which it uses nothing of other origins.

    A page holds no secret: what it shows, it asks for with the reader's own key.
    """
    return web.FileResponse(STATIC / name, headers=_PAGE_HEADERS)


async def _describe(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith("/static/"):
        response.headers.update(_HEADERS)
