"""Whether the far end is still there, by what was heard of it. Pure, without a clock."""

import enum
from typing import Final

__all__ = ["Liveness", "Verdict"]

ASK_AFTER: Final = 1.25
"""In heartbeats. An edge asks a silent client after one, so that an idle connection is not idle."""
MAX_ANSWER_S: Final = 10.0


class Verdict(enum.Enum):
    """What is to be done."""

    WAIT = enum.auto()
    ASK = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """A far end that is silent is asked, and given up when it does not answer."""

    def __init__(self, heartbeat_s: float, now: float) -> None:
        """`heartbeat_s` is the edge's own; times are monotonic seconds."""
        self.ask_after_s = ASK_AFTER * heartbeat_s
        self.answer_s = min(heartbeat_s, MAX_ANSWER_S)
        self._heard_at = now
        self._asked_at: float | None = None
        self._looked_at = now

    @property
    def look_every_s(self) -> float:
        """How often to call `look`."""
        return self.answer_s / 4

    def heard(self, now: float) -> None:
        """Something came, of whatever kind."""
        self._heard_at = now
        self._asked_at = None

    def look(self, now: float) -> Verdict:
        """Look at the silence so far."""
        slept, self._looked_at = now - self._looked_at > 2 * self.look_every_s, now
        if slept:
            # It was this process that was not listening: what came meanwhile is still unread.
            self._heard_at, self._asked_at = max(self._heard_at, now - self.ask_after_s), None
        if self._asked_at is not None:
            return Verdict.DEAD if now - self._asked_at >= self.answer_s else Verdict.WAIT
        if now - self._heard_at >= self.ask_after_s:
            self._asked_at = now
            return Verdict.ASK
        return Verdict.WAIT
