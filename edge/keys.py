"""What the application holds for its handlers."""

from typing import Final

from aiohttp import web

from edge.metrics_workers import WorkersMetrics
from edge.node import Node

__all__ = ["NODE", "WORKERS_METRICS"]

NODE: Final = web.AppKey("NODE", Node)
WORKERS_METRICS: Final = web.AppKey("WORKERS_METRICS", WorkersMetrics)
"""Only where a supervisor runs several workers."""
