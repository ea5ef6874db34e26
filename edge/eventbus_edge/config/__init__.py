"""The settings of an edge. Times are in seconds, sizes in bytes."""

from eventbus_edge.config.edge import EdgeSettings
from eventbus_edge.config.lifecycle import MIN_SECRET, LifecycleSettings

__all__ = ["MIN_SECRET", "EdgeSettings", "LifecycleSettings"]
