"""Log lines that faults may repeat thousands of times a second, at a limited rate."""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["LOG_INTERVAL_S", "OutageLog", "RateLimitedLog", "is_power_of_two"]

LOG_INTERVAL_S: Final = 10.0
"""How often a line is repeated at most, by default."""


def is_power_of_two(count: int) -> bool:
    """Whether to log the `count`th of many alike: the 1st, 2nd, 4th, 8th, …"""
    return count.bit_count() == 1


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


class OutageLog:
    """Logs the faults of something unavailable, and once that it is back, and after how long.

        outage = OutageLog(_log, "the keys of %s are read again", address)
        outage.failed("no keys from %s: %s", address, exc)
        outage.ended()  # "the keys of … are read again, after 12.5 s"

    The same fault is logged again after ten seconds at the earliest.
    """

    __slots__ = ("_args", "_back", "_clock", "_faults", "_level", "_logger", "_since")

    def __init__(
        self,
        logger: logging.Logger,
        back: str,
        *args: object,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`back` and `args` are the last line, without the duration; `level` is its level."""
        self._level = level
        self._logger = logger
        self._back = back
        self._args = args
        self._clock = clock
        self._faults = RateLimitedLog(logger, clock=clock)
        self._since: float | None = None

    def failed(self, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Log a fault; the first one begins the outage."""
        self.begin()
        self._faults.log(level, message, *args, kind=message % args)

    def begin(self) -> None:
        """Begin the outage, unless it has begun; nothing is logged."""
        if self._since is None:
            self._since = self._clock()

    def ended(self) -> None:
        """Log that the outage is over, if there was one."""
        if self._since is not None:
            seconds, self._since = self._clock() - self._since, None
            line = f"{self._back}, after %.1f s"
            self._logger.log(self._level, line, *self._args, seconds)
