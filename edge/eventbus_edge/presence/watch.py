"""One presence channel as the bus has it: its entries are watched, and read again after a loss."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from eventbus.attempts import SharedAttempt
from eventbus.drivers import StateDriver
from eventbus.errors import DriverError
from eventbus.pacing import paced
from eventbus_edge.presence.members import (
    LocalMembers,
    Room,
    decode_entry,
    keys_of,
    parts_of,
)
from eventbus_edge.state import Mirror

__all__ = ["WatchedRoom", "read_room"]


_log = logging.getLogger(__name__)

OnEntry = Callable[["WatchedRoom", str, str, bytes | None], None]
"""Gets the node and token of an entry, and its value: None when the entry was deleted."""


class WatchedRoom:
    """A channel that has members on this node, or had some a moment ago."""

    def __init__(self, channel: str, room: Room, on_entry: OnEntry) -> None:
        """`on_entry` gets all entries of the channel and their changes; it must not await."""
        self.channel = channel
        self.room = room
        self.local = LocalMembers()
        self.attempt = SharedAttempt()
        """To watch or read the entries, or to stop."""
        self.is_read = False
        """Whether the entries of the other nodes are known."""
        self._on_entry = on_entry
        self._joining = 0
        self._mirror: Mirror | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether the channel has a member on this node, or one is joining."""
        return bool(self.local) or self._joining > 0

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Keeps the channel in use while a member joins."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1

    async def begin(self, driver: StateDriver | None) -> None:
        """Watch and read the entries, unless they are known; without a driver there are none.

        Raises a DriverError, after which it can be called again.
        """
        async with self.attempt.turn():
            if self.is_read:
                return
            if driver is not None:
                if self._mirror is None:
                    self._mirror = Mirror(driver.state, keys_of(self.channel), self._on_change)
                await self._mirror.start()
            self.is_read = True

    async def read_again(self, *, keep_missing: bool) -> None:
        """Read all entries again. Raises a DriverError.

        Entries that are missing count as deleted, unless `keep_missing`.
        """
        async with self.attempt.turn():
            if self.is_read and self._mirror is not None:
                await self._mirror.read(keep_missing=keep_missing)

    async def aclose(self) -> None:
        """Stop watching."""
        if self._mirror is not None:
            try:
                await self._mirror.aclose()
            except DriverError as exc:
                _log.warning("could not stop watching %s: %s", self.channel, exc)

    def _on_change(self, key: str, value: bytes | None) -> None:
        node, token = parts_of(key)
        self._on_entry(self, node, token, value)


async def read_room(driver: StateDriver, nodes: set[str], channel: str) -> Room:
    """A channel's members on the live `nodes`, as stored on the bus. Raises a DriverError."""
    room = Room(nodes)
    async for key, value in paced((await driver.state.entries(keys_of(channel))).items()):
        node, token = parts_of(key)
        if (entry := decode_entry(token, value)) is not None:
            room.put(node, token, entry)
    return room
