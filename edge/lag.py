"""How far behind a node is on the bus, by a word that it sends to itself. Pure."""

__all__ = ["BusLag"]


class BusLag:
    """The time from a node's word to its own hearing of it.

    The word queues behind all that the bus holds for the node, so that it tells of any delay there,
    whatever the driver.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._under_way: float | None = None

    def sent(self, now: float) -> None:
        """A word is sent; while an earlier one is under way, that one counts."""
        if self._under_way is None:
            self._under_way = now

    def heard(self, now: float) -> None:
        """A word has come back."""
        if self._under_way is not None:
            self._seconds = now - self._under_way
            self._under_way = None

    def seconds(self, now: float) -> float:
        """What the last word took; or since when one is under way, where that is longer."""
        if self._under_way is None:
            return self._seconds
        return max(self._seconds, now - self._under_way)
