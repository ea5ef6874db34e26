"""`/api/asyncapi.json` and `/api/docs`: the contract for programs, and as a page for people."""

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from edge.api import let_in
from edge.contract import ContractDocument
from edge.problem import Problem

__all__ = ["add_docs"]

_PAGE: Final = Path(__file__).parent / "static" / "docs.html"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_docs(app: web.Application, contract: ContractDocument) -> None:
    """Add the routes of the contract."""

    async def asyncapi(request: web.Request) -> web.Response:
        await let_in(request)
        document = contract.document_for(request.scheme, request.host)
        if document is None:
            raise Problem(
                "not_found",
                "this node knows no events: set BROADCAST_CONTRACT, or define event types in "
                "EDGE_APP",
            )
        return web.Response(
            body=msgspec.json.encode(document),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def page(_: web.Request) -> web.FileResponse:
        # It holds no secret: what it shows, it asks for with the reader's own key.
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return web.FileResponse(_PAGE, headers=headers)

    app.router.add_get("/api/asyncapi.json", asyncapi)
    app.router.add_get("/api/docs", page)
