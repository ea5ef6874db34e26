"""Presence on a node: reads what the other nodes say, and says who is here."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
)
from typing import (
    Any,
    Final,
    cast,
)

import msgspec

from eventbus.drivers.base import (
    Capability,
    Driver,
)
from eventbus.drivers.state import StateDriver
from eventbus.errors import EventBusError
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
    nobody_gone,
)
from eventbus_edge.presence.watch import (
    TICK_S,
    InStep,
    WatchedRoom,
    read_room,
)
from eventbus_edge.sessions.ports import PresenceRefused
from eventbus_edge.state.writer import EntryWriter

__all__ = ["PresenceKeeper", "PresenceSettings"]


_log = logging.getLogger(__name__)

WRITTEN_S: Final = 5.0
"""How long a joining client waits for its entry to be on the bus."""
_CLOSE_S: Final = 2.0
_READS_AT_ONCE: Final = 16

Tell = Callable[[str, Change, str | None], None]
"""Gets a channel, what its clients are to hear, and the connection that is not to hear it."""


class PresenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds; `linger_s` is how long a channel that nobody here is in is still kept."""

    grace_s: float = 15.0
    ttl_s: float = 10.0
    linger_s: float = 1.0
    max_members: int = 10_000
    max_info_bytes: int = 2048
    max_list_bytes: int = 1024 * 1024
    """What a list of members may have: a client is sent it at once."""


class PresenceKeeper:
    """The presence channels of one node.

    With a driver that keeps no state, members are those of this node alone.
    """

    def __init__(
        self,
        driver: Driver,
        node: str,
        settings: PresenceSettings,
        tell: Tell,
        may_join: Callable[[str, str], bool] = lambda _channel, _token: True,
        *,
        drop_gone: Callable[[], Awaitable[object]] = nobody_gone,
    ) -> None:
        """`may_join` gets channel and token of each user who is about to become a member.

        `drop_gone` lets go of connections that clients have closed and this node has not seen.
        It is called before this node counts as alive again.
        """
        self._node = node
        self._settings = settings
        self._tell = tell
        self._may_join = may_join
        self._shares = Capability.PRESENCE in driver.capabilities
        self._driver = cast(StateDriver, driver)
        self._writer = EntryWriter(self._driver)
        self._drop_gone = drop_gone
        self._nodes = LiveNodes(
            self._driver, node, settings.ttl_s, self._on_node, self._before_return
        )
        self._watched: dict[str, WatchedRoom] = {}
        self._deadlines = Deadlines()
        self._starting = asyncio.Lock()
        self._tasks = Tasks()

    # What connections ask for

    async def join(
        self, channel: str, user_id: str, info: Mapping[str, Any], connection_id: str
    ) -> None:
        """A connection joins; from here on its user is among `members`.

        Raises PresenceRefused, and a DriverError when the other nodes' members cannot be read.
        """
        await self._start()
        watched = self._watched.get(channel)
        if watched is None:
            watched = WatchedRoom(channel, Room(self._nodes.ids), self._take)
            self._watched[channel] = watched
        try:
            with watched.joining():
                await watched.begin(self._driver if self._shares else None)
                encoded = encode_info(info, self._settings.max_info_bytes)
                self._admit(watched, Entry(user_id, encoded, _now()), connection_id)
        finally:
            self._let_linger(watched)
        # So that whoever joins after this client's answer has it in the list; should the bus not
        # take it now, it is brought there later, and the others are told then.
        await self._writer.written(key_of(self._node, channel, token_of(user_id)), WRITTEN_S)

    def leave(self, channel: str, user_id: str, connection_id: str, *, lost: bool) -> None:
        """A connection leaves: at once, or after the grace time when it was lost."""
        watched = self._watched.get(channel)
        if watched is None:
            return
        token, now = token_of(user_id), time.monotonic()
        grace = self._settings.grace_s if lost else 0.0
        until = watched.stays.leave(token, connection_id, now=now, grace_s=grace)
        if until is None:
            return
        if until > now:
            self._deadlines.set(f"{channel} {token}", until)
        else:
            self._end(watched, token, now)

    def update(
        self, channel: str, user_id: str, changes: Mapping[str, Any], connection_id: str
    ) -> None:
        """Change members of a user's info; a null takes one away. Raises PresenceRefused."""
        watched = self._watched[channel]
        token = token_of(user_id)
        member = watched.room.member(token)
        assert member is not None, "who is subscribed is a member"
        merged = {**msgspec.json.decode(member.info), **changes}
        kept = {name: value for name, value in merged.items() if value is not None}
        info = encode_info(kept, self._settings.max_info_bytes)
        entry = Entry(user_id, info, max(_now(), member.at + 1))
        self._say(watched, token, entry, connection_id)

    def members(self, channel: str) -> tuple[bytes, int]:
        """The members of a channel that somebody here is in, as a JSON array, and their number."""
        watched = self._watched.get(channel)
        return (watched.room.members, len(watched.room)) if watched is not None else (b"[]", 0)

    def counts(self) -> tuple[int, int]:
        """How many channels' members are known here, and how many members those have."""
        return len(self._watched), sum(len(watched.room) for watched in self._watched.values())

    async def look(self, channel: str) -> tuple[bytes, int]:
        """The same for any channel, read when nobody here is in it. Raises a DriverError."""
        watched = self._watched.get(channel)
        if (watched is not None and watched.is_read) or not self._shares:
            return self.members(channel)
        room = await read_room(self._driver, await self._nodes.signs(), channel)
        return room.members, len(room)

    async def aclose(self) -> None:
        """Stop. The members stay for the grace time: clients of a node that ends go to another."""
        await self._tasks.aclose()
        await self._writer.aclose()
        rooms = list(self._watched.values())
        self._watched.clear()
        try:
            async with asyncio.timeout(_CLOSE_S):
                for watched in rooms:
                    await watched.aclose()
                await self._nodes.aclose(self._settings.grace_s if len(self._writer) else 0.0)
        except (TimeoutError, EventBusError) as exc:
            _log.warning("presence was not closed in order: %s", exc)

    # Members of this node

    def _admit(self, watched: WatchedRoom, entry: Entry, connection_id: str) -> None:
        token = token_of(entry.user_id)
        known = watched.room.member(token)
        channel, limit = watched.channel, self._settings.max_members
        if known is None and len(watched.room) >= limit:
            raise PresenceRefused(
                "limit_exceeded", f"{channel} has {limit} members, as many as are allowed"
            )
        if len(watched.room.members) > self._settings.max_list_bytes:
            raise PresenceRefused(
                "limit_exceeded",
                f"the list of the members of {channel} has {len(watched.room.members)} bytes, more "
                "than may be sent to a client",
            )
        if known is None and not self._may_join(channel, token):
            raise PresenceRefused(
                "rate_limited", f"this user has joined {channel} too often: wait a moment"
            )
        watched.stays.join(token, connection_id)
        # Another tab, or a reload, does not take back what the user has said since.
        self._say(watched, token, known or entry, connection_id)

    def _say(
        self, watched: WatchedRoom, token: str, entry: Entry, connection_id: str | None
    ) -> None:
        """Say it to the own clients, and to the other nodes."""
        changes = watched.room.put(self._node, token, entry)
        if self._shares:
            self._writer.put(key_of(self._node, watched.channel, token), encode_entry(entry))
        for change in changes:
            self._tell(watched.channel, change, connection_id)

    def _end(self, watched: WatchedRoom, token: str, now: float) -> None:
        """End a member that no connection of this node holds any more."""
        if not watched.stays.end(token, now):
            return
        changes = watched.room.remove(self._node, token)
        if self._shares:
            self._writer.delete(key_of(self._node, watched.channel, token))
        for change in changes:
            self._tell(watched.channel, change, None)
        self._let_linger(watched)

    def _let_linger(self, watched: WatchedRoom) -> None:
        if not watched.is_in_use:
            self._deadlines.set(watched.channel, time.monotonic() + self._settings.linger_s)

    # The other nodes

    async def _start(self) -> None:
        """At the first join of all: say that this node is alive, and learn which others are."""
        if self._tasks:
            return
        async with self._starting:
            if self._tasks:
                return
            if self._shares:
                losses = self._driver.state.losses
                await self._nodes.start()
                self._tasks.keep(self._nodes.keep_beating, "presence: signs of life")
                step = InStep(
                    self._driver, losses, self._synchronize, certain_s=self._settings.ttl_s
                )
                self._tasks.keep(step.run, "presence: losses")
            self._tasks.keep(self._keep_time, "presence: time")

    def _on_node(self, node: str) -> None:
        for watched in self._watched.values():
            self._announce(watched, watched.room.refresh(node))

    async def _before_return(self) -> None:
        """The others have let this node's members go: only those who are still here may come back.

        Nobody is waited for any more who was lost before, or meanwhile.
        """
        await self._drop_gone()
        now = time.monotonic()
        for watched in list(self._watched.values()):
            for token in watched.stays.lost():
                watched.stays.returned(token)
                self._end(watched, token, now)
        if not await self._writer.flush(WRITTEN_S):
            _log.warning("members that have left may be announced again for a moment")

    def _take(self, watched: WatchedRoom, node: str, token: str, value: bytes | None) -> None:
        """Take in what a node says of a user; what this node says, it knows itself."""
        room = watched.room
        if node == self._node:
            return
        if value is None:
            self._announce(watched, room.remove(node, token))
            return
        entry = decode_entry(token, value)
        if entry is None or len(entry.info) > self._settings.max_info_bytes:
            _log.warning(
                "%s is ignored: it is no presence entry", key_of(node, watched.channel, token)
            )
            return
        is_new = room.entry(node, token) is None
        self._announce(watched, room.put(node, token, entry))
        own = room.entry(self._node, token)
        if own is None or node not in self._nodes.ids:
            return
        if entry.at > own.at:  # said there last, it must outlast that connection
            self._say(watched, token, own._replace(info=entry.info, at=entry.at), None)
        if is_new:  # whoever was lost here has returned there
            watched.stays.returned(token)
            self._end(watched, token, time.monotonic())

    def _announce(self, watched: WatchedRoom, changes: list[Change]) -> None:
        if watched.is_read:  # before, nobody has been told who is here
            for change in changes:
                self._tell(watched.channel, change, None)

    # Time

    async def _synchronize(self, keep_missing: bool) -> None:
        """Put back what is ours, and take in what the others say."""
        self._nodes.beat_now()
        own = await self._driver.state.entries(own_keys_of(self._node))
        self._writer.repair(own)
        await self._nodes.read(keep_missing=keep_missing)
        turns = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(watched: WatchedRoom) -> None:
            async with turns:
                await watched.read_again(self._driver, keep_missing=keep_missing)

        await asyncio.gather(*map(read, list(self._watched.values())))

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            for key in self._deadlines.due(now):
                channel, _, token = key.partition(" ")
                watched = self._watched.get(channel)
                if watched is None:
                    continue
                if token:
                    self._end(watched, token, now)
                else:
                    await self._forget(watched)
            self._writer.refresh(now)
            await asyncio.sleep(TICK_S)

    async def _forget(self, watched: WatchedRoom) -> None:
        if watched.is_in_use:
            return
        async with watched.lock:  # it may be being read again
            if not watched.is_in_use:
                del self._watched[watched.channel]
                await watched.aclose()


def _now() -> int:
    return time.time_ns() // 1_000_000
