"""The faults of a run and their order, which depend only on the seed. Pure."""

import random
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Kind", "Step", "make_plan"]


class Kind(NamedTuple):
    """A fault as the plan sees it."""

    name: str
    takes_s: float
    """About how long it takes, from its start until everything works again."""


class Step(NamedTuple):
    """One fault of a plan."""

    number: int
    fault: str
    pause_s: float
    """How long to wait before it."""
    seed: str
    """The seed for the fault's own random choices, such as which node."""


def make_plan(
    seed: int, kinds: Sequence[Kind], seconds: float, pause_s: tuple[float, float] = (1.0, 4.0)
) -> list[Step]:
    """The order of faults for a run of about that many seconds.

    Each fault comes at least once, and all come once before any comes again. The order is shuffled
    each time. Raises ValueError if there are no faults.
    """
    if not kinds:
        raise ValueError("a plan needs at least one fault")
    choose = random.Random(seed)  # noqa: S311 - repeatable on purpose
    steps: list[Step] = []
    left_s = seconds
    while left_s > 0:
        for kind in choose.sample(kinds, len(kinds)):
            pause = choose.uniform(*pause_s)
            left_s -= pause + kind.takes_s
            if left_s < 0 and len(steps) >= len(kinds):
                return steps
            number = len(steps)
            steps.append(Step(number, kind.name, pause, f"{seed}/{number}/{kind.name}"))
    return steps
