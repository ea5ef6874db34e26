"""Web pages: the dashboard, the documentation of the contract, and static files."""

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from eventbus_edge.http.api import require_access
from eventbus_edge.http.contract import ContractDocument
from eventbus_edge.keys import NODE
from eventbus_edge.problem import Problem

__all__ = ["STATIC", "add_dashboard", "add_docs", "add_static", "page"]


def add_dashboard(app: web.Application) -> None:
    """Add the dashboard's routes."""
    app.router.add_get("/dashboard", _page)
    app.router.add_post("/dashboard/ticket", _ticket)


async def _page(_: web.Request) -> web.FileResponse:
    return page("dashboard.html")


async def _ticket(request: web.Request) -> web.Response:
    """A short-lived token with which a client of the HTTP API can subscribe."""
    bearer = await require_access(request)
    ticket = request.app[NODE].access.authenticator.tickets.issue(bearer)
    return web.Response(
        body=msgspec.json.encode({"token": ticket}),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def add_docs(app: web.Application, contract: ContractDocument) -> None:
    """Add the routes of the contract and its documentation."""

    async def asyncapi(request: web.Request) -> web.Response:
        await require_access(request)
        document = contract.document_for(request.scheme, request.host)
        if document is None:
            raise Problem(
                "not_found",
                "this node has no contract: set BROADCAST_CONTRACT, or define event types in "
                "EDGE_APP",
            )
        return web.Response(
            body=msgspec.json.encode(document),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def docs(_: web.Request) -> web.FileResponse:
        return page("docs.html")

    app.router.add_get("/api/asyncapi.json", asyncapi)
    app.router.add_get("/api/docs", docs)


STATIC: Final = Path(__file__).parents[1] / "static"
_HEADERS: Final = {
    # Pages of any origin may import the client from the edge; the files are not secret, and no
    # cookie is read (fetch.spec.whatwg.org, 3.3.5).
    "Access-Control-Allow-Origin": "*",
    # Browsers revalidate by ETag, so that a page and its scripts are of the same version.
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
    """One of the edge's own pages, with a policy that allows nothing from other origins.

    A page contains no secrets: it fetches what it shows with the reader's own key.
    """
    return web.FileResponse(STATIC / name, headers=_PAGE_HEADERS)


async def _describe(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith("/static/"):
        response.headers.update(_HEADERS)
