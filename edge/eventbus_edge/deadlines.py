"""Deadlines of any number of keys, with O(log n) operations: one timer for all connections."""

import heapq
import itertools
from collections.abc import Iterator

__all__ = ["Deadlines"]


class Deadlines:
    """Keys with one deadline each; setting another one replaces it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._current: dict[str, int] = {}
        self._numbers = itertools.count()

    def __contains__(self, key: str) -> bool:
        return key in self._current

    def set(self, key: str, when: float) -> None:
        """Make `key` due at `when`."""
        number = next(self._numbers)
        self._current[key] = number
        heapq.heappush(self._heap, (when, number, key))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: str) -> None:
        """Remove a key's deadline."""
        self._current.pop(key, None)

    def due(self, now: float) -> Iterator[str]:
        """The keys that are due at `now`; their deadlines are removed."""
        while self._heap and self._heap[0][0] <= now:
            _, number, key = heapq.heappop(self._heap)
            if self._current.get(key) == number:
                del self._current[key]
                yield key

    def next(self) -> float | None:
        """The time of the next deadline, which may have been replaced or cancelled; or None."""
        return self._heap[0][0] if self._heap else None
