"""One timer for all connections: who is due, out of any number, in O(log n)."""

import heapq
import itertools
from collections.abc import Iterator

__all__ = ["Deadlines"]


class Deadlines:
    """Keys and when each is due. A key has one deadline; setting another replaces it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._current: dict[str, int] = {}
        self._numbers = itertools.count()

    def set(self, key: str, when: float) -> None:
        """Make `key` due at `when`."""
        number = next(self._numbers)
        self._current[key] = number
        heapq.heappush(self._heap, (when, number, key))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: str) -> None:
        """Forget a key."""
        self._current.pop(key, None)

    def due(self, now: float) -> Iterator[str]:
        """The keys whose time has come, each once; they have no deadline from then on."""
        while self._heap and self._heap[0][0] <= now:
            _, number, key = heapq.heappop(self._heap)
            if self._current.get(key) == number:
                del self._current[key]
                yield key

    def next(self) -> float | None:
        """When the next key is due (or a replaced one would have been); None when there is none."""
        return self._heap[0][0] if self._heap else None
