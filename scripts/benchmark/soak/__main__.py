"""Hold many connections for a long time, and report what grows and what is left over.

The clients of one edge and one nats-server connect, disconnect, join and leave all the time, while
messages flow. Writes the report as JSON and, with matplotlib, a plot. Exits with 1 if anything is
left over after all connections have ended.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import nats
import uvloop

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers import StateDriver
from scripts.benchmark.machine import HOST
from scripts.benchmark.sizing.processes import SECRET, Brokers, Server, start_brokers, start_server
from scripts.benchmark.soak.clients import (
    BUCKETS,
    EVENT,
    GROUP,
    PER_ADDRESS,
    Plan,
    Report,
    percentile,
)
from scripts.benchmark.soak.edge import FILE, Held

SETTLE_S: Final = 90.0
"""How long an edge may take to release what connections used."""
SPARE_FILES: Final = 500
SPARE_OBJECTS: Final = 2
"""Per type: a variable of a waiting task may keep the last object until the task continues."""
FIRST: Final = 20
"""Connections before the first count, to create everything that is created once and stays."""
_BUS_S: Final = 10.0


class Left(msgspec.Struct):
    """What the edge and the broker hold."""

    resident: int
    """Bytes of memory of the edge."""
    files: int
    """Open file descriptors of the edge."""
    threads: int
    tasks: int
    timers: int
    subscriptions: int
    """The subscriptions of all connections to the broker, including this script's."""
    keys: int
    """Entries for members and channels in use, in the shared state of the nodes."""
    objects: dict[str, int]
    """Objects that belong to connections, by their types."""

    def counts(self) -> dict[str, int]:
        """All counts by name, without the memory."""
        counts: dict[str, int] = msgspec.structs.asdict(self)
        del counts["resident"], counts["objects"]
        return counts | {f"{name} objects": count for name, count in self.objects.items()}

    def beyond(self, base: "Left") -> dict[str, int]:
        """The counts that are higher than in `base`, and by how much."""
        before = base.counts()
        more = {name: count - before[name] for name, count in self.counts().items()}
        return {
            name: count
            for name, count in more.items()
            if count > (SPARE_OBJECTS if name.endswith(" objects") else 0)
        }


class Minute(msgspec.Struct):
    """The measurements of one interval; latencies in milliseconds, memory in bytes."""

    seconds: float
    """The end of the interval, since the start of the load."""
    connections: int
    resident: int
    broker: int
    messages: int
    p50: float
    p99: float
    longest: float
    opened: int
    joined: int
    errors: int
    lost: dict[str, int]

    def text(self) -> str:
        """A row of the table."""
        lost = ", ".join(f"{code}: {count}" for code, count in self.lost.items())
        return (
            f"{self.seconds:7.0f} {self.connections:8} {self.resident / 2**20:8.1f} "
            f"{self.broker / 2**20:8.1f} {self.messages:10} {self.p50:7.1f} {self.p99:7.1f} "
            f"{self.longest:8.1f} {self.opened:8} {self.joined:8} {lost}"
        )


HEAD: Final = (
    f"{'seconds':>7} {'clients':>8} {'edge MiB':>8} {'NATS MiB':>8} {'messages':>10} {'p50 ms':>7} "
    f"{'p99 ms':>7} {'max ms':>8} {'opened':>8} {'joined':>8} lost"
)


class Result(msgspec.Struct):
    """The report."""

    settings: dict[str, Any]
    base: Left
    end: Left
    left: dict[str, int]
    """The counts that were higher at the end than before the load; empty if nothing is left."""
    slope_per_minute: float
    """Growth of the edge's memory in the second half of the load, in bytes per minute."""
    minutes: list[Minute]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=f"{__doc__}\nDefaults are in brackets."
    )
    add = parser.add_argument
    add("--connections", type=int, default=15_000, help="number of clients [15000]")
    add("--minutes", type=float, default=30.0, help="how long the load lasts [30]")
    add("--processes", type=int, default=2, help="number of client processes [2]")
    add("--rate", type=float, default=1.0, help="messages per second to all clients [1]")
    add("--chats", type=float, default=100.0, help="messages per second to small groups [100]")
    add("--reconnects", type=float, default=20.0, help="clients that reconnect per second [20]")
    add("--moves", type=float, default=50.0, help="clients that switch channels per second [50]")
    add("--every", type=float, default=60.0, help="seconds per row of the table [60]")
    add(
        "--out", type=Path, default=Path("build/soak"),
        help="folder for the report and the plot [build/soak]",
    )  # fmt: skip
    return parser


async def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code."""
    options = _parser().parse_args(arguments)
    _allow_files(options.connections)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with start_brokers("nats", Path(folder)) as brokers:
            result = await Soak(options, Path(folder), brokers).run()
    (options.out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    _plot(result, options.out / "soak.png")
    print(f"the edge's memory grew by {result.slope_per_minute / 1024:.1f} KiB per minute")
    for name, before in ({"resident": result.base.resident} | result.base.counts()).items():
        after = ({"resident": result.end.resident} | result.end.counts())[name]
        print(f"{name:20} {before:12} before {after:12} after")
    print("nothing is left over" if not result.left else f"left over: {result.left}")
    return bool(result.left)


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path, brokers: Brokers) -> None:
        self._options = options
        self._folder = folder
        self._brokers = brokers
        self._connected = 0
        self._namespace = f"s{secrets.token_hex(4)}"
        self._environ: Mapping[str, str] = brokers.environ | {
            "BROADCAST_CHANNELS_PREFIX": self._namespace,
            "BROADCAST_WEBSOCKET_HOST": HOST,
            "BROADCAST_WEBSOCKET_PORT": "0",
            "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS": str(2 * PER_ADDRESS),
            "BROADCAST_MAX_CONNECTIONS": str(2 * options.connections),
            "BROADCAST_PRESENCE_GRACE": "1",
            "BROADCAST_DRAIN_TIME": "0",
            "JWT_SECRET": SECRET,
            FILE: str(folder / "held"),
        }

    async def run(self) -> Result:
        """Hold the load; returns the report."""
        options = self._options
        settings = Settings.from_env(self._environ)
        async with (
            start_server("scripts.benchmark.soak.edge", self._folder / "edge.log", self._environ)
            as edge,
            EventBus(settings) as bus,
        ):  # fmt: skip
            await self._warm_up(edge, bus)
            base = await self._count(edge, bus)
            print(HEAD)
            minutes = await self._load(edge, bus)
            end = await self._settled(edge, bus, base)
            return Result(
                {name: value for name, value in vars(options).items() if name != "out"},
                base, end, end.beyond(base), _slope(minutes), minutes,
            )  # fmt: skip

    async def _warm_up(self, edge: Server, bus: EventBus) -> None:
        """Open a few connections, to create everything that is created once and stays."""
        plan = Plan(edge.port, FIRST, 0.0, 0.0)
        async with _clients([plan]) as processes:
            await bus.publish("general", EVENT, time.monotonic())
            await asyncio.sleep(1.0)
            await _end(processes)
        await self._settled(edge, bus, None)

    async def _load(self, edge: Server, bus: EventBus) -> list[Minute]:
        options = self._options
        parts = options.processes
        plans = [
            Plan(edge.port, options.connections // parts, options.reconnects / parts,
                 options.moves / parts)
            for _ in range(parts)
        ]  # fmt: skip
        minutes: list[Minute] = []
        async with _clients(plans) as processes:
            reports: list[Report] = []
            reading = [asyncio.create_task(_read(process, reports)) for process in processes]
            publishing = asyncio.create_task(self._publish(bus))
            begin, end = time.monotonic(), time.monotonic() + 60 * options.minutes
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(options.every, left))
                if publishing.done():
                    publishing.result()
                minutes.append(self._minute(edge, reports, time.monotonic() - begin))
                print(minutes[-1].text(), flush=True)
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await _end(processes)
            await asyncio.gather(*reading)
        return minutes

    async def _publish(self, bus: EventBus) -> None:
        """Publish to the channel of all clients, and to those of the groups in turn."""
        options = self._options
        groups = max(1, options.connections // options.processes // GROUP)
        rate = options.rate + options.chats
        due, to_all, number = time.monotonic(), 0.0, 0
        while True:
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            to_all += options.rate / rate
            if to_all >= 1:
                to_all -= 1
                channel = "general"
            else:
                number += 1
                channel = f"chat.{number % groups}"
            await bus.publish(channel, EVENT, time.monotonic())

    def _minute(self, edge: Server, reports: list[Report], seconds: float) -> Minute:
        """Sum up the reports of the client processes since the last interval."""
        recent, reports[:] = reports[:], []
        counts = [0] * BUCKETS
        lost: dict[str, int] = {}
        for report in recent:
            counts = [a + b for a, b in zip(counts, report.latencies, strict=True)]
            for code, count in report.lost.items():
                lost[code] = lost.get(code, 0) + count
        if recent:
            last = recent[-self._options.processes :]
            self._connected = sum(report.connected for report in last)
        return Minute(
            seconds,
            self._connected,
            edge.resident(),
            self._brokers.measured.resident(),
            sum(report.messages for report in recent),
            percentile(counts, 0.5),
            percentile(counts, 0.99),
            max((report.longest_us for report in recent), default=0.0) / 1000,
            sum(report.opened for report in recent),
            sum(report.joined for report in recent),
            sum(report.errors for report in recent),
            lost,
        )

    async def _settled(self, edge: Server, bus: EventBus, base: Left | None) -> Left:
        """Count until nothing is left over, or without `base` until no count changes.

        It takes at most SETTLE_S.
        """
        deadline = time.monotonic() + SETTLE_S
        last, changed_at = await self._count(edge, bus), time.monotonic()
        while time.monotonic() < deadline:
            if base is not None and not last.beyond(base):
                break
            if base is None and time.monotonic() - changed_at > 5.0:
                break
            await asyncio.sleep(1.0)
            counted = await self._count(edge, bus)
            if counted.beyond(last) or last.beyond(counted):
                changed_at = time.monotonic()
            last = counted
        return last

    async def _count(self, edge: Server, bus: EventBus) -> Left:
        held = await self._held(edge)
        files, threads = edge.descriptors()
        async with _connected(self._environ["NATS_URL"]) as client:
            subscriptions = await _subscriptions(client)
            keys = await _keys(bus)
        return Left(
            edge.resident(), files, threads, held.tasks, held.timers, subscriptions, keys,
            held.connections,
        )  # fmt: skip

    async def _held(self, edge: Server) -> Held:
        path = Path(self._environ[FILE])
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - nothing else runs here
        edge.signal(signal.SIGUSR1)
        async with asyncio.timeout(SETTLE_S):
            while not path.exists():  # noqa: ASYNC110, ASYNC240 - the edge writes it
                await asyncio.sleep(0.05)
        return msgspec.json.decode(path.read_bytes(), type=Held)  # noqa: ASYNC240


async def _keys(bus: EventBus) -> int:
    """The number of entries that nodes have for members and for channels in use."""
    state = cast(StateDriver, bus.driver).state
    entries = [await state.entries(pattern) for pattern in ("members.>", "interest.>")]
    return sum(map(len, entries))


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def _subscriptions(client: Any) -> int:
    """The number of subscriptions in the account, which any of its users may request."""
    subject = "$SYS.REQ.ACCOUNT.PING.CONNZ"
    answer = await client.request(subject, b'{"limit":1024}', timeout=_BUS_S)
    connections = msgspec.json.decode(answer.data)["data"]["connections"]
    return sum(connection["subscriptions"] for connection in connections)


@contextlib.asynccontextmanager
async def _clients(plans: Sequence[Plan]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Start client processes, and wait until their clients are connected."""
    processes: list[asyncio.subprocess.Process] = []
    async with contextlib.AsyncExitStack() as stack:
        for plan in plans:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "scripts.benchmark.soak.clients",
                msgspec.json.encode(plan).decode(),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**20,
                env={"PATH": os.environ["PATH"]},
            )  # fmt: skip
            stack.push_async_callback(_kill, process)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if not await process.stdout.readline():
                raise RuntimeError("a client process has exited; see its output above")
        yield processes


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _end(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """Disconnect the clients, and wait for the processes to end."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    await asyncio.gather(*(process.wait() for process in processes))


async def _read(process: asyncio.subprocess.Process, reports: list[Report]) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        reports.append(msgspec.json.decode(line, type=Report))


def _allow_files(connections: int) -> None:
    """Raise the limit on open files, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + SPARE_FILES:
        raise SystemExit(f"error: {connections} connections need more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _slope(minutes: Sequence[Minute]) -> float:
    half = minutes[len(minutes) // 2 :]
    if len(half) < 2:
        return 0.0
    times = [minute.seconds / 60 for minute in half]
    return statistics.linear_regression(times, [minute.resident for minute in half]).slope


def _plot(result: Result, path: Path) -> None:
    """Plot memory and latencies over time, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra `bench`
    except ImportError:
        return
    times = [minute.seconds / 60 for minute in result.minutes]
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    memory, latency = figure.subplots(2, 1, sharex=True)
    memory.plot(times, [minute.resident / 2**20 for minute in result.minutes], label="edge")
    memory.plot(times, [minute.broker / 2**20 for minute in result.minutes], label="nats-server")
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(bottom=0)
    memory.legend()
    for name in ("p50", "p99", "longest"):
        latency.plot(times, [getattr(minute, name) for minute in result.minutes], label=name)
    latency.set_ylabel("latency, ms")
    latency.set_yscale("log")
    latency.set_xlabel("minutes")
    latency.legend()
    settings = result.settings
    figure.suptitle(
        f"{settings['connections']:,} connections; per second {settings['reconnects']:g} reconnect "
        f"and {settings['moves']:g} switch channels"
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(uvloop.run(main(sys.argv[1:])))
