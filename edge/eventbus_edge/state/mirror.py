"""Local copies of state entries: watch, read, and read again after the bus has lost entries."""

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.attempts import OutageLog
from eventbus.drivers import StateStore, Subscription
from eventbus.errors import EventBusError
from eventbus.pacing import paced

__all__ = ["Mirror", "Resync"]


_log = logging.getLogger(__name__)

_CHECK_S: Final = 0.1
_RETRY_S: Final = 1.0
_PAUSE_S: Final = 1.0
"""A process that sleeps for so much longer than it meant to was stopped."""

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
        self._reading = asyncio.Lock()
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
        async with self._reading:
            changed: set[str] = set()
            self._changed = changed
            try:
                found = await self._state.entries(self._pattern)
                async for key, value in paced(found.items()):
                    if key not in changed:
                        self._set(key, value)
                if not keep_missing:
                    async for key in paced(self._keys - found.keys()):
                        if key not in changed:
                            self._set(key, None)
            finally:
                self._changed = None

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
    """Synchronizes with the bus after each loss of state, and again soon after."""

    def __init__(
        self,
        version: Callable[[], object],
        known_version: object,
        synchronize: Callable[[bool], Awaitable[None]],
        *,
        settle_s: float,
        what: str,
        every_s: float | None = None,
    ) -> None:
        """When `version()` differs from the last known one, `synchronize(True)` is called.

        The version counts the losses that the driver reports. `synchronize(False)` follows
        `settle_s` seconds later, and then every `every_s` seconds if that is given. The argument
        is `keep_missing`: the other nodes may have suffered the same loss, so entries are stale
        rather than gone until those nodes have had time to write theirs again. `what` names the
        entries in logs.
        """
        self._version = version
        self._known_version = known_version
        self._synchronize = synchronize
        self._settle_s = settle_s
        self._every_s = every_s
        # Also soon after the start: the first read may have happened just after a loss, before
        # other nodes had written their entries again.
        self._due_at = _after(None if every_s is None else min(settle_s, every_s))
        self._what = what

    async def run(self) -> None:
        """Check for losses until cancelled."""
        outage = OutageLog(_log, "%s could be read again", self._what)
        while True:
            wakes_at = time.monotonic() + _CHECK_S
            await asyncio.sleep(_CHECK_S)
            paused_s = time.monotonic() - wakes_at
            if paused_s > _PAUSE_S:  # on the same machine, the other nodes were stopped as well
                self._due_at += paused_s
            try:
                version = self._version()
                if version != self._known_version:
                    await self._synchronize(True)
                    self._known_version = version
                    self._due_at = _after(self._settle_s)
                elif time.monotonic() >= self._due_at:
                    await self._synchronize(False)
                    self._due_at = _after(self._every_s)
            except EventBusError as exc:
                outage.failed("%s may be stale, the bus does not answer: %s", self._what, exc)
                await asyncio.sleep(_RETRY_S)
            else:
                outage.ended()


def _after(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds
