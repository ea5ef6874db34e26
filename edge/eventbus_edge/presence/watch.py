"""One presence channel as the bus has it: watched, read, and read again after a loss."""

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Iterator,
)
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.drivers.base import Subscription
from eventbus.drivers.state import StateDriver
from eventbus.errors import (
    DriverError,
    EventBusError,
)
from eventbus_edge.presence.members import (
    Room,
    Stays,
    decode_entry,
    keys_of,
    parts_of,
)
from eventbus_edge.presence.nodes import signs_of

__all__ = ["InStep", "WatchedRoom", "read_members", "read_room"]


_log = logging.getLogger(__name__)

TICK_S: Final = 0.1
_PAUSE_S: Final = 1.0

Take = Callable[["WatchedRoom", str, str, bytes | None], None]
"""Gets node and token of an entry, and its value: None where it has ended."""


class WatchedRoom:
    """A channel that has members on this node, or had some a moment ago."""

    def __init__(self, channel: str, room: Room, take: Take) -> None:
        """`take` gets what is told and what is read, without awaiting anything."""
        self.channel = channel
        self.room = room
        self.stays = Stays()
        self.lock = asyncio.Lock()
        self.is_read = False
        """Whether the entries of the other nodes are known."""
        self._take = take
        self._joining = 0
        self._subscription: Subscription | None = None
        self._told: set[tuple[str, str]] | None = None
        """While entries are read: what was told meanwhile is newer."""

    @property
    def is_in_use(self) -> bool:
        """Whether somebody here is a member, or is about to be."""
        return bool(self.stays) or self._joining > 0

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """The channel is in use while somebody is about to become a member."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1

    async def begin(self, driver: StateDriver | None) -> None:
        """Watch, then read: what changes between is told. Raises a DriverError."""
        async with self.lock:
            if self.is_read:
                return
            if driver is not None:
                if self._subscription is None:
                    pattern = keys_of(self.channel)
                    self._subscription = await driver.state.watch(pattern, self._on_change)
                await self._read(driver, keep_missing=False)
            self.is_read = True

    async def read_again(self, driver: StateDriver, *, keep_missing: bool) -> None:
        """Take in all entries; with `keep_missing`, those that are not there are not gone yet."""
        async with self.lock:
            if self.is_read:
                await self._read(driver, keep_missing=keep_missing)

    async def aclose(self) -> None:
        """Watch no more."""
        if self._subscription is not None:
            try:
                await self._subscription.aclose()
            except DriverError as exc:
                _log.warning("could not end watching %s: %s", self.channel, exc)

    async def _read(self, driver: StateDriver, *, keep_missing: bool) -> None:
        told: set[tuple[str, str]] = set()
        self._told = told
        try:
            entries = await driver.state.entries(keys_of(self.channel))
        finally:
            self._told = None
        found = {parts_of(key): value for key, value in entries.items()}
        for node, token in found.keys() - told:
            self._take(self, node, token, found[node, token])
        if not keep_missing:
            for node, token in set(self.room.keys()) - found.keys() - told:
                self._take(self, node, token, None)

    def _on_change(self, key: str, value: bytes | None) -> None:
        node, token = parts_of(key)
        if self._told is not None:
            self._told.add((node, token))
        self._take(self, node, token, value)


class InStep:
    """Synchronizes with the bus after each loss of what it kept."""

    def __init__(
        self,
        driver: StateDriver,
        known: int,
        synchronize: Callable[[bool], Awaitable[None]],
        *,
        certain_s: float,
        what: str = "presence",
    ) -> None:
        """After each loss beyond the `known` ones, `synchronize` is called with True, later False.

        That is `certain_s` seconds later. The argument says whether to keep what is missing: the
        other nodes may have had the same loss, and until the time is over in which a dead one is
        missed, presence is stale rather than empty.
        """
        self._driver = driver
        self._known = known
        self._synchronize = synchronize
        self._certain_s = certain_s
        self._certain_at: float | None = None
        self._what = what

    async def run(self) -> None:
        """Look for losses until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                losses = self._driver.state.losses
                if losses != self._known:
                    await self._synchronize(True)
                    self._known = losses
                    self._certain_at = time.monotonic() + self._certain_s
                elif self._certain_at is not None and time.monotonic() >= self._certain_at:
                    await self._synchronize(False)
                    self._certain_at = None
            except EventBusError as exc:
                _log.warning("%s: stale, for the bus cannot be asked: %s", self._what, exc)
                await asyncio.sleep(_PAUSE_S)


async def read_room(driver: StateDriver, nodes: set[str], channel: str) -> Room:
    """A channel's members as the bus has them, of the nodes that live. Raises a DriverError."""
    room = Room(nodes)
    for key, value in (await driver.state.entries(keys_of(channel))).items():
        node, token = parts_of(key)
        if (entry := decode_entry(token, value)) is not None:
            room.put(node, token, entry)
    return room


async def read_members(driver: StateDriver, channel: str) -> list[dict[str, Any]]:
    """A channel's members, each a user_id and info. Raises a DriverError."""
    room = await read_room(driver, await signs_of(driver), channel)
    return msgspec.json.decode(room.members, type=list[dict[str, Any]])
