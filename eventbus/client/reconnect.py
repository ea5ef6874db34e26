"""Whether and when a client connects again, by how its connection ended. Pure."""

import random
from collections.abc import Callable
from typing import Final

__all__ = ["FAILED", "Reconnect"]

FAILED: Final = 1006
"""RFC 6455, 7.4.1: the code of a connection that ended without one."""


class Reconnect:
    """Counts failures, and gives each its delay."""

    def __init__(
        self, first_s: float, last_s: float, uniform: Callable[[float, float], float] | None = None
    ) -> None:
        """`uniform(a, b)` gives the jitter: that of `random` by default."""
        self.failures = 0
        self._first_s = first_s
        self._last_s = last_s
        self._uniform = uniform or random.uniform

    def steady(self) -> None:
        """A connection has lived long enough for the next delay to be a first one."""
        self.failures = 0

    def after(self, code: int, retry_after_s: float = 0.0) -> float | None:
        """The seconds to wait after a connection ended with that code; None to stay away.

        The bands of docs/wire-protocol.md, "Close codes": 40xx never, 42xx at once, jittered, and
        all others after a back-off that doubles. What says "at once" again and again backs off too.
        A server's Retry-After holds where it is longer, up to the longest delay.
        """
        if 4000 <= code < 4100:
            return None
        at_once = 4200 <= code < 4300 and self.failures == 0
        bound = min(self._last_s, self._first_s * 2.0 ** min(self.failures, 64))
        delay = self._uniform(0.0, self._first_s) if at_once else self._uniform(bound / 2, bound)
        self.failures += 1
        return max(delay, min(retry_after_s, self._last_s))
