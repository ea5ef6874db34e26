"""Entries that all nodes share: local copies, and a node's own entries."""

from eventbus_edge.state.mirror import Mirror, Resync
from eventbus_edge.state.writer import EntryWriter

__all__ = [
    "EntryWriter",
    "Mirror",
    "Resync",
]
