"""What sessions use of packages above them and of transports: interfaces, to import neither."""

from collections.abc import Mapping, Sequence
from typing import (
    Any,
    Protocol,
)

import msgspec

from eventbus_edge.delivery import Backlog, Outbox
from eventbus_edge.protocols import Closing, Member, Members, Presence, Reply

__all__ = ["ClusterPort", "Peer", "PresencePort", "PresenceRefused", "WatchersPort"]


class PresenceRefused(Exception):
    """A user cannot become a member, or their info cannot be changed; `code` is for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PresencePort(Protocol):
    """The members of presence channels; see `eventbus_edge.presence.channels`."""

    async def enter(
        self, channel: str, member: Member, more: Mapping[str, Any], connection_id: str
    ) -> None:
        """Add a connection of a member, with `more` info. Raises PresenceRefused, DriverError."""

    def leave(self, channel: str, member: Member | None, connection_id: str, *, lost: bool) -> None:
        """Remove a connection; one that was lost may come back."""

    def begin(self, channel: str, backlog: Backlog) -> Members:
        """The members; removes older presence events from `backlog`."""

    def members(self, channel: str) -> Members:
        """The members of a channel that clients of this node have joined."""

    async def fetch(self, channel: str) -> Members:
        """The members of any channel. Raises a DriverError when they cannot be read."""

    def answer(self, command: Presence, member: Member, connection_id: str) -> Reply:
        """Carry out the action `presence` of a subscribed connection."""


class ClusterPort(Protocol):
    """Questions to all nodes of the cluster; see `eventbus_edge.cluster.census`."""

    async def stats(self) -> msgspec.Struct:
        """Nodes, channels and sums over all nodes. Raises an EventBusError."""


class WatchersPort(Protocol):
    """Connections that watch users; see `eventbus_edge.cluster.watchers`."""

    def watch(self, outbox: Outbox, inboxes: Sequence[str]) -> None:
        """Notify a connection when the users of these inboxes come online or go offline."""

    def unwatch(self, connection_id: str) -> None:
        """The connection has ended."""


class Peer(Protocol):
    """The far end of a connection, as the handler of its transport offers it."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def close(self, closing: Closing) -> None:
        """Begin to close the connection; what was written before reaches the client first."""

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when it is closed."""
