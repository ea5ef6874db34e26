"""Simulate nodes, clients and faults, and check the promises after each step.

A step is one decision of the scheduler: one message reaches a node, the timers of one node are due,
an entry expires, a client or a publisher does something, something fails or recovers. A few steps
let more happen: a node receives several messages at once, or time passes for up to two seconds.
Steps that find nothing to do are not counted. Exits with 1 if a promise is broken, and prints a
short test that breaks it.
"""

import argparse
import concurrent.futures
import itertools
import secrets
import sys
import time
from typing import NamedTuple

from tests.simulation.breaks import BREAKS
from tests.simulation.promises import Broken
from tests.simulation.reality import quiet_collection
from tests.simulation.schedule import as_test, make, shrink
from tests.simulation.world import Outcome, run

PER_RUN = 30_000


class Run(NamedTuple):
    """One run: its outcome, or how it broke a promise."""

    seed: int
    count: int
    outcome: Outcome | None
    broken: Broken | None
    cpu_s: float


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
    add("--processes", type=int, default=1, help="number of processes, each with other seeds [1]")
    add("--shrink", type=float, default=120.0, help="seconds for shortening a failing run [120]")
    add(
        "--break", dest="broken", choices=BREAKS, metavar="NAME",
        help="break the code on purpose, which must be noticed: " + ", ".join(BREAKS),
    )  # fmt: skip
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    say(f"seed {seed}")
    _break(options.broken)
    return _simulate(seed, options)


def _break(name):
    if name:
        BREAKS[name]()


def _simulate(seed, options):
    began = time.perf_counter()
    runs, broken = [], None
    for one in _runs(seed, options, began + options.seconds):
        if one.broken is not None:
            broken = broken or one
        else:
            runs.append(one)
    if broken is not None:
        return _report(broken, options.shrink)
    done, arrivals = (sum(each.outcome[i] for each in runs) for i in (0, 1))
    cpu = sum(each.cpu_s for each in runs)
    say(
        f"{done:,} steps in {len(runs)} runs: all promises held. {arrivals:,} messages reached "
        f"nodes in {sum(each.outcome.seconds for each in runs):,.0f} simulated seconds. "
        f"{cpu:.1f} s of CPU time, {done / cpu * 60:,.0f} steps per minute of CPU time"
    )
    if options.processes > 1:
        wall = time.perf_counter() - began
        say(f"{options.processes} processes: {done / wall * 60:,.0f} steps per minute")
    return 0


def _runs(seed, options, until):
    """The runs as they end, until a promise is broken or the steps or the time are used up."""
    full, rest = divmod(options.steps, options.per_run)
    counts = itertools.chain(itertools.repeat(options.per_run, full), [rest] if rest else [])
    works = enumerate(counts, seed)
    if options.processes == 1:
        for work in works:
            one = _run(*work)
            yield one
            if one.broken is not None or time.perf_counter() > until:
                return
        return
    with concurrent.futures.ProcessPoolExecutor(
        options.processes, initializer=_break, initargs=(options.broken,)
    ) as pool:
        running = {pool.submit(_run, *work) for work in itertools.islice(works, options.processes)}
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for one in done:
                yield (result := one.result())
                if result.broken is not None or time.perf_counter() > until:
                    works = iter(())
                running.update(pool.submit(_run, *work) for work in itertools.islice(works, 1))


def _run(seed, count):
    used = time.process_time()
    outcome = broken = None
    with quiet_collection():
        try:
            outcome = run(make(seed, count))
        except Broken as exc:
            broken = exc.with_traceback(None)
    return Run(seed, count, outcome, broken, time.process_time() - used)


def _report(one, seconds):
    broken = one.broken
    say(f"seed {one.seed}, step {'last' if broken.at is None else broken.at}: {broken}")
    if seconds:
        steps = shrink(make(one.seed, one.count), broken, seconds=seconds)
        say(f"shrunk to {len(steps)} steps:\n\n{as_test(steps, broken)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
