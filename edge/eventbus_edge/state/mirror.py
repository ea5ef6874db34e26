"""Local copies of state entries: watch, read, and read again after the bus has lost entries."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.drivers.base import Subscription
from eventbus.drivers.state import StateDriver, StateStore
from eventbus.errors import EventBusError

__all__ = ["Mirror", "Resync"]


_log = logging.getLogger(__name__)

_CHECK_S: Final = 0.1
_RETRY_S: Final = 1.0

OnEntry = Callable[[str, bytes | None], None]


class Mirror:
    """Reports the entries that match one pattern: all of them first, then each change.

    A change that arrives while entries are read is newer than what is read.
    """

    def __init__(self, state: StateStore, pattern: str, on_entry: OnEntry) -> None:
        """`on_entry` gets each key and its value; None when the entry was deleted or expired.

        It may get a value that it already knows.
        """
        self._state = state
        self._pattern = pattern
        self._on_entry = on_entry
        self._keys: set[str] = set()
        self._watch: Subscription | None = None
        self._changed: set[str] | None = None
        """The keys that changed since the current read began; None while nothing is read."""

    async def start(self) -> None:
        """Watch, then read, so that no change in between is missed. Raises a DriverError.

        After an error it can be called again.
        """
        if self._watch is None:
            self._watch = await self._state.watch(self._pattern, self._on_change)
        await self.read(keep_missing=False)

    async def read(self, *, keep_missing: bool) -> None:
        """Read all entries. Raises a DriverError.

        Entries that were not found are reported as deleted, unless `keep_missing`.
        """
        changed: set[str] = set()
        self._changed = changed
        try:
            found = await self._state.entries(self._pattern)
        finally:
            self._changed = None
        for key in found.keys() - changed:
            self._set(key, found[key])
        if not keep_missing:
            for key in self._keys - found.keys() - changed:
                self._set(key, None)

    async def aclose(self) -> None:
        """Stop watching. Raises a DriverError."""
        if self._watch is not None:
            await self._watch.aclose()

    def _on_change(self, key: str, value: bytes | None) -> None:
        if self._changed is not None:
            self._changed.add(key)
        self._set(key, value)

    def _set(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._keys.discard(key)
        else:
            self._keys.add(key)
        self._on_entry(key, value)


class Resync:
    """Synchronizes with the bus after each loss of state that the driver reports."""

    def __init__(
        self,
        driver: StateDriver,
        known_losses: int,
        synchronize: Callable[[bool], Awaitable[None]],
        *,
        settle_s: float,
        what: str,
    ) -> None:
        """After each loss beyond `known_losses`, `synchronize(True)` is called.

        `synchronize(False)` follows `settle_s` seconds later. The argument is `keep_missing`: the
        other nodes may have suffered the same loss, so entries are stale rather than gone until
        those nodes have had time to write theirs again. `what` names the entries in logs.
        """
        self._driver = driver
        self._known_losses = known_losses
        self._synchronize = synchronize
        self._settle_s = settle_s
        self._settled_at: float | None = None
        self._what = what

    async def run(self) -> None:
        """Check for losses until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_S)
            try:
                losses = self._driver.state.losses
                if losses != self._known_losses:
                    await self._synchronize(True)
                    self._known_losses = losses
                    self._settled_at = time.monotonic() + self._settle_s
                elif self._settled_at is not None and time.monotonic() >= self._settled_at:
                    await self._synchronize(False)
                    self._settled_at = None
            except EventBusError as exc:
                _log.warning("%s may be stale, the bus does not answer: %s", self._what, exc)
                await asyncio.sleep(_RETRY_S)
