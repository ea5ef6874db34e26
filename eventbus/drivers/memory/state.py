"""Entries that the drivers of one memory broker share; see `StateStore`."""

import asyncio
import itertools
import logging
from collections.abc import Mapping
from typing import Final

from eventbus.channels import Pattern
from eventbus.drivers.base import (
    Position,
    StateHandler,
)
from eventbus.drivers.state import validate_key
from eventbus.user_code import must_pass

__all__ = ["MemoryState", "MemoryWatch"]


_log = logging.getLogger(__name__)

_ENTRIES_PER_TURN: Final = 1000
"""Entries that are compared before the event loop serves other tasks."""


class MemoryState:
    """The entries, the timers of those with a time to live, and the watches."""

    losses = 0
    """Always 0: nothing is lost within one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watches: dict[int, MemoryWatch] = {}
        self._keys = itertools.count()

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Set an entry."""
        validate_key(key)
        self._values[key] = value
        self._stop_timer(key)
        if ttl_s is not None:
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(max(ttl_s, 1.0), self._end, key)
        self._notify(key, value)

    async def claim(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set an entry unless it has another value."""
        if self._values.get(key, value) != value:
            return False
        await self.put(key, value, ttl_s=ttl_s)
        return True

    async def delete(self, key: str) -> None:
        """Delete an entry."""
        validate_key(key)
        self._end(key)

    def _end(self, key: str) -> None:
        self._stop_timer(key)
        if self._values.pop(key, None) is not None:
            self._notify(key, None)

    async def entries(self, pattern: str) -> Mapping[str, bytes]:
        """The entries whose keys match."""
        matches = Pattern(pattern).match
        found: dict[str, bytes] = {}
        for number, (key, value) in enumerate(list(self._values.items()), 1):
            if matches(key) is not None:
                found[key] = value
            if number % _ENTRIES_PER_TURN == 0:
                await asyncio.sleep(0)
        return found

    async def watch(self, pattern: str, handler: StateHandler) -> "MemoryWatch":
        """Call `handler` with changes from now on."""
        number = next(self._keys)
        watch = self._watches[number] = MemoryWatch(self, number, Pattern(pattern), handler)
        return watch

    def unwatch(self, number: int) -> None:
        """End a watch; ending it twice is harmless."""
        self._watches.pop(number, None)

    def _stop_timer(self, key: str) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()

    def _notify(self, key: str, value: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        for watch in self._watches.values():
            if watch.pattern.match(key) is not None:
                loop.call_soon(watch.receive, key, value)


class MemoryWatch:
    """A watch of entries."""

    position: Position | None = None

    def __init__(
        self, state: MemoryState, number: int, pattern: Pattern, handler: StateHandler
    ) -> None:
        self.pattern = pattern
        self._state = state
        self._number = number
        self._handler: StateHandler | None = handler

    def receive(self, key: str, value: bytes | None) -> None:
        """Call the handler, unless the watch was closed meanwhile."""
        if self._handler is None:
            return
        try:
            self._handler(key, value)
        except BaseException as exc:  # a fault of one watcher must not reach the others
            if must_pass(exc):
                raise
            _log.exception("a watcher of %s failed", self.pattern.text)

    async def aclose(self) -> None:
        """Stop watching."""
        self._handler = None
        self._state.unwatch(self._number)
