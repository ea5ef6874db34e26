"""`eventbus dev`: a nats-server and an edge node, which is replaced when the application changes.

The nats-server is a child of this process, so history and offsets survive a reload. Each edge is a
process of its own. A new edge starts next to the old one, on the same port. Once it is listening,
the old one is drained, and its clients reconnect to the new one and resume. If the new edge cannot
start, it logs the reason and the old one keeps running.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import (
    AsyncIterator,
    Iterable,
)
from pathlib import Path
from typing import (
    Annotated,
    Final,
)

import typer
import watchfiles
from rich.text import Text

from eventbus.cli.dev.secret import dev_secret
from eventbus.cli.edge import (
    App,
    Host,
    Port,
)
from eventbus.cli.output import (
    console,
    fail,
)
from eventbus.cli.running import run
from eventbus.config import Settings
from eventbus.drivers import drivers_of
from eventbus.environment import child_environment
from eventbus.errors import ConfigError, EventBusError
from eventbus.server import LOCAL, NatsServer, running_server, write_holder
from eventbus.tokens import issue_token
from eventbus.user_code import printable

__all__ = ["dev"]


_READY: Final = "edge ready on "
_OUTPUT_S: Final = 2.0
"""How long to wait for the rest of the output of an edge that has ended."""
_END_S: Final = 10.0
_MARK: Final = "dev"
"""The file in the data folder with the address of the edge, for a second `eventbus dev`."""
_SETTLE_MS: Final = 200
"""Changes within this time count as one: editors write a file in several steps."""
_LOCAL_ORIGINS: Final = "localhost:*,*.localhost:*,127.0.0.1:*,[::1]:*"
"""Pages of this machine, such as those of a frontend's development server on its own port."""
_KEYS: Final = ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL")


class AlreadyRunning(EventBusError):
    """Another `eventbus dev` uses the folder."""


class _SourceFilter(watchfiles.PythonFilter):
    """Accepts Python files, the rules file, and pyproject.toml, which can name the application."""

    def __init__(self, rules_file: str) -> None:
        super().__init__()
        self._rules = str(Path(rules_file).absolute()) if rules_file else ""
        self._ignore_dirs = {*self._ignore_dirs, LOCAL, "venv", ".ruff_cache"}

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        named = path == self._rules or Path(path).name == "pyproject.toml"
        return named or super().__call__(change, path)


class _Edge:
    """One edge process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.address = ""
        self.ended = asyncio.create_task(process.wait())
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, environ: dict[str, str]) -> "_Edge":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "eventbus_edge"),
            stdin=asyncio.subprocess.PIPE,  # EOF: it ends with this process
            stdout=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,  # Ctrl-C must not reach it
        )
        return cls(process)

    async def wait_until_ready(self) -> bool:
        """Wait until it is listening. Returns False if it exited instead."""
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return self._ready.is_set()

    async def stop(self) -> None:
        """Drain it. Kills it if that takes too long."""
        if self.process.returncode is None:
            self.process.terminate()
            _, late = await asyncio.wait({self.ended}, timeout=_END_S)
            if late:
                self.process.kill()
        await self.ended
        # Its own child processes may hold its output open.
        await asyncio.wait({self._reading}, timeout=_OUTPUT_S)
        self._reading.cancel()

    async def _read(self) -> None:
        from eventbus_edge.child_output import pass_on  # noqa: PLC0415 - help needs no edge

        assert self.process.stdout is not None
        await pass_on(self.process.stdout, _READY, self._on_ready)

    def _on_ready(self, address: str) -> None:
        self.address = address.split(maxsplit=1)[0]
        self._ready.set()


def dev(
    host: Host = None,
    port: Port = None,
    app: App = None,
    reload: Annotated[
        bool, typer.Option(help="Restart the edge when a Python or rules file changes.")
    ] = True,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder to watch. Repeatable. Default: the current folder.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Run a nats-server and an edge for development, and restart the edge when files change.

    Clients resume after a restart. If the settings have no JWT keys, tokens are signed with a
    secret in .eventbus/dev-secret, and a token with access to all channels is printed. --host and
    --port override BROADCAST_WEBSOCKET_HOST and BROADCAST_WEBSOCKET_PORT.

    Example: eventbus dev --app myapp.channels --port 8080
    """
    given = {"BROADCAST_WEBSOCKET_HOST": host, "BROADCAST_WEBSOCKET_PORT": port, "EDGE_APP": app}
    changes = {name: str(value) for name, value in given.items() if value is not None}
    environ = child_environment(changes)
    if environ.get("BROADCAST_ENVIRONMENT", "").strip() == "production":
        fail(
            "BROADCAST_ENVIRONMENT=production: `eventbus dev` is for development only; start an "
            "edge with `eventbus edge run`",
            code=2,
        )
    environ["BROADCAST_WEBSOCKET_HOST"] = environ.get("BROADCAST_WEBSOCKET_HOST") or "127.0.0.1"
    origins = (environ.get("CORS_ALLOWED_ORIGINS", ""), _LOCAL_ORIGINS)
    environ["CORS_ALLOWED_ORIGINS"] = ",".join(filter(None, origins))
    environ["BROADCAST_DRAIN_TIME"] = environ.get("BROADCAST_DRAIN_TIME") or "0"
    environ |= {"BROADCAST_WORKERS": "1", "EDGE_SUPERVISED": "true"}
    token = ""
    if not any(environ.get(key) for key in _KEYS):
        environ["JWT_SECRET"] = dev_secret()
        token = issue_token(
            "dev", secret=environ["JWT_SECRET"], name="Dev", roles=["admin"], channels=[">"]
        )
    folders = reload_dir or [Path.cwd()]
    code = run(_Development(environ, token, folders if reload else None).run())
    if code:
        raise typer.Exit(code)


class _Development:
    def __init__(self, environ: dict[str, str], token: str, folders: list[Path] | None) -> None:
        self._environ = environ
        self._token = token
        self._folders = folders
        self._stop = asyncio.Event()
        self._changes = asyncio.Event()
        self._changed: set[str] = set()
        self._edge: _Edge | None = None
        self._nats = ""
        self._folder: Path | None = None
        """The data folder of the embedded nats-server, if it is used."""
        self._out = console()

    async def run(self) -> int:
        """Run until Ctrl-C or SIGTERM. Returns the exit code. Raises ConfigError, ServerError."""
        from eventbus.drivers.nats import Servers  # noqa: PLC0415 - it imports nats-py

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends the process
                loop.add_signal_handler(number, self._stop.set)
        settings = Settings.from_env(self._environ)
        given = Servers.of(settings.nats_url).shown
        if _needs_server(settings):
            self._folder = Path(settings.nats_data)
            _require_first(self._folder)
        self._choose_port()
        async with _nats_server(settings) as url:
            self._nats = url or given
            if url:
                self._environ["NATS_URL"] = url
            try:
                return await self._follow()
            finally:
                if self._edge is not None:
                    await self._edge.stop()
                if self._folder is not None:
                    (self._folder / _MARK).unlink(missing_ok=True)

    async def _follow(self) -> int:
        """Start an edge, and replace it after each change."""
        if self._folders is None:
            return await self._once()
        watching = asyncio.create_task(self._watch(self._folders))
        try:
            while True:
                await self._start()
                await self._changes.wait()
                if self._stop.is_set():
                    return 0
                self._changes.clear()
                self._print(f"changed: {_names(self._changed)}: restarting", "cyan")
                self._changed.clear()
        finally:
            self._stop.set()
            await watching

    async def _once(self) -> int:
        if not await self._start():
            return 0 if self._stop.is_set() else 1
        assert self._edge is not None
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopped, self._edge.ended}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return 0 if self._stop.is_set() else (self._edge.process.returncode or 1)

    async def _start(self) -> bool:
        """Replace the old edge by a new one. Returns whether the new one started."""
        new, old = await _Edge.start(self._environ), self._edge
        stopping = asyncio.create_task(self._stop.wait())
        listening = asyncio.create_task(new.wait_until_ready())
        await asyncio.wait({stopping, listening}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not listening.done() or not listening.result():
            listening.cancel()
            await new.stop()
            if not self._stop.is_set():
                is_running = old is not None and old.process.returncode is None
                kept = "; the previous one keeps running" if is_running else ""
                more = ": save a file to try again" if self._folders is not None else ""
                self._print(f"the edge could not start{kept}{more}", "red")
            return False
        self._edge = new
        new.ended.add_done_callback(lambda _: self._on_end(new))
        self._environ["BROADCAST_WEBSOCKET_PORT"] = new.address.rpartition(":")[2]
        if old is None:
            if self._folder is not None:
                with (self._folder / _MARK).open("w", encoding="utf-8") as file:
                    write_holder(file, _reachable(new.address))
            self._print_addresses(new.address)
        else:
            await old.stop()
            self._print(f"ready again on {new.address}", "green")
        return True

    def _on_end(self, edge: _Edge) -> None:
        if edge is self._edge and not self._stop.is_set():
            self._print(f"the edge exited with code {edge.process.returncode}", "red")

    async def _watch(self, folders: Iterable[Path]) -> None:
        """Collect the changed files. Wakes up `_follow` for each change and at the end."""
        rules_file = self._environ.get("BROADCAST_RULES", "")
        try:
            async for changes in watchfiles.awatch(
                *_folders(folders, rules_file),
                watch_filter=_SourceFilter(rules_file),
                debounce=2 * _SETTLE_MS,
                step=_SETTLE_MS // 2,
                stop_event=self._stop,
                rust_timeout=500,
            ):
                self._changed.update(path for _, path in changes)
                self._changes.set()
        finally:
            self._stop.set()
            self._changes.set()

    def _choose_port(self) -> None:
        """Check that the port is free. Raises ConfigError.

        Edges bind with SO_REUSEPORT and would share the port with an unrelated process.
        """
        host = self._environ["BROADCAST_WEBSOCKET_HOST"]
        port = self._environ.get("BROADCAST_WEBSOCKET_PORT") or "8080"
        if not port.isdecimal() or int(port) > 65535:
            return  # the edge reports the error
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as exc:
                raise ConfigError(
                    f"BROADCAST_WEBSOCKET_PORT={port}: cannot listen on {host}: "
                    f"{exc.strerror or exc}; use --port with another port, or 0 for a free one",
                    variable="BROADCAST_WEBSOCKET_PORT",
                ) from None
            self._environ["BROADCAST_WEBSOCKET_PORT"] = str(probe.getsockname()[1])

    def _print_addresses(self, address: str) -> None:
        lines = {
            "open": f"{_reachable(address)}/",
            "dashboard": f"{address}/dashboard",
            "WebSocket": f"{address.replace('http', 'ws', 1)}/ws",
            "NATS": self._nats,
        }
        self._print(f"edge ready on {address}", "green")
        for name, value in lines.items():
            if value:
                self._out.print(
                    Text("  ").append(name.ljust(11), style="bold").append(printable(value))
                )
        if self._token:
            about = "  token      valid for 1 hour: user dev, role admin, all channels"
            self._out.print(Text(about, style="bold"))
            typer.echo(self._token)  # on a single line, to copy it
        if self._folders is not None:
            about = f"  watching {_names(map(str, self._folders))}; press Ctrl-C to stop"
            self._out.print(Text(about, style="dim"))
        sys.stdout.flush()

    def _print(self, text: str, style: str) -> None:
        self._out.print(Text(printable(text), style=style))
        sys.stdout.flush()


def _reachable(address: str) -> str:
    """The address for a browser on this machine, if the edge listens on all interfaces."""
    return address.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")


def _needs_server(settings: Settings) -> bool:
    return "nats" in drivers_of(settings) and not settings.nats_url


def _require_first(folder: Path) -> None:
    """Raise AlreadyRunning if another `eventbus dev` uses the data folder."""
    if url := running_server(folder, _MARK):
        raise AlreadyRunning(
            f"`eventbus dev` is already running in this folder: open {url}/ (for a second one, set "
            "BROADCAST_NATS_DATA to another folder, and --port and BROADCAST_NATS_PORT to 0)"
        )


@contextlib.asynccontextmanager
async def _nats_server(settings: Settings) -> AsyncIterator[str]:
    """Yield the address of a nats-server, which it starts unless another process runs it.

    Yields "" if the settings do not need one.
    """
    if not _needs_server(settings):
        yield ""
        return
    server = NatsServer(Path(settings.nats_data), port=settings.nats_port)
    url = await server.join_or_start()
    try:
        yield url
    finally:
        await server.stop()


def _folders(folders: Iterable[Path], rules_file: str) -> set[Path]:
    """The folders to watch, including that of the rules file."""
    rules = Path(rules_file).absolute().parent
    return {*folders, rules} if rules_file and rules.is_dir() else {*folders}


def _names(paths: Iterable[str]) -> str:
    """The first few paths, relative to the working folder."""
    return ", ".join(sorted(os.path.relpath(path) for path in paths)[:3])
