"""Several worker processes on one port: started, restarted when one dies, drained together.

The kernel spreads new connections over the workers (SO_REUSEPORT, Linux man socket(7)). Each worker
is a node of its own, and communicates with the others over the bus, as with nodes elsewhere.
"""

import asyncio
import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import (
    Callable,
    Mapping,
)
from typing import Final

from eventbus.attempts import Backoff
from eventbus.config import Settings
from eventbus.drivers.nats import embedded_server, needs_server
from eventbus.environment import child_environment
from eventbus.errors import ConfigError
from eventbus.server import NatsServer
from eventbus.tasks import Tasks
from eventbus_edge.child_output import pass_on
from eventbus_edge.config import EdgeSettings
from eventbus_edge.process.production import require_production

__all__ = ["READY", "Supervisor"]


_log = logging.getLogger(__name__)

READY: Final = "edge ready on "
"""The beginning of the line in which a worker prints its address."""
_FIRST_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 30.0
_HEALTHY_S: Final = 60.0
"""A worker that ran for so long is restarted without a longer pause when it dies."""
_END_S: Final = 15.0
_OUTPUT_S: Final = 2.0
"""How long to wait for the rest of the output of a worker that has ended."""


class Supervisor:
    """Keeps `settings.workers` processes running until it is asked to stop."""

    def __init__(
        self, settings: EdgeSettings, bus: Settings, *, on_ready: Callable[[str], None]
    ) -> None:
        """`on_ready` is called with the address once every worker listens."""
        self._settings = settings
        self._bus = bus
        self._on_ready = on_ready
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._ready: set[int] = set()
        """Workers that have listened at least once."""
        self._listening: set[int] = set()
        self._unrenewed: set[int] = set()
        """Workers that still need a SIGHUP, which would end them before they listen."""
        self._announced = False
        self._failure = 0

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns 0, or the exit code of a worker that cannot start.

        Raises ConfigError if the port or a temporary folder is not available, or settings are not
        allowed in production; and ServerError for the embedded nats-server.
        """
        for warning in require_production(self._settings):
            _log.warning("%s", warning)
        with _reserve(self._settings) as reserved, _private_folder() as folder:
            self._handle_signals()  # after _reserve, which refuses systems without loop handlers
            port = reserved.getsockname()[1]
            server, url, tasks = None, "", Tasks()
            if needs_server(self._bus):
                server, url = await self._start_server(tasks)
            try:
                environ = _environment(port, url)
                async with asyncio.TaskGroup() as group:
                    for index in range(self._settings.workers):
                        socket_path = {"EDGE_WORKER_SOCKET": f"{folder}/{index}"}
                        group.create_task(self._keep(index, environ | socket_path))
            finally:
                await tasks.aclose()
                if server is not None:
                    await server.stop()
        return self._failure

    async def _start_server(self, tasks: Tasks) -> tuple[NatsServer, str]:
        """Start the embedded server; restart it when it dies, and after its disk was full.

        In development, use the one that another process runs. Returns the address, too.
        """
        server = embedded_server(
            self._bus, lambda _: tasks.keep(server.restart, "restarting the nats-server")
        )

        async def watch_disk() -> None:
            while True:
                await server.wait_for_room()
                await server.restart()

        if self._bus.environment == "production":
            await server.start()
            url = server.url
        else:
            url = await server.join_or_start()
        if server.is_running:
            tasks.keep(watch_disk, "watching the disk of the nats-server")
        return server, url

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _stop(self) -> None:
        self._stopping.set()
        self._pass_on(signal.SIGTERM)  # also a second time, which ends the workers at once

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._workers.values():
            if process.returncode is None:
                process.send_signal(number)

    def _hang_up(self) -> None:
        for index, process in self._workers.items():
            if index in self._listening and process.returncode is None:
                process.send_signal(signal.SIGHUP)
            else:
                self._unrenewed.add(index)

    async def _keep(self, index: int, environ: Mapping[str, str]) -> None:
        """Run one worker, and restart it when it dies."""
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_one(index, environ)
            if self._stopping.is_set():
                return
            if index not in self._ready:
                _log.error("worker %d could not start (exit code %d): stopping", index, code)
                self._failure = code or 1
                self._stop()
                return
            if time.monotonic() - started > _HEALTHY_S:
                backoff.reset()
            _log.error("worker %d died (exit code %d) and is restarted", index, code)
            await self._wait(backoff.next())

    async def _run_one(self, index: int, environ: Mapping[str, str]) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "eventbus_edge",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ,
        )
        self._workers[index] = process
        if self._stopping.is_set():
            process.terminate()
        reading = asyncio.create_task(self._read(index, process))
        try:
            await self._ended(process)
        finally:
            if process.returncode is None:
                process.kill()
            code = await process.wait()
            # Its own child processes may hold its output open.
            await asyncio.wait({reading}, timeout=_OUTPUT_S)
            reading.cancel()
            self._listening.discard(index)
        return code

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        """Wait until a process ends; once the workers are stopping, for a limited time."""
        ending = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _, late = await asyncio.wait({ending}, timeout=self._settings.drain_time + _END_S)
        for task in late:
            _log.error("a worker did not end in time and is killed")
            task.cancel()

    async def _read(self, index: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        await pass_on(
            process.stdout, READY, lambda address: self._on_ready_line(index, process, address)
        )

    def _on_ready_line(self, index: int, process: asyncio.subprocess.Process, address: str) -> None:
        self._ready.add(index)
        self._listening.add(index)
        if index in self._unrenewed:
            self._unrenewed.discard(index)
            process.send_signal(signal.SIGHUP)
        if len(self._ready) == self._settings.workers and not self._announced:
            self._announced = True
            self._on_ready(address.split(maxsplit=1)[0])

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _reserve(settings: EdgeSettings) -> socket.socket:
    """A socket that reserves the port for the workers without listening. Raises ConfigError."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(
            f"BROADCAST_WORKERS={settings.workers}: this system cannot share a port between "
            "processes; allowed here: 1",
            variable="BROADCAST_WORKERS",
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((settings.host, settings.port))
    except OSError as exc:
        reserved.close()
        raise ConfigError(
            f"BROADCAST_WEBSOCKET_PORT={settings.port}: cannot listen on {settings.host}: "
            f"{exc.strerror or exc}; allowed: a free port, or 0 to take one",
            variable="BROADCAST_WEBSOCKET_PORT",
        ) from None
    return reserved


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the workers' sockets, accessible to this user only. Raises ConfigError."""
    try:
        return tempfile.TemporaryDirectory(prefix="eventbus-")  # its mode is 0700
    except OSError as exc:
        raise ConfigError(
            f"workers need a temporary folder for their sockets: {exc.strerror or exc}; allowed: "
            "a writable folder in TMPDIR",
            variable="TMPDIR",
        ) from None


def _environment(port: int, nats_url: str) -> dict[str, str]:
    changes = {
        "BROADCAST_WORKERS": "1",
        "EDGE_SUPERVISED": "true",
        "BROADCAST_WEBSOCKET_PORT": str(port),
    }
    if nats_url:
        changes["NATS_URL"] = nats_url
    return child_environment(changes)
