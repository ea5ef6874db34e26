"""Simulate nodes, clients and faults, and check the promises after each step.

Exits with 1 if a promise is broken, and prints a short test that breaks it.
"""

import argparse
import secrets
import sys
import time

from tests.simulation.breaks import BREAKS
from tests.simulation.promises import Broken
from tests.simulation.reality import quiet_collection
from tests.simulation.schedule import as_test, make, shrink
from tests.simulation.world import run

PER_RUN = 10_000


def say(text):
    print(text, flush=True)  # noqa: T201 - a program


def main():
    """Run until a promise is broken, or the steps or the time are used up. 1 if one was broken."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description=f"{__doc__}\nDefaults are in brackets."
    )
    add = parser.add_argument
    add("--steps", type=int, default=1_000_000, help="number of steps in all [1000000]")
    add("--seconds", type=float, default=float("inf"), help="stop after this time [no limit]")
    add("--seed", type=int, help="seed of the first run [random]")
    add("--per-run", type=int, default=PER_RUN, help=f"number of steps per run [{PER_RUN}]")
    add("--shrink", type=float, default=120.0, help="seconds for shortening a failing run [120]")
    add(
        "--break", dest="broken", choices=BREAKS, metavar="NAME",
        help="break the code on purpose, which must be noticed: " + ", ".join(BREAKS),
    )  # fmt: skip
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    say(f"seed {seed}")
    if options.broken:
        BREAKS[options.broken]()
    return _simulate(seed, options)


def _simulate(seed, options):
    began, used = time.perf_counter(), time.process_time()
    steps = arrivals = runs = 0
    seconds = 0.0
    while steps < options.steps and time.perf_counter() - began < options.seconds:
        batch = make(seed + runs, min(options.per_run, options.steps - steps))
        with quiet_collection():
            try:
                outcome = run(batch)
            except Broken as broken:
                return _report(seed + runs, batch, broken, options.shrink)
        runs += 1
        steps += len(batch)
        arrivals += outcome.arrivals
        seconds += outcome.seconds
    used = time.process_time() - used
    say(
        f"{steps:,} steps in {runs} runs, {arrivals:,} messages that reached nodes, "
        f"{seconds:,.0f} simulated seconds: all promises held. {used:.1f} s of CPU time, "
        f"{steps / used * 60:,.0f} steps per minute",
    )
    return 0


def _report(seed, steps, broken, seconds):
    say(f"seed {seed}, step {'last' if broken.at is None else broken.at}: {broken}")
    if seconds:
        steps = shrink(steps, broken, seconds=seconds)
        say(f"shrunk to {len(steps)} steps:\n\n{as_test(steps, broken)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
