"""The measured processes, with the CPU time and memory that the kernel reports."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from eventbus.server import NatsServer

__all__ = ["SECRET", "Brokers", "Measured", "Server", "start_brokers", "start_server"]

SECRET: Final = "of-this-benchmark-alone-0123456789"
HOST: Final = "127.0.0.1"
RETENTION: Final = {"BROADCAST_HISTORY_MESSAGES": "200"}
"""Per channel: more than any client misses in these measurements."""
START_S: Final = 60.0
END_S: Final = 30.0
_PORT: Final = re.compile(rb" on https?://127\.0\.0\.1:(\d+)")


class Measured:
    """Processes, with the CPU time and memory that they have used."""

    def __init__(self, *pids: int) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]

    def pin(self, core: int) -> None:
        """Let them run on one core only."""
        for process in self._processes:
            process.cpu_affinity([core])

    def cpu_s(self) -> float:
        """CPU time in seconds, including that of the kernel."""
        return sum(_cpu_s(process) for process in self._processes)

    def resident(self) -> int:
        """Resident memory in bytes."""
        return sum(process.memory_info().rss for process in self._processes)


class Server(Measured):
    """A server process: an edge, or the reference."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        super().__init__(process.pid)
        self.port = port
        self._process = process

    def descriptors(self) -> tuple[int, int]:
        """Its open file descriptors and its threads."""
        process = psutil.Process(self._process.pid)
        return process.num_fds(), process.num_threads()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def end(self) -> None:
        """Terminate it (an edge drains) and wait. Kills it if that takes too long."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def start_server(module: str, log: Path, environ: Mapping[str, str]) -> AsyncIterator[Server]:
    """Run a module that prints its address. Raises RuntimeError if it does not."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={"PATH": os.environ["PATH"], **environ},
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            found = _PORT.search(await process.stdout.readline())
        if found is None:
            raise RuntimeError(f"{module} did not start: {_tail(log)}")
        server = Server(process, int(found[1]))
        yield server
        await server.end()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Brokers(NamedTuple):
    """The broker's processes, and the settings with which a bus or an edge connects to it."""

    measured: Measured
    environ: dict[str, str]


@contextlib.asynccontextmanager
async def start_brokers(driver: str, folder: Path, count: int = 1) -> AsyncIterator[Brokers]:
    """Start one broker, or a cluster of `count` NATS servers with as many stream replicas."""
    if driver == "redis":
        async with _redis(folder) as brokers:
            yield brokers
        return
    routes = [_free_port() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for number, port in enumerate(routes):
            cluster = {
                "name": "sizing",
                "listen": f"{HOST}:{port}",
                "routes": [f"nats://{HOST}:{each}" for each in routes],
            }
            config = {"server_name": f"sizing-{number}", "cluster": cluster} if count > 1 else {}
            server = NatsServer(folder / f"nats-{count}-{number}", config=config)
            servers.append(await stack.enter_async_context(server))
        environ = RETENTION | {
            "BROADCAST_DRIVER": "nats",
            "NATS_URL": ",".join(server.url for server in servers),
            "BROADCAST_HISTORY_REPLICAS": str(count),
        }
        yield Brokers(Measured(*(server.pid for server in servers)), environ)


@contextlib.asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[Brokers]:
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not on PATH")
    port = _free_port()
    options = ["--bind", HOST, "--port", str(port), "--dir", str(folder), "--save", ""]
    process = await asyncio.create_subprocess_exec(
        program, *options, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        environ = RETENTION | {"BROADCAST_DRIVER": "redis", "BROADCAST_REDIS_PORT": str(port)}
        yield Brokers(Measured(process.pid), environ)
    finally:
        process.terminate()
        await process.wait()


def _cpu_s(process: psutil.Process) -> float:
    """The CPU time: in nanoseconds on Linux, in ticks of usually 10 ms on other systems."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    if counted := [int(each.read_bytes().split()[0]) for each in threads]:
        return sum(counted) / 1e9
    times = process.cpu_times()
    return times.user + times.system


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port
