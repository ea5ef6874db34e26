"""`/dashboard`: the cluster as a live page, and the ticket by which the page listens."""

import msgspec
from aiohttp import web

from edge.api import let_in
from edge.keys import NODE
from edge.static_files import page

__all__ = ["add_dashboard"]


def add_dashboard(app: web.Application) -> None:
    """Add the dashboard's routes."""
    app.router.add_get("/dashboard", _page)
    app.router.add_post("/dashboard/ticket", _ticket)


async def _page(_: web.Request) -> web.FileResponse:
    return page("dashboard.html")


async def _ticket(request: web.Request) -> web.Response:
    """A token of some minutes for who may use the HTTP API, to listen with."""
    bearer = await let_in(request)
    ticket = request.app[NODE].tickets.issue(bearer)
    return web.Response(
        body=msgspec.json.encode({"token": ticket}),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
