"""`/api/asyncapi.json` and `/api/docs`: the contract for programs, and as a page for people."""

import msgspec
from aiohttp import web

from edge.api import let_in
from edge.contract import ContractDocument
from edge.problem import Problem
from edge.static_files import page

__all__ = ["add_docs"]


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

    async def docs(_: web.Request) -> web.FileResponse:
        return page("docs.html")

    app.router.add_get("/api/asyncapi.json", asyncapi)
    app.router.add_get("/api/docs", docs)
