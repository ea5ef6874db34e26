"""The parts of the application that its handlers use."""

from typing import Final

from aiohttp import web

from eventbus_edge.metrics import NodesMetrics, WorkersMetrics
from eventbus_edge.node import Node

__all__ = ["METRICS", "NODE", "PATHS", "WORKERS_METRICS", "all_nodes", "node_of"]


NODE: Final = web.AppKey("NODE", Node)
"""The node of all clients that belong to no tenant."""
PATHS: Final = web.AppKey("PATHS", dict[str, str])
"""The names of tenants by path prefix; see `Tenant.paths`."""
METRICS: Final = web.AppKey("METRICS", NodesMetrics)
"""The metrics of all nodes."""
WORKERS_METRICS: Final = web.AppKey("WORKERS_METRICS", WorkersMetrics)
"""Only where a supervisor runs several workers."""


def node_of(app: web.Application, path: str) -> Node:
    """The node that serves a path."""
    paths = app[PATHS]
    name = paths.get("/".join(path.split("/", 3)[:3])) if paths else None
    return app[NODE] if name is None else app[NODE].tenants[name]


def all_nodes(app: web.Application) -> list[Node]:
    """The application's node and the nodes of all tenants."""
    return [app[NODE], *app[NODE].tenants.values()]
