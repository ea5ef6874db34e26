"""The nodes of a cluster: questions to all of them, and their statistics."""

from eventbus_edge.cluster.census import Census, LocalNode
from eventbus_edge.cluster.counts import Counted, SubscriptionCounts
from eventbus_edge.cluster.watch import Watch
from eventbus_edge.cluster.watchers import Watchers

__all__ = [
    "Census",
    "Counted",
    "LocalNode",
    "SubscriptionCounts",
    "Watch",
    "Watchers",
]
