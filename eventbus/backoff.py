"""How long to wait before the next attempt: exponential back-off with jitter."""

import random
from collections.abc import Callable

__all__ = ["Backoff"]

_MAX_EXPONENT = 64
"""Keeps the power finite; any limit has been reached long before."""


class Backoff:
    """Delays between the attempts of one operation.

    The delay before attempt n is `first * factor ** n`, at most `limit`. Jitter spreads clients
    that failed at the same moment: each delay is random between `(1 - jitter)` of it and the whole.

        backoff = Backoff(0.1, 5.0)
        while not await connect():
            await asyncio.sleep(backoff.next())
    """

    __slots__ = ("_attempt", "_factor", "_first", "_jitter", "_limit", "_uniform")

    def __init__(
        self,
        first: float,
        limit: float,
        *,
        factor: float = 2.0,
        jitter: float = 0.5,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Start with `first` seconds.

        `jitter` is from 0 (none) to 1 (anything from zero up). `uniform(a, b)` draws a number.
        """
        if not (0 <= first <= limit and factor >= 1 and 0 <= jitter <= 1):
            raise ValueError(f"no back-off: {first=}, {limit=}, {factor=}, {jitter=}")
        self._first = first
        self._limit = limit
        self._factor = factor
        self._jitter = jitter
        self._uniform = uniform
        self._attempt = 0

    def next(self) -> float:
        """Seconds to wait now; the next delay is longer."""
        delay = self.delay(self._attempt)
        self._attempt += 1
        return delay

    def delay(self, attempt: int) -> float:
        """Seconds to wait after so many attempts, counted from 0; changes nothing."""
        longest = min(self._limit, self._first * self._factor ** min(attempt, _MAX_EXPONENT))
        return self._uniform(longest * (1 - self._jitter), longest)

    def reset(self) -> None:
        """Begin again with the shortest delay: an attempt has succeeded."""
        self._attempt = 0
