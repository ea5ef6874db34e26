"""The options of scripts/chaos, and its main program."""

import argparse
import asyncio
import logging
import random
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from eventbus.cli.chaos import Kind, Report, Run, Scale, Step, make_plan, table
from scripts.chaos_lab.brokers import Brokers, Cluster, old_binary
from scripts.chaos_lab.faults import CLUSTER, FAULTS, SINGLE
from scripts.chaos_lab.faults.cluster import RollingUpgrade
from scripts.chaos_lab.faults.edges import ClockJumped
from scripts.chaos_lab.machine import enter_namespaces, missing, raise_limit_of_files
from scripts.chaos_lab.processes import ROOT
from scripts.chaos_lab.site import Site, Size

BUILT: Final = ROOT / "build" / "chaos"
_SEEDS: Final = 2**32
_WHERE: Final = {SINGLE: "one nats-server", CLUSTER: "three nats-servers, three replicas"}


class Results(msgspec.Struct, frozen=True):
    """The JSON output: a run on one nats-server, one on a cluster, or both."""

    seed: int
    runs: list[Report]


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Injects faults into real servers while messages flow, and compares what every "
        "client, durable subscription and worker received with what was acknowledged. Exits with "
        "1 if a promise is broken. Defaults are in brackets.",
    )
    add = options.add_argument
    add("--minutes", type=float, default=2.0, help="about how long to run [2]")
    add("--seed", type=int, help="repeat the faults of another run, in their order")
    add("--faults", help="inject only these, separated by commas; see --list")
    add("--list", action="store_true", help="list the faults, and exit")
    add("--plan", action="store_true", help="print the order of faults, and exit")
    add("--clients", type=int, default=300, help="number of clients [300]")
    add("--crowd", type=int, default=5000, help="number of clients that reconnect at once [5000]")
    add("--rate", type=float, default=5.0, help="messages per second of each publisher [5]")
    add("--hold", type=float, default=1.0, help="multiplies how long faults last [1]")
    add("--patience", type=float, default=1.0, help="multiplies how long recovery may take [1]")
    add(
        "--settle", type=float, default=60.0, metavar="SECONDS",
        help="missing messages count as lost after this time without any arrival [60]",
    )  # fmt: skip
    add(
        "--publish-limit", type=float, metavar="SECONDS",
        help="how long a publisher may wait during faults that promise a limit [theirs]",
    )  # fmt: skip
    add(
        "--sabotage", action="store_true",
        help="falsify what four receivers got, to show that lost, duplicated and swapped messages "
        "are noticed",
    )  # fmt: skip
    add("--folder", type=Path, help="folder for data and logs [build/chaos/run-<seed>]")
    add("--json", type=Path, help="file to write the report to [build/chaos/<seed>.json]")
    add("--no-namespaces", action="store_true", help="skip the faults that need namespaces")
    add("--quiet", action="store_true", help="print no progress on stderr")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run. Returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    if options.list:
        for fault in FAULTS.values():
            print(f"{fault.name:16} {fault.summary}")
        return 0
    names = options.faults.split(",") if options.faults else list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        print(f"no such faults: {', '.join(unknown)}; see --list", file=sys.stderr)
        return 2
    seed = secrets.randbelow(_SEEDS) if options.seed is None else options.seed
    plans = _plans(seed, names, options)
    if options.plan:
        for topology, steps in plans.items():
            for step in steps:
                print(f"{topology} {step.number + 1}: {step.fault}, {step.pause_s:.1f} s later")
        return 0
    if RollingUpgrade.name in names:
        _old_binary()  # now, since namespaces have no network
    refusal = "" if options.no_namespaces else enter_namespaces([*words, "--seed", str(seed)])
    raise_limit_of_files()
    runs = asyncio.run(_run_all(options, seed, names, refusal))
    result = Results(seed=seed, runs=runs)
    path = options.json or BUILT / f"{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    for run in runs:
        print(table(run))
        print()
    return 1 if any(run.broken for run in runs) else 0


def _plans(
    seed: int, names: Sequence[str], options: argparse.Namespace
) -> Mapping[str, Sequence[Step]]:
    """The steps by topology, which share the time."""
    kinds: dict[str, list[Kind]] = {}
    for name in names:
        fault = FAULTS[name]
        kind = Kind(name, fault.hold_s * options.hold + fault.takes_s)
        kinds.setdefault(fault.topology, []).append(kind)
    seconds = options.minutes * 60 / max(1, len(kinds))
    return {topology: make_plan(seed, each, seconds) for topology, each in kinds.items()}


def _old_binary() -> tuple[str, str]:
    """The old nats-server, or the reason why it cannot be used."""
    try:
        return old_binary(BUILT), ""
    except RuntimeError as exc:
        return "", str(exc)


async def _run_all(
    options: argparse.Namespace, seed: int, names: Sequence[str], refusal: str
) -> list[Report]:
    notes = [f"no namespaces: {refusal}"] if refusal else []
    possible = []
    for name in names:
        why = missing(FAULTS[name].needs)
        if not why and name == RollingUpgrade.name:
            _, why = _old_binary()
        if why:
            notes.append(f"skipped {name}: {why}")
        else:
            possible.append(name)
    plans = _plans(seed, possible, options)
    return [await _run(options, seed, topology, plans[topology], notes) for topology in plans]


async def _run(
    options: argparse.Namespace, seed: int, topology: str, steps: Sequence[Step], notes: list[str]
) -> Report:
    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    folder = (options.folder or BUILT / f"run-{seed}").absolute() / topology
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    logging.basicConfig(filename=folder / "lab.log", format="%(asctime)s %(name)s: %(message)s")
    say(f"seed {seed}, {topology}, logs in {folder}")
    if topology == CLUSTER:
        is_upgraded = any(step.fault == RollingUpgrade.name for step in steps)
        brokers: Brokers = Cluster(folder, _old_binary()[0] if is_upgraded else "")
    else:
        brokers = Brokers(folder)
    size = Size(clients=options.clients, per_s=options.rate, crowd=options.crowd)
    site = Site(
        folder,
        brokers,
        size,
        is_sabotaged=options.sabotage,
        has_clock=any(step.fault == ClockJumped.name for step in steps),
    )
    async with site:
        run = Run(
            site.workload,
            lambda step: FAULTS[step.fault](site, random.Random(step.seed)),  # noqa: S311
            scale=Scale(options.hold, options.patience, options.settle, options.publish_limit),
            say=say,
            collect=site.handled.read,
            erased_at=site.erased_at,
        )
        return await run.run(_WHERE[topology], seed, steps, notes)


if __name__ == "__main__":
    sys.exit(main())
