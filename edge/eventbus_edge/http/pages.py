"""Web pages: landing page, dashboard, the documentation of the contract, and static files.

Their links are relative, so that they work behind a proxy that adds a path prefix.
"""

import functools
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from eventbus_edge.http.api import require_access
from eventbus_edge.http.contract import ContractDocument
from eventbus_edge.http.files import (
    File,
    answer_file,
    read_files,
)
from eventbus_edge.keys import NODE
from eventbus_edge.problem import Problem

__all__ = ["STATIC", "add_pages", "page"]

STATIC: Final = Path(__file__).parents[1] / "static"
_STATIC_PATH: Final = "/static/"
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


@functools.cache
def _files() -> dict[str, File]:
    return read_files(STATIC)


def page(name: str) -> Handler:
    """The handler of one of the edge's own pages, whose policy allows no other origins.

    A page contains no secrets: it fetches what it shows with the reader's own key.
    """
    file = _files()[name]

    async def answer(request: web.Request) -> web.StreamResponse:
        return answer_file(request, file, _PAGE_HEADERS)

    return answer


def add_pages(app: web.Application, contract: ContractDocument) -> None:
    """Add the routes of all pages, of the contract, and of the static files."""

    async def static(request: web.Request) -> web.StreamResponse:
        file = _files().get(request.match_info["name"])
        if file is None:
            raise Problem("not_found", "there is no file of this name")
        return answer_file(request, file, _HEADERS)

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

    app.router.add_get("/", page("index.html"))
    app.router.add_get("/dashboard", page("dashboard.html"))
    app.router.add_post("/dashboard/ticket", _ticket)
    app.router.add_get("/api/docs", page("docs.html"))
    app.router.add_get("/api/asyncapi.json", asyncapi)
    app.router.add_get(_STATIC_PATH + "{name:.+}", static)
    app.on_response_prepare.append(_open_static_files)


async def _ticket(request: web.Request) -> web.Response:
    """A short-lived token with which a client of the HTTP API can subscribe."""
    bearer = await require_access(request)
    ticket = request.app[NODE].access.authenticator.tickets.issue(bearer)
    return web.Response(
        body=msgspec.json.encode({"token": ticket}),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


async def _open_static_files(request: web.Request, response: web.StreamResponse) -> None:
    """Let pages of other origins read the errors of static files, too."""
    if request.path.startswith(_STATIC_PATH):
        response.headers.update(_HEADERS)
