"""Compares eventbus with its peers on this machine.

    scripts/bench                             everything, five runs: an hour and a half
    scripts/bench --quick                     one short run, to see that everything works
    scripts/bench --only a,c --peers ws,bun --runs 3
    scripts/bench --counted                   counts of work instead of times, as in CI

A server runs on one core, the load generator on another. In each run, all systems are measured one
after another, with the same clients, channels, frames and messages. Prints a table, and writes
JSON and plots to build/bench/.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from scripts.benchmark import counted
from scripts.benchmark.building import BUILT, compile_programs, install_node, install_python
from scripts.benchmark.cases import CASES, LETTERS, Case
from scripts.benchmark.machine import Cores, describe
from scripts.benchmark.peers import PEERS
from scripts.benchmark.peers.base import Peer, Site
from scripts.benchmark.results import LIMIT, OURS, Results, System
from scripts.benchmark.workloads import FRAME_BYTES, Bench, Options

RUNS: Final = 5
_OPEN_FILES: Final = 20_000


def main() -> int:
    """Measure, and print the tables. Returns 1 if something could not be measured."""
    given = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends all programs
    resource.setrlimit(resource.RLIMIT_NOFILE, _open_files())
    if given.counted:
        return counted.main()
    seconds = given.seconds or (1.0 if given.quick else 5.0)
    options = Options(seconds=seconds, scale=given.scale)
    cases = [case for case in CASES if case.letter in given.only]
    try:
        return measure(cases, given.peers, given.runs or (1 if given.quick else RUNS), options,
                       given.output)  # fmt: skip
    except RuntimeError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


def measure(
    cases: Sequence[Case], names: Sequence[str], runs: int, options: Options, output: Path
) -> int:
    """Measure these systems in these workloads, and print and write the results."""
    peers = [peer for peer in PEERS if peer.name in {*names, OURS, LIMIT}]
    missing = {peer.name: reason for peer in peers if (reason := peer.missing())}
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    peers = [peer for peer in peers if peer.name not in missing]
    site = Site(
        Cores.of_this_machine(), Path(), compile_programs(),
        install_node() if any(peer.is_node for peer in peers) else BUILT,
        install_python() if any(peer.is_python for peer in peers) else Path(sys.executable),
    )  # fmt: skip
    systems = [System(p.name, p.title, p.version(site), p.settings) for p in peers]
    settings = {
        "runs": runs, "seconds each": options.seconds, "frames": f"{FRAME_BYTES} B",
        "scale": options.scale,
    }  # fmt: skip
    results = Results(describe(), systems, settings)
    output.mkdir(parents=True, exist_ok=True)
    written = output / "results.json"
    for run in range(runs):
        for case in cases:
            # In turns forwards and backwards, so that no system is always the first one.
            for peer in peers if run % 2 == 0 else reversed(peers):
                if case.needs <= peer.features:
                    _note(f"run {run + 1} of {runs}, workload {case.key}: {peer.title}")
                    _measure(case, peer, Bench(site, options), results)
        # After each run, so that an interrupted benchmark has results, too.
        written.write_text(json.dumps(results.records(cases), indent=1), encoding="utf-8")
    _note("")
    _print(results, cases)
    print(f"\nWritten: {written}")
    _plot(results, cases, output)
    return 1 if results.has_failures() else 0


def _measure(case: Case, peer: Peer, bench: Bench, results: Results) -> None:
    """Add the figures of one system, and how many cores other programs used meanwhile."""
    with tempfile.TemporaryDirectory(prefix="eventbus-bench-") as folder:
        site = bench.site._replace(folder=Path(folder))
        start, busy, own = time.monotonic(), _busy_s(), _own_s()
        try:
            figures = case.run(bench._replace(site=site), peer)
        except (RuntimeError, OSError) as exc:
            print(f"\n{peer.name}, workload {case.key}: {exc}", file=sys.stderr)
            results.fail(case, peer.name, str(exc).partition("\n")[0])
            return
        busy, own = _busy_s() - busy, _own_s() - own
        others = max(0.0, busy - own) / (time.monotonic() - start)
    results.add(case, peer.name, {**figures, "others": others})


def _print(results: Results, cases: Sequence[Case]) -> None:
    print(results.header())
    if results.is_shared():
        print("OTHER PROGRAMS USED THIS MACHINE: trust the figures per CPU s only")
    if results.settings["scale"] != 1:
        print("THE NUMBERS OF CLIENTS IN THE TITLES ARE SCALED: not to be compared with others")
    for case in cases:
        print(f"\n{results.table(case)}")
    print(f"\n{results.footer()}")


def _plot(results: Results, cases: Sequence[Case], folder: Path) -> None:
    try:
        from scripts.benchmark.plots import plot  # noqa: PLC0415 - of the extra `bench`
    except ImportError as exc:
        print(f"No plots: {exc}; scripts/install bench installs what is missing", file=sys.stderr)
        return
    print(f"Plots: {', '.join(path.name for path in plot(results, cases, folder))}")


def _note(progress: str) -> None:
    """Show what is being measured: in one line of a terminal, in lines of a log otherwise."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(progress, file=sys.stderr, flush=True)


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle: float = times.idle + times.iowait
    return sum(times[:8]) - idle  # without the time of guests, which user time contains


def _own_s() -> float:
    times = os.times()
    return sum(times[:4])  # with all programs that have been started, since they have ended


def parser() -> argparse.ArgumentParser:
    """The command line options."""
    made = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    add("--only", type=_letters, default=LETTERS, help="workloads, such as a,c")
    names = [peer.name for peer in PEERS if peer.name not in {OURS, LIMIT}]
    add("--peers", type=_names, default=names, help=f"systems, or none: {', '.join(names)}")
    add("--runs", type=_count, help=f"how often everything is measured (default: {RUNS})")
    add("--seconds", type=_seconds, help="how long each measurement takes (default: 5)")
    add("--quick", action="store_true", help="one run, a second for each measurement")
    add("--scale", type=_scale, default=1.0, help="factor for the numbers of clients")
    add("--counted", action="store_true", help="count work instead of measuring times")
    add("--output", type=Path, default=BUILT, help="the folder for JSON and plots")
    return made


def _letters(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if set(found) <= set(LETTERS):
        return found
    raise argparse.ArgumentTypeError(f"{text!r}; workloads are {', '.join(LETTERS)}")


def _names(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    known = [peer.name for peer in PEERS]
    if set(names) <= set(known):
        return names
    raise argparse.ArgumentTypeError(f"{text!r}; systems are {', '.join(known)}")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) <= 1000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds <= 600:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0, at most 600 s")


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if 0 < scale <= 10:
        return scale
    raise argparse.ArgumentTypeError(f"{text!r} is not a factor above 0, at most 10")


def _open_files() -> tuple[int, int]:
    """The limit of open files, which the servers inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    return max(soft, wanted), hard


if __name__ == "__main__":
    sys.exit(main())
