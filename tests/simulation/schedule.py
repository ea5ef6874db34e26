"""Makes lists of steps from a seed, and shrinks them to the few steps that break a promise."""

import itertools
import random
import time

from tests.simulation.promises import Broken
from tests.simulation.reality import quiet_collection
from tests.simulation.world import run

WEIGHTS = {
    "arrive": 1000,
    "next": 1000,
    "deliver": 40,
    "wait": 15,
    "pub": 260,
    "join": 60,
    "leave": 16,
    "connect": 50,
    "drop": 16,
    "vol": 40,
    "whisper": 25,
    "update": 8,
    "lose": 10,
    "reset": 6,
    "stall": 2,
    "resume": 12,
    "slow": 5,
    "read": 15,
    "revoke": 3,
    "lift": 3,
    "login": 8,
    "kill": 1,
    "start": 10,
    "freeze": 1.2,
    "thaw": 12,
    "restart": 0.5,
    "back": 0.5,
    "wipe": 0.2,
    "settle": 0.2,
}
"""The relative frequency of each step."""
_NAMES = list(WEIGHTS)
_SUMS = list(itertools.accumulate(WEIGHTS.values()))


def make(seed, count):
    """The steps of a seed."""
    chance = random.Random(seed)
    names = chance.choices(_NAMES, cum_weights=_SUMS, k=count)
    return [(name, chance.randrange(24), chance.randrange(24)) for name in names]


def broken_by(steps, *, to_the_end=True):
    """How a list of steps breaks a promise; None if all hold."""
    with quiet_collection():
        try:
            run(steps, to_the_end=to_the_end)
        except Broken as exc:
            return exc.with_traceback(None)
        return None


def shrink(steps, broken, *, seconds=120.0):
    """A shorter list of steps that breaks the same promise (delta debugging, Zeller 2002).

    First it drops everything after the failing step, and lets the rest happen in its usual order if
    the promise still breaks. Then it drops parts of the list, from large to small.
    Then it sets the numbers of each step to 0 where that changes nothing. It takes at most
    `seconds`.
    """
    until = time.perf_counter() + seconds
    is_early = broken.at is not None
    if is_early:
        steps = steps[: broken.at + 1]

    def breaks(some):
        other = broken_by(some, to_the_end=not is_early)
        return other is not None and other.promise == broken.promise

    if breaks(coarse := _coarser(steps)):
        steps = coarse
    size = max(1, len(steps) // 2)
    while time.perf_counter() < until:
        start, is_shorter = 0, False
        while start < len(steps) and time.perf_counter() < until:
            shorter = steps[:start] + steps[start + size :]
            if breaks(shorter):
                steps, is_shorter = shorter, True
            else:
                start += size
        if size == 1 and not is_shorter:
            break
        size = max(1, size // 2)
    for number, (name, a, b) in enumerate(steps):
        for simpler in ((name, 0, 0), (name, a, 0), (name, 0, b)):
            if time.perf_counter() > until or (a, b) == simpler[1:]:
                continue
            if breaks(changed := [*steps[:number], simpler, *steps[number + 1 :]]):
                steps = changed
                break
    return steps


def _coarser(steps):
    """The same steps, with one wait in place of all that happens by itself between two others."""
    coarse = []
    for step in steps:
        if step[0] not in ("arrive", "next", "deliver", "wait"):
            coarse.append(step)
        elif not coarse or coarse[-1][0] != "wait":
            coarse.append(("wait", 12, 0))
    return coarse


def as_test(steps, broken):
    """A test to paste into test_simulation.py."""
    lines = "\n".join(f"        {step}," for step in steps)
    words = "".join(c if c.isalnum() else "_" for c in broken.promise.partition(":")[2].strip())
    return (
        f"def test_{words}():\n    # {broken}\n    run(\n        [\n"
        + lines.replace("        (", "            (")
        + "\n        ]\n    )\n"
    )
