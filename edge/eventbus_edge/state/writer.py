"""Writes a node's own entries to the state store, and renews them before they expire."""

import asyncio
import logging
import random
import time
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
)
from typing import Final

from eventbus.attempts import Backoff, RateLimitedLog
from eventbus.drivers import StateDriver
from eventbus.errors import EventBusError
from eventbus.pacing import paced
from eventbus_edge.background import Background
from eventbus_edge.deadlines import Deadlines

__all__ = ["ENTRY_TTL_S", "EntryWriter"]


_log = logging.getLogger(__name__)

ENTRY_TTL_S: Final = 1800.0
"""Entries of a dead node do not count; after this time they are deleted too."""
_MAX_WRITES: Final = 256
_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 5.0


class EntryWriter:
    """The entries that this node wants on the bus; the latest value of each key gets there.

    Each key has at most one write in progress, and many keys are written concurrently. A failed
    write is retried until it succeeds.
    """

    def __init__(
        self,
        driver: StateDriver,
        what: str = "presence",
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """`what` names the entries in logs. Writes wait while `may_write` returns False."""
        self._driver = driver
        self._what = what
        self._may_write = may_write
        self._own: dict[str, bytes] = {}
        self._due: dict[str, None] = {}
        self._busy: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._renewals = Deadlines()
        # Twice the number of writes: a task that ends starts the next one.
        self._tasks = Background(2 * _MAX_WRITES, lambda: None)
        self._faults = RateLimitedLog(_log)
        self._closed = False

    def __len__(self) -> int:
        return len(self._own)

    def put(self, key: str, value: bytes) -> None:
        """Set an entry."""
        if self._own.get(key) != value or key in self._due:
            self._own[key] = value
            self._write(key)

    def delete(self, key: str) -> None:
        """Delete an entry."""
        if self._own.pop(key, None) is not None:
            self._renewals.cancel(key)
            self._write(key)

    async def written(self, key: str, seconds: float) -> bool:
        """Whether the latest value of a key is on the bus within so many seconds."""
        if key not in self._busy and key not in self._due:
            return True
        event = self._waiting.setdefault(key, asyncio.Event())
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True

    async def flush(self, seconds: float) -> bool:
        """Whether all pending writes are done within so many seconds."""
        deadline = time.monotonic() + seconds
        for key in {*self._due, *self._busy}:
            if not await self.written(key, max(0.0, deadline - time.monotonic())):
                return False
        return True

    async def refresh(self, now: float) -> None:
        """Write entries again that would expire soon."""
        async for key in paced(self._renewals.due(now)):
            if key in self._own:
                self._write(key)

    async def repair(self, found: Mapping[str, bytes]) -> None:
        """Write entries that differ from those found on the bus, and delete unwanted ones."""
        async for key in paced((*self._own, *found)):
            if self._own.get(key) != found.get(key):
                self._write(key)

    def restore(self, key: str, found: bytes | None) -> None:
        """Write an entry again if another process has changed it to what was `found`."""
        if self._own.get(key) != found and key not in self._busy:
            self._write(key)

    async def aclose(self) -> None:
        """Stop writing."""
        self._closed = True
        await self._tasks.aclose()

    def _write(self, key: str) -> None:
        self._due[key] = None
        self._start((key,))

    def _start(self, keys: Iterable[str]) -> None:
        for key in keys:
            if self._closed or len(self._busy) >= _MAX_WRITES:
                return
            if key not in self._busy:
                self._busy.add(key)
                self._tasks.start(self._write_key(key), f"{self._what}: entry {key}")

    async def _write_key(self, key: str) -> None:
        backoff = Backoff(_PAUSE_S, _MAX_PAUSE_S)
        try:
            while key in self._due and not self._closed:
                if not self._may_write():
                    await asyncio.sleep(_PAUSE_S)
                    continue
                del self._due[key]
                try:
                    await self._write_once(key)
                except Exception as exc:  # noqa: BLE001 - retried, or the entry would be lost
                    self._due[key] = None
                    self._report(exc)
                    await asyncio.sleep(backoff.next())
            if (event := self._waiting.pop(key, None)) is not None:
                event.set()
        finally:
            self._busy.discard(key)
            self._start_next()

    def _start_next(self) -> None:
        room = _MAX_WRITES - len(self._busy)
        waiting = (key for key in self._due if key not in self._busy)
        self._start([key for key, _ in zip(waiting, range(room), strict=False)])

    async def _write_once(self, key: str) -> None:
        state = self._driver.state
        value = self._own.get(key)
        if value is None:
            await state.delete(key)
            return
        await state.put(key, value, ttl_s=ENTRY_TTL_S)
        # Jitter, so that entries that were created together are not all renewed together.
        wait = ENTRY_TTL_S / 3 * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._renewals.set(key, time.monotonic() + wait)

    def _report(self, exc: Exception) -> None:
        self._faults.log(
            logging.WARNING,
            "%s: %d entries cannot be written yet: %s",
            self._what,
            len(self._due),
            exc,
            exc_info=None if isinstance(exc, EventBusError) else exc,
        )
