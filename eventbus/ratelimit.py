"""Log lines that faults may repeat thousands of times a second, at a limited rate."""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["LOG_INTERVAL_S", "RateLimitedLog"]

LOG_INTERVAL_S: Final = 10.0
"""How often a line is repeated at most, where nobody says otherwise."""


class RateLimitedLog:
    """Logs each kind of line at most once per interval.

    The next line of a kind that is logged ends with how many of its kind were suppressed since the
    last one: `(42 more in the meantime)`.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        interval_s: float = LOG_INTERVAL_S,
        limit: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember up to `limit` kinds; the one logged least recently is forgotten first."""
        self._logger = logger
        self._interval_s = interval_s
        self._limit = limit
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def log(
        self,
        level: int,
        message: str,
        *args: object,
        kind: Hashable = None,
        exc_info: BaseException | None = None,
    ) -> bool:
        """Log a message, formatted as `logging` does; whether it was logged, and not suppressed.

        Lines of the same `kind` count as one; by default, all lines do.
        """
        now = self._clock()
        logged_at, suppressed = self._kinds.get(kind, (float("-inf"), 0))
        if now - logged_at < self._interval_s:
            self._kinds[kind] = (logged_at, suppressed + 1)
            return False
        if suppressed:
            message += " (%d more in the meantime)"
            args = (*args, suppressed)
        self._kinds.pop(kind, None)
        self._kinds[kind] = (now, 0)
        while len(self._kinds) > self._limit:
            del self._kinds[next(iter(self._kinds))]
        self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
        return True

    def warning(self, message: str, *args: object, kind: Hashable = None) -> bool:
        """Log a warning; see `log`."""
        return self.log(logging.WARNING, message, *args, kind=kind)
