"""The settings of an edge. Times are in seconds, sizes in bytes."""

from eventbus_edge.config.edge import EdgeSettings
from eventbus_edge.config.lifecycle import MIN_SECRET, LifecycleSettings
from eventbus_edge.config.secrets import (
    HOW_TO_MAKE_A_SECRET,
    MIN_KEY_BYTES,
    MIN_SECRET_BYTES,
    weakness,
)

__all__ = [
    "HOW_TO_MAKE_A_SECRET",
    "MIN_KEY_BYTES",
    "MIN_SECRET",
    "MIN_SECRET_BYTES",
    "EdgeSettings",
    "LifecycleSettings",
    "weakness",
]
