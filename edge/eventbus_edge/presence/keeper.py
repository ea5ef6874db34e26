"""Presence on a node: reads the entries of other nodes, and writes its own."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Mapping,
)
from typing import (
    Any,
    Final,
    cast,
)

import msgspec

from eventbus.attempts import SharedAttempt
from eventbus.drivers import Capability, Driver, StateDriver
from eventbus.errors import EventBusError
from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus_edge.deadlines import Deadlines
from eventbus_edge.presence.members import (
    Change,
    Entry,
    Room,
    decode_entry,
    encode_entry,
    encode_info,
    key_of,
    own_keys_of,
    token_of,
)
from eventbus_edge.presence.nodes import (
    LiveNodes,
    drop_nothing,
)
from eventbus_edge.presence.watch import (
    WatchedRoom,
    read_room,
)
from eventbus_edge.protocols import Members
from eventbus_edge.sessions import PresenceRefused
from eventbus_edge.state import EntryWriter, Resync

__all__ = ["PresenceKeeper", "PresenceSettings"]


_log = logging.getLogger(__name__)

WRITTEN_S: Final = 5.0
"""How long a joining client waits until its entry is on the bus."""
_CLOSE_S: Final = 2.0
_READS_AT_ONCE: Final = 16
_TICK_S: Final = 0.1
_NO_MEMBERS: Final = Members()

Notify = Callable[[str, Change, str | None], None]
"""Gets a channel, a change for its subscribers, and the id of a connection to leave out."""


class PresenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds. `linger_s` is how long a channel without local members is watched."""

    grace_s: float = 15.0
    ttl_s: float = 10.0
    linger_s: float = 1.0
    max_members: int = 10_000
    max_info_bytes: int = 2048
    max_list_bytes: int = 1024 * 1024
    """The largest list of members, which a client gets in one message."""


class PresenceKeeper:
    """The presence channels of one node.

    With a driver that has no state store, only the members of this node are known.
    """

    def __init__(
        self,
        driver: Driver,
        node: str,
        settings: PresenceSettings,
        notify: Notify,
        may_join: Callable[[str, str], bool] = lambda _channel, _token: True,
        *,
        drop_gone: Callable[[], Awaitable[object]] = drop_nothing,
    ) -> None:
        """`may_join` gets the channel and the token of each user about to become a member.

        `drop_gone` drops connections whose client has closed them unnoticed by this node. It is
        called before this node counts as alive again.
        """
        self._node = node
        self._settings = settings
        self._notify = notify
        self._may_join = may_join
        self._shares = Capability.PRESENCE in driver.capabilities
        self._driver = cast(StateDriver, driver)
        self._writer = EntryWriter(self._driver)
        self._drop_gone = drop_gone
        self._nodes = LiveNodes(
            self._driver, node, settings.ttl_s, self._on_node, self._before_return
        )
        self._changed_nodes: dict[str, None] = {}
        self._nodes_changed = asyncio.Event()
        self._watched: dict[str, WatchedRoom] = {}
        self._deadlines = Deadlines()
        self._starting = SharedAttempt()
        self._tasks = Tasks()

    # Requests of connections

    async def join(
        self, channel: str, user_id: str, info: Mapping[str, Any], connection_id: str
    ) -> None:
        """Add a connection; from now on its user is among `members`.

        Raises PresenceRefused, and a DriverError if the members of other nodes cannot be read.
        """
        await self._start()
        watched = self._watched.get(channel)
        if watched is None:
            watched = WatchedRoom(channel, Room(self._nodes.ids), self._on_entry)
            self._watched[channel] = watched
        try:
            with watched.joining():
                await watched.begin(self._driver if self._shares else None)
                encoded = encode_info(info, self._settings.max_info_bytes)
                self._admit(watched, Entry(user_id, encoded, _now()), connection_id)
        finally:
            self._let_linger(watched)
        # Clients that join after this reply must find this user in the list. If the bus does not
        # accept the entry in time, it is written later, and the other nodes notice it then.
        await self._writer.written(key_of(self._node, channel, token_of(user_id)), WRITTEN_S)

    def leave(self, channel: str, user_id: str, connection_id: str, *, lost: bool) -> None:
        """Remove a connection: at once, or after the grace time if it was lost."""
        watched = self._watched.get(channel)
        if watched is None:
            return
        token, now = token_of(user_id), time.monotonic()
        grace = self._settings.grace_s if lost else 0.0
        until = watched.local.leave(token, connection_id, now=now, grace_s=grace)
        if until is None:
            return
        if until > now:
            self._deadlines.set(f"{channel} {token}", until)
        else:
            self._end(watched, token, now)

    def update(
        self, channel: str, user_id: str, changes: Mapping[str, Any], connection_id: str
    ) -> None:
        """Change fields of a user's info; null removes a field. Raises PresenceRefused."""
        watched = self._watched[channel]
        token = token_of(user_id)
        member = watched.room.member(token)
        assert member is not None, "the user of a subscribed connection is a member"
        merged = {**msgspec.json.decode(member.info), **changes}
        remaining = {name: value for name, value in merged.items() if value is not None}
        info = encode_info(remaining, self._settings.max_info_bytes)
        entry = Entry(user_id, info, max(_now(), member.at + 1))
        self._set(watched, token, entry, connection_id)

    def members(self, channel: str) -> Members:
        """A channel's members; none are known without a member on this node."""
        watched = self._watched.get(channel)
        return watched.room.members if watched is not None else _NO_MEMBERS

    def count(self, channel: str) -> int:
        """The number of `members`."""
        watched = self._watched.get(channel)
        return len(watched.room) if watched is not None else 0

    def own(self, channel: str) -> list[Entry]:
        """The entries of this node for the members of a channel."""
        watched = self._watched.get(channel)
        return [] if watched is None else watched.room.of_node(self._node)

    def counts(self) -> tuple[int, int]:
        """The number of channels whose members are known, and the number of those members."""
        return len(self._watched), sum(len(watched.room) for watched in self._watched.values())

    @property
    def channels(self) -> Collection[str]:
        """The channels whose members are known, also those whose members' connections are lost."""
        return self._watched.keys()

    async def fetch(self, channel: str) -> Members:
        """Like `members`, for any channel; reads the bus if needed. Raises a DriverError."""
        watched = self._watched.get(channel)
        if (watched is not None and watched.is_read) or not self._shares:
            return self.members(channel)
        room = await read_room(self._driver, await self._nodes.read_ids(), channel)
        return room.members

    async def aclose(self) -> None:
        """Stop. Members stay for the grace time, because clients reconnect to another node."""
        await self._tasks.aclose()
        await self._writer.aclose()
        rooms = list(self._watched.values())
        self._watched.clear()
        try:
            async with asyncio.timeout(_CLOSE_S):
                # First: the last heartbeat may expire soon, and then the members are gone.
                await self._nodes.aclose(self._settings.grace_s if len(self._writer) else 0.0)
                for watched in rooms:
                    await watched.aclose()
        except (TimeoutError, EventBusError) as exc:
            _log.warning("presence could not be closed cleanly: %s", exc)

    # Members of this node

    def _admit(self, watched: WatchedRoom, entry: Entry, connection_id: str) -> None:
        token = token_of(entry.user_id)
        known = watched.room.member(token)
        channel, limit = watched.channel, self._settings.max_members
        if known is None and len(watched.room) >= limit:
            raise PresenceRefused(
                "limit_exceeded",
                f"{channel} has {limit} members: the node allows no more "
                "(BROADCAST_PRESENCE_MAX_MEMBERS)",
            )
        if watched.room.size > self._settings.max_list_bytes:
            raise PresenceRefused(
                "limit_exceeded",
                f"the list of members of {channel} has about {watched.room.size} bytes, which is "
                "too large to be sent to a client",
            )
        if known is None and not self._may_join(channel, token):
            raise PresenceRefused(
                "rate_limited",
                f"this user has joined {channel} too often: wait a moment; the limit is "
                "BROADCAST_MAX_JOINS_PER_MEMBER of the node",
            )
        watched.local.join(token, connection_id)
        # Another tab, or a reload, must not undo later changes of the user's info.
        self._set(watched, token, known or entry, connection_id)

    def _set(
        self, watched: WatchedRoom, token: str, entry: Entry, connection_id: str | None
    ) -> None:
        """Set this node's entry for a user: for its own clients, and on the bus."""
        changes = watched.room.put(self._node, token, entry)
        if self._shares:
            self._writer.put(key_of(self._node, watched.channel, token), encode_entry(entry))
        for change in changes:
            self._notify(watched.channel, change, connection_id)

    def _end(self, watched: WatchedRoom, token: str, now: float) -> None:
        """Remove this node's entry for a user who has no connection left."""
        if not watched.local.end(token, now):
            return
        changes = watched.room.remove(self._node, token)
        if self._shares:
            self._writer.delete(key_of(self._node, watched.channel, token))
        for change in changes:
            self._notify(watched.channel, change, None)
        self._let_linger(watched)

    def _let_linger(self, watched: WatchedRoom) -> None:
        if not watched.is_in_use:
            self._deadlines.set(watched.channel, time.monotonic() + self._settings.linger_s)

    # The other nodes

    async def _start(self) -> None:
        """At the very first join: write a heartbeat, and learn which other nodes are alive."""
        if self._tasks:
            return
        async with self._starting.turn():
            if self._tasks:
                return
            if self._shares:
                state = self._driver.state
                losses = state.losses
                await self._nodes.start()
                self._tasks.keep(self._nodes.keep_beating, "presence: heartbeats")
                self._tasks.keep(self._follow_nodes, "presence: nodes that appear and die")
                resync = Resync(
                    lambda: state.losses,
                    losses,
                    self._synchronize,
                    settle_s=self._settings.ttl_s,
                    what="presence",
                )
                self._tasks.keep(resync.run, "presence: losses")
            self._tasks.keep(self._keep_time, "presence: time")

    def _on_node(self, node: str) -> None:
        self._changed_nodes[node] = None
        self._nodes_changed.set()

    async def _follow_nodes(self) -> None:
        """Update the members with the entries of nodes that have appeared or died."""
        while True:
            await self._nodes_changed.wait()
            self._nodes_changed.clear()
            while self._changed_nodes:
                node = next(iter(self._changed_nodes))
                del self._changed_nodes[node]
                async for watched in paced(list(self._watched.values())):
                    async for changes in paced(watched.room.refresh(node)):
                        self._announce(watched, changes)

    async def _before_return(self) -> None:
        """Remove members without a connection: the other nodes have dropped this node's members.

        Only users who are still connected may become members again; all grace times are over.
        """
        await self._drop_gone()
        now = time.monotonic()
        async for watched in paced(list(self._watched.values())):
            async for token in paced(watched.local.lost()):
                watched.local.returned(token)
                self._end(watched, token, now)
        if not await self._writer.flush(WRITTEN_S):
            _log.warning("members that have left may reappear for a moment")

    def _on_entry(self, watched: WatchedRoom, node: str, token: str, value: bytes | None) -> None:
        """Apply another node's entry for a user; None deletes it."""
        room = watched.room
        if node == self._node:
            return
        if value is None:
            self._announce(watched, room.remove(node, token))
            return
        entry = decode_entry(token, value)
        if entry is None or len(entry.info) > self._settings.max_info_bytes:
            _log.warning(
                "%s is ignored: it is not a presence entry", key_of(node, watched.channel, token)
            )
            return
        is_new = room.entry(node, token) is None
        self._announce(watched, room.put(node, token, entry))
        own = room.entry(self._node, token)
        if own is None or node not in self._nodes.ids:
            return
        if entry.at > own.at:  # the newer info must outlast the connection that set it
            self._set(watched, token, own._replace(info=entry.info, at=entry.at), None)
        if is_new:  # a user whose connection was lost here has come back there
            watched.local.returned(token)
            self._end(watched, token, time.monotonic())

    def _announce(self, watched: WatchedRoom, changes: list[Change]) -> None:
        if watched.is_read:  # until then no client knows any members
            for change in changes:
                self._notify(watched.channel, change, None)

    # Time

    async def _synchronize(self, keep_missing: bool) -> None:
        """Write this node's entries again, and read those of the other nodes."""
        self._nodes.beat_now()
        own = await self._driver.state.entries(own_keys_of(self._node))
        await self._writer.repair(own)
        await self._nodes.read(keep_missing=keep_missing)
        turns = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(watched: WatchedRoom) -> None:
            async with turns:
                await watched.read_again(keep_missing=keep_missing)

        await asyncio.gather(*map(read, list(self._watched.values())))

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            async for key in paced(self._deadlines.due(now)):
                channel, _, token = key.partition(" ")
                watched = self._watched.get(channel)
                if watched is None:
                    continue
                if token:
                    self._end(watched, token, now)
                else:
                    await self._forget(watched)
            await self._writer.refresh(now)
            await asyncio.sleep(_TICK_S)

    async def _forget(self, watched: WatchedRoom) -> None:
        if watched.is_in_use:
            return
        async with watched.attempt.alone():  # it may be reading its entries
            if not watched.is_in_use:
                del self._watched[watched.channel]
                await watched.aclose()


def _now() -> int:
    return time.time_ns() // 1_000_000
