"""Connections that are notified when other users come online or go offline, on any node.

A user is online while any connection of the cluster is subscribed to the user's inbox, the channel
that only that user hears. So nothing is stored for this, and those who watch join nothing.
"""

import time
from collections.abc import Sequence

from eventbus_edge.cluster.counts import SETTLE_S, SubscriptionCounts
from eventbus_edge.deadlines import Deadlines
from eventbus_edge.delivery import Hub, Outbox
from eventbus_edge.protocols import UsersWatched

__all__ = ["Watchers"]


class _Inbox:
    """An inbox that connections of this node watch."""

    __slots__ = ("is_online", "watchers")

    def __init__(self, *, is_online: bool) -> None:
        self.is_online = is_online
        self.watchers: dict[str, Outbox] = {}

    def turn(self, *, is_online: bool) -> None:
        """The user has come online, or has gone offline."""
        self.is_online = is_online


class Watchers:
    """The watching connections of one node."""

    def __init__(self, counts: SubscriptionCounts, hub: Hub, *, grace_s: float) -> None:
        """`grace_s` is how long a user without connections still counts as online."""
        self._counts = counts
        self._hub = hub
        self._grace_s = grace_s
        self._inboxes: dict[str, _Inbox] = {}
        self._watching: dict[str, tuple[Outbox, Sequence[str]]] = {}
        """By connection: what it watches."""
        self._newcomers = Deadlines()
        """Connections that have not been notified yet: other nodes have to answer first."""
        self._leaving = Deadlines()
        """Inboxes of users that are going offline."""

    def watch(self, outbox: Outbox, inboxes: Sequence[str]) -> None:
        """Notify a connection of all these users soon, and of each change until `unwatch`."""
        connection_id = outbox.connection_id
        self._watching[connection_id] = outbox, inboxes
        for name in inboxes:
            inbox = self._inboxes.get(name)
            if inbox is None:
                self._counts.watch(name)
                inbox = self._inboxes[name] = _Inbox(is_online=self._counts.total(name) > 0)
            inbox.watchers[connection_id] = outbox
        self._newcomers.set(connection_id, time.monotonic() + SETTLE_S)

    def unwatch(self, connection_id: str) -> None:
        """The connection has ended. Does nothing for one that watches nobody."""
        found = self._watching.pop(connection_id, None)
        if found is None:
            return
        self._newcomers.cancel(connection_id)
        for name in found[1]:
            inbox = self._inboxes[name]
            del inbox.watchers[connection_id]
            if not inbox.watchers:
                del self._inboxes[name]
                self._leaving.cancel(name)
                self._counts.unwatch(name)

    def counted(self, name: str, connections: int) -> None:
        """The number of connections that hear an inbox has changed."""
        inbox = self._inboxes.get(name)
        if inbox is None:
            return
        if not connections:
            self._leaving.set(name, time.monotonic() + self._grace_s)
            return
        self._leaving.cancel(name)
        if not inbox.is_online:
            inbox.turn(is_online=True)
            self._notify(inbox, UsersWatched((name,), ()))

    def turn(self, now: float) -> None:
        """Send what is due."""
        for name in self._leaving.due(now):
            inbox = self._inboxes[name]
            inbox.turn(is_online=False)
            self._notify(inbox, UsersWatched((), (name,)))
        for connection_id in self._newcomers.due(now):
            outbox, names = self._watching[connection_id]
            online = tuple(name for name in names if self._inboxes[name].is_online)
            offline = tuple(name for name in names if not self._inboxes[name].is_online)
            self._hub.push(outbox, outbox.format.reply(UsersWatched(online, offline)))

    def _notify(self, inbox: _Inbox, news: UsersWatched) -> None:
        to = [
            outbox
            for connection_id, outbox in inbox.watchers.items()
            if connection_id not in self._newcomers
        ]
        self._hub.fan_out(to, lambda wire: wire.reply(news))
