"""The last minutes of a node's numbers, for dashboards that begin to watch. Pure."""

from collections import deque
from collections.abc import (
    Iterable,
    Sequence,
)
from itertools import zip_longest
from typing import Final

import msgspec

from eventbus.cluster import Question

__all__ = ["MAX_STEPS", "RECENT", "STEP_S", "AskRecent", "Recent", "RecentSteps", "Step", "merge"]


STEP_S: Final = 2.0
MAX_STEPS: Final = 150
"""Five minutes: as much as the dashboard's charts show."""


class Step(msgspec.Struct, array_like=True, frozen=True):
    """One step of time: connections at its end, and what passed in it.

    `latencies` are counts per bucket; they are empty if no message was delivered.
    """

    connections: int
    messages_in: float
    messages_out: float
    latencies: Sequence[int]


class AskRecent(msgspec.Struct, frozen=True):
    """A question for a node's last minutes."""


class RecentSteps(msgspec.Struct, frozen=True):
    """A node's last minutes, or the cluster's: the oldest step first, the last one ends now."""

    steps: Sequence[Step]


RECENT: Final = Question("recent", AskRecent, RecentSteps)


class Recent:
    """Keeps the last MAX_STEPS steps of one node."""

    def __init__(self, now: float) -> None:
        """`now` is in seconds of a monotonic clock."""
        self._ended = now
        self._before = Step(0, 0, 0, ())
        self._steps: deque[Step] = deque(maxlen=MAX_STEPS)

    @property
    def steps(self) -> list[Step]:
        """The steps so far, the oldest first."""
        return list(self._steps)

    def take(self, now: float, total: Step) -> None:
        """Add what was counted since the last step, if that has been over for STEP_S.

        `total` counts since the node's start. After a pause of the process its messages are
        spread evenly over the steps that it took, and their latencies belong to the last one.
        """
        passed = int((now - self._ended) / STEP_S)
        if passed < 1:
            return
        before, self._before = self._before, total
        self._ended += passed * STEP_S
        messages_in = round((total.messages_in - before.messages_in) / passed, 3)
        messages_out = round((total.messages_out - before.messages_out) / passed, 3)
        delivered = _differences(total.latencies, before.latencies)
        quiet = Step(total.connections, messages_in, messages_out, ())
        self._steps.extend(quiet for _ in range(min(passed, MAX_STEPS) - 1))
        self._steps.append(msgspec.structs.replace(quiet, latencies=delivered))


def merge(nodes: Iterable[Sequence[Step]]) -> list[Step]:
    """The sum over nodes, step by step from now backwards; a younger node has fewer steps."""
    merged: list[Step] = []
    for steps in nodes:
        pairs = zip_longest(merged, reversed(steps))
        merged = [_sum(one, other) for one, other in pairs]
    return merged[::-1]


def _sum(one: Step | None, other: Step | None) -> Step:
    if one is None or other is None:
        found = one or other
        assert found is not None, "zip_longest ends with the longest"
        return found
    return Step(
        one.connections + other.connections,
        round(one.messages_in + other.messages_in, 3),
        round(one.messages_out + other.messages_out, 3),
        [a + b for a, b in zip_longest(one.latencies, other.latencies, fillvalue=0)],
    )


def _differences(after: Sequence[int], before: Sequence[int]) -> Sequence[int]:
    counts = [a - b for a, b in zip_longest(after, before, fillvalue=0)]
    return counts if any(counts) else ()
