"""Prometheus metrics of a node and its workers."""

from eventbus_edge.metrics.metrics import CONTENT_TYPE_LATEST, Metrics
from eventbus_edge.metrics.nodes import NodesMetrics
from eventbus_edge.metrics.tally import LATENCY_BOUNDS, Tally
from eventbus_edge.metrics.workers import WorkersMetrics

__all__ = [
    "CONTENT_TYPE_LATEST",
    "LATENCY_BOUNDS",
    "Metrics",
    "NodesMetrics",
    "Tally",
    "WorkersMetrics",
]
