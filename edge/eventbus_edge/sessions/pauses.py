"""Detects that the process was stopped or its machine slept, and what happened meanwhile."""

import select
from collections.abc import Iterable
from typing import Final

__all__ = ["PAUSE_S", "Pauses", "closed_by_peer"]


PAUSE_S: Final = 2.0
"""A gap between two turns of the clock that counts as a pause, not as a busy event loop."""
# Without POLLRDHUP, poll still reports hang-ups (POLLHUP).
_RDHUP: Final[int] = getattr(select, "POLLRDHUP", 0)


class Pauses:
    """Notices a gap in the times of its calls. Pure; times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._last = now

    def check(self, now: float) -> float:
        """The length of the gap before this call; 0 if it was short."""
        gap, self._last = now - self._last, max(now, self._last)
        return gap if gap > PAUSE_S else 0.0


def closed_by_peer(filenos: Iterable[int]) -> set[int]:
    """The sockets that their peers have closed, even if unread data is left.

    The kernel knows this before the event loop reads the end. On systems without poll(2), nothing
    is found, and the end is noticed when it is read.
    """
    if not hasattr(select, "poll"):
        return set()
    poll = select.poll()
    for fileno in filenos:
        poll.register(fileno, _RDHUP)
    return {fileno for fileno, _ in poll.poll(0)}
