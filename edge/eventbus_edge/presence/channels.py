"""Presence as connections use it: members join and leave, and the others are notified."""

import datetime
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Mapping,
)
from typing import (
    Any,
    Final,
)

from eventbus.drivers import Driver
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery import Backlog, Hub
from eventbus_edge.presence.keeper import (
    PresenceKeeper,
    PresenceSettings,
)
from eventbus_edge.presence.members import Change, Entry
from eventbus_edge.presence.nodes import drop_nothing
from eventbus_edge.protocols import (
    Failed,
    Member,
    Members,
    Presence,
    PresenceChanged,
    PresenceMembers,
    Reply,
)
from eventbus_edge.sessions import PresenceRefused

__all__ = ["PresenceChannels"]


_ROOM_FOR_REST: Final = 4096


class PresenceChannels:
    """The presence channels of a node; members' events go through its hub."""

    def __init__(
        self,
        driver: Driver,
        node: str,
        settings: EdgeSettings,
        hub: Hub,
        may_join: Callable[[str, str], bool] = lambda _channel, _token: True,
        *,
        drop_gone: Callable[[], Awaitable[object]] = drop_nothing,
    ) -> None:
        """`node` is the node's id; for `may_join` and `drop_gone` see PresenceKeeper."""
        self._hub = hub
        own = PresenceSettings(
            grace_s=settings.presence_grace,
            ttl_s=settings.presence_ttl,
            linger_s=settings.unsubscribe_after,
            max_members=settings.presence_max_members,
            max_info_bytes=settings.presence_max_info_bytes,
            max_list_bytes=max(settings.max_unsent_bytes - _ROOM_FOR_REST, _ROOM_FOR_REST // 2),
        )
        self._keeper = PresenceKeeper(
            driver, node, own, self._notify, may_join, drop_gone=drop_gone
        )

    async def enter(
        self, channel: str, member: Member, more: Mapping[str, Any], connection_id: str
    ) -> None:
        """A connection joins; `more` is what an authorizer adds to the user's info.

        Raises PresenceRefused, and a DriverError when the members cannot be known.
        """
        info = {**member.info, **more}
        await self._keeper.join(channel, member.user_id, info, connection_id)

    def leave(self, channel: str, member: Member | None, connection_id: str, *, lost: bool) -> None:
        """A connection leaves; one that is lost may come back. Does nothing for other channels."""
        if member is not None:
            self._keeper.leave(channel, member.user_id, connection_id, lost=lost)

    def begin(self, channel: str, backlog: Backlog) -> Members:
        """The members; removes presence events that they include already from `backlog`."""
        backlog.messages[:] = [
            passed for passed in backlog.messages if not isinstance(passed, PresenceChanged)
        ]
        return self._keeper.members(channel)

    def members(self, channel: str) -> Members:
        """The members of a channel that clients here have joined."""
        return self._keeper.members(channel)

    def count(self, channel: str) -> int:
        """The number of members of a channel that clients here have joined."""
        return self._keeper.count(channel)

    async def fetch(self, channel: str) -> Members:
        """The same for any channel. Raises a DriverError when it cannot be read."""
        return await self._keeper.fetch(channel)

    def own(self, channel: str) -> list[Entry]:
        """The entries of this node for its users who are members of the channel."""
        return self._keeper.own(channel)

    def answer(self, command: Presence, member: Member, connection_id: str) -> Reply:
        """Carry out the action `presence` of a connection that is subscribed."""
        if command.changes is not None:
            try:
                self._keeper.update(command.channel, member.user_id, command.changes, connection_id)
            except PresenceRefused as exc:
                return Failed(exc.code, str(exc), command.channel, command.ref)
        members = self._keeper.members(command.channel)
        return PresenceMembers(command.channel, members, command.ref)

    def counts(self) -> tuple[int, int]:
        """How many channels' members are known here, and how many members those have."""
        return self._keeper.counts()

    @property
    def channels(self) -> Collection[str]:
        """The channels that `counts` counts."""
        return self._keeper.channels

    async def aclose(self) -> None:
        """Stop; see PresenceKeeper.aclose."""
        await self._keeper.aclose()

    def _notify(self, channel: str, change: Change, exclude: str | None) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._hub.deliver(PresenceChanged(channel, *change, now, exclude))
