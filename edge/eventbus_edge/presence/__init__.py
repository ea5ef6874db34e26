"""Presence channels and their members."""

from eventbus_edge.presence.channels import PresenceChannels
from eventbus_edge.presence.nodes import drop_nothing, write_heartbeat

__all__ = [
    "PresenceChannels",
    "drop_nothing",
    "write_heartbeat",
]
