"""Measures the resources of an edge, a publisher and a broker, as shown in docs/deployment.md.

    python -m scripts.benchmark.sizing                            everything; takes some minutes
    python -m scripts.benchmark.sizing --only deliveries --clients 1000
    python -m scripts.benchmark.sizing --driver redis --json

Runs real brokers, edges and clients in separate processes. Reports the CPU time and memory of each
process, not elapsed time, so other load on the machine matters little. A bare aiohttp server in
each run is the reference for the speed of the machine.
"""

import argparse
import asyncio
import json
import platform
import resource
import sys
import tempfile
from pathlib import Path
from typing import Final

from scripts.benchmark.sizing.connections import channels, connections, heartbeats
from scripts.benchmark.sizing.delivering import deliveries, own_channels, ways
from scripts.benchmark.sizing.publishing import publishing
from scripts.benchmark.sizing.returning import drain, resumes
from scripts.benchmark.sizing.workbench import Options, Workbench

MEASUREMENTS: Final = {
    measure.__name__: measure
    for measure in (
        connections, heartbeats, channels, deliveries, ways, own_channels, resumes, drain,
        publishing,
    )
}  # fmt: skip


def main() -> int:
    """Print the tables. Returns 1 if a measurement failed."""
    given = parser().parse_args()
    options = Options(given.clients, given.messages, given.seconds, given.processes, given.driver)
    _raise_open_files(2 * options.clients + 1000)
    chosen = given.only or list(MEASUREMENTS)
    try:
        asyncio.run(_run(options, chosen, as_json=given.json))
    except (RuntimeError, TimeoutError) as exc:
        print(f"error: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    return 0


async def _run(options: Options, chosen: list[str], *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="eventbus-sizing-") as folder:
        async with Workbench.start(options, Path(folder)) as bench:
            found = {}
            for name in chosen:
                table = await MEASUREMENTS[name](bench)
                found[name] = table.records()
                if not as_json:
                    print(table.markdown(), flush=True)
    if as_json:
        print(json.dumps({"machine": platform.platform(), **options._asdict(), "tables": found}))


def parser() -> argparse.ArgumentParser:
    """The command line options."""
    made = argparse.ArgumentParser(
        prog="python -m scripts.benchmark.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Options()
    add = made.add_argument
    add("--clients", type=_count, default=default.clients, help="maximum number of clients")
    add(
        "--messages",
        type=_count,
        default=default.messages,
        help="messages to 1,000 clients; scaled for other numbers",
    )
    add("--seconds", type=_seconds, default=default.seconds, help="time to measure silent clients")
    add("--processes", type=_count, default=default.processes, help="processes for the clients")
    add("--driver", choices=("nats", "redis"), default=default.driver, help="the broker")
    add("--only", action="append", choices=MEASUREMENTS, help="a measurement to run; repeatable")
    add("--json", action="store_true", help="print JSON instead of tables")
    return made


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds <= 3600:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; allowed: above 0, at most 3600 s")


def _raise_open_files(wanted: int) -> None:
    """Raise the limit of open files, which child processes inherit. Each connection needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
