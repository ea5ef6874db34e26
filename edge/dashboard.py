"""`/dashboard`: the cluster as a live page, and the ticket by which the page listens."""

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from edge.api import let_in
from edge.keys import NODE

__all__ = ["add_dashboard"]

_PAGE: Final = Path(__file__).parent / "static" / "dashboard.html"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_dashboard(app: web.Application) -> None:
    """Add the dashboard's routes."""
    app.router.add_get("/dashboard", _page)
    app.router.add_post("/dashboard/ticket", _ticket)


async def _page(_: web.Request) -> web.FileResponse:
    # It holds no secret: what it shows, it asks for with the reader's own key.
    headers = {
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return web.FileResponse(_PAGE, headers=headers)


async def _ticket(request: web.Request) -> web.Response:
    """A token of some minutes for who may use the HTTP API, to listen with."""
    bearer = await let_in(request)
    ticket = request.app[NODE].tickets.issue(bearer)
    return web.Response(
        body=msgspec.json.encode({"token": ticket}),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
