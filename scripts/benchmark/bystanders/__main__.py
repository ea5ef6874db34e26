"""Measure how late a bystander's messages are while other clients flood the node.

A node runs on the first core. The broker, the bystander and the flooding clients share the last
core, where the bystander has priority. The bystander receives a message every 10 ms over a
WebSocket. Each kind of flood gets a new node. Each flooding client has an address of its own, and
reconnects at once if its connection is closed.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import nats
import uvloop

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from scripts.benchmark.bystanders.flooder import BEGUN
from scripts.benchmark.bystanders.floods import APP, FLOODS
from scripts.benchmark.machine import HOST
from scripts.benchmark.sizing.processes import SECRET, Brokers, Server, start_brokers, start_server

MOST_MS: Final = 20.0
"""The goal for the 99th percentile."""
EVERY_S: Final = 0.01
WARM_UP_S: Final = 1.0
PATIENCE_S: Final = 30.0
_EDGE: Final = {
    "BROADCAST_WEBSOCKET_HOST": HOST,
    "BROADCAST_WEBSOCKET_PORT": "0",
    "BROADCAST_WEBSOCKET_COMPRESSION": "true",
    "BROADCAST_API_KEY": secrets.token_hex(),
    "BROADCAST_DRAIN_TIME": "0",
    "EDGE_LOG_LEVEL": "error",
    "JWT_SECRET": SECRET,
    "PUSHER_APP_ID": APP.id,
    "PUSHER_APP_KEY": APP.key,
    "PUSHER_APP_SECRET": APP.secret,
}


class Row(NamedTuple):
    """How one kind of flood affected the bystander; times in milliseconds."""

    name: str
    p50: float
    p99: float
    longest: float
    ends: str

    def text(self) -> str:
        """The row of the table."""
        mark = "  above the goal" if self.p99 > MOST_MS else ""
        times = f"{self.p50:8.1f} {self.p99:8.1f} {self.longest:8.1f}"
        return f"{self.name:42} {times}  {self.ends}{mark}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bystanders", description=f"{__doc__}\nDefaults are in brackets."
    )
    add = parser.add_argument
    add("floods", nargs="*", metavar="FLOOD", help="the kinds of flood; see --list [all]")
    add("--clients", type=int, default=4, help="number of flooding clients [4]")
    add("--seconds", type=float, default=5.0, help="how long each kind is measured [5]")
    add("--repeat", type=int, default=2, help="how often to repeat a kind that misses the goal [2]")
    add("--list", action="store_true", help="list the kinds of flood, and exit")
    return parser


async def main(arguments: Sequence[str]) -> int:
    """Measure; returns 1 if a kind misses the goal each time."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(FLOODS))
        return 0
    if unknown := set(options.floods) - FLOODS.keys():
        parser.error(f"no such flood: {', '.join(map(repr, sorted(unknown)))}; see --list")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    print(f"{'':42} {'p50':>8} {'p99':>8} {'max':>8}  ends of the flooding connections")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        async with start_brokers("nats", Path(folder)) as brokers:
            bench = Bench(Path(folder), brokers, cores[0], options.seconds)
            print((await bench.measure("", 0)).text(), flush=True)
            for name in options.floods or FLOODS:
                for _ in range(1 + options.repeat):
                    row = await bench.measure(name, options.clients)
                    print(row.text(), flush=True)
                    if row.p99 <= MOST_MS:
                        break
                else:
                    missed.append(name)
            print((await bench.measure("", 0)).text())
    return bool(missed)


class Bench(NamedTuple):
    """The environment of the measurements."""

    folder: Path
    brokers: Brokers
    core: int
    """The core that the node runs on."""
    seconds: float

    async def measure(self, name: str, clients: int) -> Row:
        """Measure one kind of flood, or no flood if the name is empty."""
        environ = self.brokers.environ | _EDGE
        environ["BROADCAST_CHANNELS_PREFIX"] = f"b{secrets.token_hex(4)}"
        settings = Settings.from_env(environ)
        async with (
            start_server("eventbus_edge", self.folder / "edge.log", environ) as edge,
            EventBus(settings) as bus,
        ):
            edge.pin(self.core)
            for number in range(100):  # for the floods that read history
                await bus.publish("general", "filled", {"number": number})
            ends = self.folder / "ends"
            # The flooding clients must not keep the bystander from measuring.
            async with (
                asyncio.timeout(PATIENCE_S + self.seconds),
                flooding(edge.port, name, clients, ends, nice=19),
            ):
                took = await _receive(edge, bus, self.seconds)
        await _delete_streams(self.brokers.environ["NATS_URL"])
        took.sort()
        about = ends_in(ends)
        middle, high = took[len(took) // 2], took[int(len(took) * 0.99)]
        return Row(name or "no flood", middle, high, took[-1], about)


async def _delete_streams(url: str) -> None:
    """Make room at the broker for those of the next node."""
    client = await nats.connect(url)
    try:
        api = client.jetstream()
        for stream in await api.streams_info():
            await api.delete_stream(str(stream.config.name))
    finally:
        await client.close()


async def _receive(edge: Server, bus: EventBus, seconds: float) -> list[float]:
    """Publish and receive. Returns how long each message took, in milliseconds."""
    token = issue_token("bystander", secret=SECRET)
    took: list[float] = []
    async with _bystander(edge.port, token) as socket:
        end = time.monotonic() + WARM_UP_S + seconds
        begin = time.monotonic() + WARM_UP_S
        publishing = asyncio.create_task(_publish(bus, end))
        while True:
            data = json.loads(await socket.receive_str())
            if data["event"] == "last":
                break
            if data["event"] == "tick" and time.monotonic() > begin:
                took.append(1000 * (time.perf_counter() - data["data"]))
        await publishing
    return took


async def _publish(bus: EventBus, end: float) -> None:
    due = time.monotonic()
    while due < end:
        await bus.publish("general", "tick", time.perf_counter(), volatile=True)
        due += EVERY_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await bus.publish("general", "last", None, volatile=True)


def ends_in(ends: Path) -> str:
    """How most of the flooding connections ended."""
    counts = collections.Counter(_read(ends).split())
    del counts[BEGUN]
    return ", ".join(f"{end}: {count}" for end, count in counts.most_common(3))


@contextlib.asynccontextmanager
async def _bystander(port: int, token: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://{HOST}:{port}/ws/general", headers=headers) as socket,
    ):
        while json.loads(await socket.receive_str())["event"] != "eb:subscribed":
            pass
        yield socket


@contextlib.asynccontextmanager
async def flooding(
    port: int, name: str, clients: int, ends: Path, nice: int = 0
) -> AsyncIterator[None]:
    """Run flooding clients, which write how their connections end to the file `ends`."""
    command = [sys.executable, "-m", "scripts.benchmark.bystanders.flooder", str(port)]
    async with contextlib.AsyncExitStack() as stack:
        file = stack.enter_context(ends.open("wb"))
        processes = []
        for number in range(clients):
            process = await asyncio.create_subprocess_exec(
                *command, f"127.0.0.{number + 10}", name, stdout=file
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        async with asyncio.timeout(PATIENCE_S):
            while _read(ends).count(BEGUN) < clients:  # noqa: ASYNC110 - others write the file
                await asyncio.sleep(0.05)
        for process in processes:  # they have started, however busy the machine is
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        yield


def _read(ends: Path) -> str:
    return ends.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(uvloop.run(main(sys.argv[1:])))
