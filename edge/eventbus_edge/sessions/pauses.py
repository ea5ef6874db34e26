"""A process that was stopped, or whose machine slept, and what it must know before it goes on."""

import select
from collections.abc import Iterable
from typing import Final

__all__ = ["PAUSE_S", "Pauses", "closed_by_peer"]


PAUSE_S: Final = 2.0
"""A gap between two turns of the node's clock that is no longer called a busy event loop."""
# Where there is no POLLRDHUP, the hang-up that is reported in any case has to do.
_RDHUP: Final[int] = getattr(select, "POLLRDHUP", 0)


class Pauses:
    """Notices a gap in the times of its calls. Pure; times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._last = now

    def look(self, now: float) -> float:
        """How long the gap before this call was; 0 when it was none to speak of."""
        gap, self._last = now - self._last, max(now, self._last)
        return gap if gap > PAUSE_S else 0.0


def closed_by_peer(filenos: Iterable[int]) -> set[int]:
    """The sockets whose other side has closed them, unread data or not.

    The kernel knows that before the event loop has read up to the end. Where the system has no
    poll(2), nothing is found, and the end is noticed when it is read.
    """
    if not hasattr(select, "poll"):
        return set()
    poll = select.poll()
    for fileno in filenos:
        poll.register(fileno, _RDHUP)
    return {fileno for fileno, _ in poll.poll(0)}
