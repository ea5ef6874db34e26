"""The cost of syncing each write in NATS servers: durable messages per second, with and without.

    .venv/bin/python -m scripts.benchmark.parts.durability /a/folder/on/the/disk

It starts one server, then a cluster of three with three copies, all on that disk. Three machines
would have a disk each, and a network between them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from eventbus import EventBus, Settings
from eventbus.server import NatsServer

SECONDS: Final = 3.0
ROUNDS: Final = 3
IN_FLIGHT: Final = (1, 200)
DATA: Final = "x" * 200


def sync_time(folder: Path) -> float:
    """The median time of appending 300 bytes to a file and syncing it, in ms."""
    times = []
    with (folder / "probe").open("ab", buffering=0) as file:
        for _ in range(200):
            start = time.perf_counter()
            file.write(b"x" * 300)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _servers(folder: Path, copies: int, *, syncs_always: bool) -> list[NatsServer]:
    if copies == 1:
        return [NatsServer(folder / "1", syncs_always=syncs_always)]
    ports = [_free_port() for _ in range(copies)]
    routes = [f"nats://127.0.0.1:{port}" for port in ports]
    return [
        NatsServer(
            folder / str(port),
            syncs_always=syncs_always,
            config={
                "server_name": f"nats-{port}",
                "cluster": {"name": "bench", "listen": f"127.0.0.1:{port}", "routes": routes},
            },
        )
        for port in ports
    ]


async def _rate(bus: EventBus, in_flight: int) -> float:
    """Acknowledged messages per second."""
    done = 0
    end = time.monotonic() + SECONDS

    async def publish() -> None:
        nonlocal done
        while time.monotonic() < end:
            await bus.publish("bench", "tick", DATA)
            done += 1

    await asyncio.gather(*(publish() for _ in range(in_flight)))
    return done / SECONDS


async def measure(folder: Path, copies: int, *, syncs_always: bool) -> dict[int, float]:
    """Messages per second by the number of messages in flight."""
    async with contextlib.AsyncExitStack() as stack:
        servers = _servers(folder, copies, syncs_always=syncs_always)
        for server in servers:
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in servers))
        settings = Settings(
            nats_url=",".join(server.url for server in servers),
            history_replicas=3 if copies == 3 else 1,
            history_durability="disk" if syncs_always else "process",
            connect_timeout=30.0,
        )
        bus = await stack.enter_async_context(EventBus(settings))
        await bus.publish("bench", "tick", DATA)
        return {in_flight: await _rate(bus, in_flight) for in_flight in IN_FLIGHT}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        synced = sync_time(folder)
        for number in range(ROUNDS):
            for copies in (1, 3):
                for syncs_always in (False, True):
                    place = folder / f"{number}-{copies}-{syncs_always}"
                    found = asyncio.run(measure(place, copies, syncs_always=syncs_always))
                    shutil.rmtree(place)
                    for in_flight, rate in found.items():
                        form = "always" if syncs_always else "default"
                        key = f"{copies} copies, {in_flight} in flight, {form}"
                        rows.setdefault(key, []).append(rate)
    if given.json:
        print(json.dumps({"sync_ms": synced, "per_s": rows}))
        return
    print(f"a sync of this disk takes {synced:.2f} ms")
    for key, rates in rows.items():
        low, middle, high = min(rates), statistics.median(rates), max(rates)
        print(f"{key:<40}{middle:10,.0f} per s ({low:,.0f} to {high:,.0f})")


if __name__ == "__main__":
    main()
