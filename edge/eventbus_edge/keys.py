"""The parts of the application that its handlers use."""

from typing import Final

from aiohttp import web

from eventbus_edge.metrics.workers import WorkersMetrics
from eventbus_edge.node import Node

__all__ = ["NODE", "WORKERS_METRICS"]


NODE: Final = web.AppKey("NODE", Node)
WORKERS_METRICS: Final = web.AppKey("WORKERS_METRICS", WorkersMetrics)
"""Only where a supervisor runs several workers."""
