"""Lifecycle events of channels and members, and their webhooks."""

from eventbus_edge.lifecycle.node import Lifecycle
from eventbus_edge.lifecycle.receivers import Activity, PostRequest, Receiver

__all__ = [
    "Activity",
    "Lifecycle",
    "PostRequest",
    "Receiver",
]
