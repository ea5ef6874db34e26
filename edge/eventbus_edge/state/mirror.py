"""A copy of some of the state's entries that is kept in step with the bus."""

from collections.abc import Callable
from typing import Final

from eventbus.drivers.base import Subscription
from eventbus.drivers.state import StateStore

__all__ = ["Mirror"]


OnChange = Callable[[str, bytes | None], None]
_ABSENT: Final = object()


class Mirror:
    """The entries that match one pattern."""

    def __init__(self, state: StateStore, pattern: str, on_change: OnChange) -> None:
        """`on_change` gets each key whose value has become another: None where it has ended."""
        self.entries: dict[str, bytes] = {}
        self._state = state
        self._pattern = pattern
        self._on_change = on_change
        self._watch: Subscription | None = None
        self._told: set[str] | None = None
        """While entries are read: what was told meanwhile is newer."""

    async def start(self) -> None:
        """Watch, then read: what changes between is told. Raises a DriverError."""
        self._watch = await self._state.watch(self._pattern, self._on_told)
        await self.read(keep_missing=False)

    async def read(self, *, keep_missing: bool) -> None:
        """Read all; with `keep_missing`, what is not there has not ended yet.

        Raises a DriverError.
        """
        told: set[str] = set()
        self._told = told
        try:
            found = await self._state.entries(self._pattern)
        finally:
            self._told = None
        for key in found.keys() - told:
            self._set(key, found[key])
        if not keep_missing:
            for key in self.entries.keys() - found.keys() - told:
                self._set(key, None)

    async def aclose(self) -> None:
        """Watch no more. Raises a DriverError."""
        if self._watch is not None:
            await self._watch.aclose()

    def _on_told(self, key: str, value: bytes | None) -> None:
        if self._told is not None:
            self._told.add(key)
        self._set(key, value)

    def _set(self, key: str, value: bytes | None) -> None:
        if self.entries.get(key, _ABSENT) == (_ABSENT if value is None else value):
            return
        if value is None:
            del self.entries[key]
        else:
            self.entries[key] = value
        self._on_change(key, value)
