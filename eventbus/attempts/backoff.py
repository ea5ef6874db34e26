"""Attempts of one operation: the delays between them, and which callers share a failure."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

__all__ = ["Backoff", "SharedAttempt"]

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


class SharedAttempt:
    """A lock around an attempt that may take long to fail, such as a request to a broker.

    With a plain lock, callers that wait for each other fail one timeout after another: the tenth
    after ten. Here, callers that waited while an attempt failed get its error at once.

        async with self._ensuring.turn():
            if not self._is_ensured:
                await self._ensure()
    """

    __slots__ = ("_error", "_failures", "_lock", "_shared")

    def __init__(self, shared: type[Exception] = Exception) -> None:
        """`shared` is the class of errors that concern everyone who waits, not one caller."""
        self._shared = shared
        self._lock = asyncio.Lock()
        self._failures = 0
        self._error: Exception | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Run the block when it is this caller's turn; callers take turns in order.

        Raises the error of an attempt that failed while this caller waited. The attempt of a
        caller that is cancelled has not failed: the next caller makes its own.
        """
        failures = self._failures
        async with self._lock:
            if self._failures != failures and self._error is not None:
                raise self._error
            try:
                yield
            except self._shared as exc:
                self._failures += 1
                self._error = exc
                raise
            self._error = None

    @property
    def is_taken(self) -> bool:
        """Whether somebody has a turn: an attempt may be in progress."""
        return self._lock.locked()

    def alone(self) -> asyncio.Lock:
        """Excludes attempts while the block runs: `async with attempt.alone():`.

        It runs regardless of how the attempts before it ended.
        """
        return self._lock
