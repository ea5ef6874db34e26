"""Health, readiness and metrics endpoints, and who may use those of operators."""

import hmac
from collections.abc import (
    Mapping,
)
from typing import (
    Final,
)

import msgspec
from aiohttp import web

from eventbus_edge.access import Claims, TokenRejected
from eventbus_edge.http.middleware import REFUND
from eventbus_edge.keys import METRICS, NODE, WORKERS_METRICS, all_nodes
from eventbus_edge.metrics import CONTENT_TYPE_LATEST
from eventbus_edge.problem import (
    Problem,
    bad_token,
)

__all__ = ["add_endpoints", "require_admin"]


_DOTS_OF_A_JWT: Final = 2
_NOT_STORED: Final = (
    "the bus does not store messages: its disk may be full, or a limit reached; see the log of "
    "this node"
)


def add_endpoints(app: web.Application) -> None:
    """Serve health, readiness and metrics."""
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)


async def _healthz(request: web.Request) -> web.Response:
    """The process is alive."""
    return _json({"status": "alive", "node": request.app[NODE].id})


async def _readyz(request: web.Request) -> web.Response:
    """The node can serve: 503 while it drains or has no bus.

    It is degraded, with a reason, while the bus does not store messages. Then all nodes are, and
    clients still get volatile messages, histories and presence.
    """
    nodes = all_nodes(request.app)
    for node in nodes:
        node.require_ready()
    is_degraded = any(node.bus_health.fault for node in nodes)
    body: dict[str, object] = {
        "status": "degraded" if is_degraded else "ready",
        "node": request.app[NODE].id,
        "connections": sum(len(node.connections) for node in nodes),
    }
    if is_degraded:
        body["reason"] = _NOT_STORED  # the fault itself names the broker, which is not public
    return _json(body)


async def _metrics(request: web.Request) -> web.Response:
    """The metrics for Prometheus; a worker answers for all workers of its supervisor."""
    node = request.app[NODE]
    if not node.settings.metrics_open:
        await require_admin(request)
        request[REFUND] = 1.0
    workers = request.app.get(WORKERS_METRICS)
    body = request.app[METRICS].exposition() if workers is None else await workers.exposition()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def require_admin(request: web.Request) -> Claims | None:
    """Require the API key, or a token with the role or permission admin. Raises Problem.

    If no key is configured, some clients need none; see `Hosts.why_a_key_is_needed`. Returns the
    claims of the token, None for clients without one.
    """
    node = request.app[NODE]
    key = node.settings.api_key
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip()
    is_token = scheme.lower() == "bearer" and given.count(".") == _DOTS_OF_A_JWT
    if not key or not is_token or _is_key(given, key):
        _require_key(request, key)
        return None
    try:
        claims = await node.access.authenticator.verify(given)
    except TokenRejected as exc:
        raise bad_token(exc.code, str(exc)) from None
    if not claims.is_admin:
        raise Problem("forbidden", "the token has neither the role nor the permission admin")
    return claims


def _require_key(request: web.Request, key: str) -> None:
    if not key:
        why = request.app[NODE].access.hosts.why_a_key_is_needed(
            request.remote, request.version, request.raw_path, request.headers
        )
        if why:
            raise Problem(
                "forbidden",
                "no BROADCAST_API_KEY is configured, so only clients on this machine have access; "
                f"this request is refused: {why}",
            )
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _is_key(given.strip(), key):
        message = "the header Authorization: Bearer <BROADCAST_API_KEY> is required"
        raise Problem("unauthorized", message)


def _is_key(given: str, key: str) -> bool:
    """Compare in a time that does not depend on where the two differ."""
    one, other = (text.encode(errors="surrogateescape") for text in (given, key))
    return hmac.compare_digest(one, other)


def _json(body: Mapping[str, object]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
