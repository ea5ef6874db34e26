"""The limits of one connection, and the pace of its actions. Pure.

Times are monotonic seconds.
"""

import enum
from typing import (
    Final,
    NamedTuple,
)

from eventbus_edge.access import TokenBucket

__all__ = [
    "ANSWER_BYTES_PER_ACTION",
    "BYTES_PER_ACTION",
    "STRIKES",
    "Pace",
    "SessionLimits",
    "Verdict",
]


STRIKES: Final = 100
"""The cost of refused actions without a rest between them, after which a connection is closed."""
BYTES_PER_ACTION: Final = 16 * 1024
"""A command costs one more action per so many bytes, inflated."""
ANSWER_BYTES_PER_ACTION: Final = 64 * 1024
"""A command costs one more action per so many bytes of its answer."""


class SessionLimits(NamedTuple):
    """What a connection may do; the defaults are documented with the wire protocol."""

    heartbeat_s: float = 25.0
    max_channels: int = 100
    max_whisper_bytes: int = 10 * 1024
    token_required: bool = False
    token_timeout_s: float = 10.0
    token_grace_s: float = 10.0
    token_leeway_s: float = 0.0
    actions_per_s: float = 50.0
    action_burst: int = 100


class Verdict(enum.Enum):
    """What happens to an action."""

    SERVE = "serve"
    REFUSE = "refuse"
    END = "end"
    """Refuse it, and close the connection after too many refusals."""


class Pace:
    """The actions of one connection. Refusals are counted, too, until its bucket is full again.

    Every frame is an action, whatever its kind; large and expensive commands cost several.
    """

    __slots__ = ("_bucket", "_strikes")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._bucket = TokenBucket(rate, burst, now)
        self._strikes = 0.0

    def judge(self, now: float, cost: float = 1.0) -> Verdict:
        """Count one action, which costs as much as `cost` plain ones."""
        if self._strikes and self._bucket.is_full(now):
            self._strikes = 0.0
        if self._bucket.take(now, cost):
            return Verdict.SERVE
        return self._strike(cost)

    def judge_all(self, now: float, count: int) -> tuple[int, Verdict]:
        """Count plain actions that came together; returns how many to serve, and the last verdict.

        Those that are refused cost almost nothing.
        """
        verdict = Verdict.SERVE
        for served in range(count):
            verdict = self.judge(now)
            if verdict is not Verdict.SERVE:
                return served, self._strike(count - served - 1)
        return count, verdict

    def _strike(self, cost: float) -> Verdict:
        self._strikes += cost
        return Verdict.END if self._strikes >= STRIKES else Verdict.REFUSE

    def charge(self, now: float, cost: float) -> None:
        """Count further cost of an action that was served."""
        self._bucket.charge(now, cost)
