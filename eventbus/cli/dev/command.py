"""`eventbus dev`: a nats-server, an edge node, and a new one whenever the application changes.

The nats-server is this process's child, so that history and offsets outlive a reload. Each edge is
a process of its own. A new one is started beside the old one, on the same port; only when it
listens is the old one drained, and its clients come to the new one and resume. One that cannot
start says why, and the old one stays.
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
from eventbus.cli.tokens.commands import issue_token
from eventbus.config import Settings
from eventbus.environment import child_environment
from eventbus.errors import ConfigError
from eventbus.server import NatsServer

__all__ = ["dev"]


_READY: Final = "edge ready on "
_END_S: Final = 10.0
_SETTLE_MS: Final = 200
"""Changes within that time are one: editors write a file in several steps."""
_KEYS: Final = ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL")


class _Watched(watchfiles.PythonFilter):
    """Python files, the rules file, and pyproject.toml, which may name the application."""

    def __init__(self, rules_file: str) -> None:
        super().__init__()
        self._rules = str(Path(rules_file).absolute()) if rules_file else ""
        self._ignore_dirs = {*self._ignore_dirs, ".eventbus", "venv", ".ruff_cache"}

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
            stdin=asyncio.subprocess.PIPE,  # it ends when this process does, in whatever way
            stdout=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,  # Ctrl-C is for us
        )
        return cls(process)

    async def listens(self) -> bool:
        """Wait until it listens; False when it has ended instead."""
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return self._ready.is_set()

    async def stop(self) -> None:
        """Drain it, in bounded time."""
        if self.process.returncode is None:
            self.process.terminate()
            _, late = await asyncio.wait({self.ended}, timeout=_END_S)
            if late:
                self.process.kill()
        await self.ended
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError:  # longer than the buffer, from which asyncio has dropped it
                sys.stdout.write("(a line that is too long to show)\n")
                continue
            if not line:
                return
            text = line.decode(errors="replace")
            if text.startswith(_READY):
                self.address = text[len(_READY) :].split()[0]
                self._ready.set()
            else:
                sys.stdout.write(text)
                sys.stdout.flush()


def dev(
    host: Host = None,
    port: Port = None,
    app: App = None,
    reload: Annotated[
        bool, typer.Option(help="Start the edge anew when a Python or rules file changes.")
    ] = True,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder to watch; repeatable. The present one by default.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Run everything for development: a nats-server, and an edge that follows your changes.

    Clients resume where they were. Without keys in the settings, tokens are signed with a secret
    of this folder, and one is printed that may join anything.

    Example: eventbus dev --app myapp.channels --port 8080
    """
    given = {"BROADCAST_WEBSOCKET_HOST": host, "BROADCAST_WEBSOCKET_PORT": port, "EDGE_APP": app}
    changes = {name: str(value) for name, value in given.items() if value is not None}
    environ = child_environment(changes)
    if environ.get("BROADCAST_ENVIRONMENT", "").strip() == "production":
        fail(
            "BROADCAST_ENVIRONMENT=production: eventbus dev is for development; start an edge by "
            "eventbus edge run",
            code=2,
        )
    environ["BROADCAST_WEBSOCKET_HOST"] = environ.get("BROADCAST_WEBSOCKET_HOST") or "127.0.0.1"
    environ["BROADCAST_DRAIN_TIME"] = environ.get("BROADCAST_DRAIN_TIME") or "0"
    environ |= {"BROADCAST_WORKERS": "1", "EDGE_SUPERVISED": "true"}
    token = ""
    if not any(environ.get(key) for key in _KEYS):
        environ["JWT_SECRET"] = dev_secret()
        token = issue_token(
            environ["JWT_SECRET"], "dev", name="Dev", roles=["admin"], channels=[">"]
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
        self._out = console()

    async def run(self) -> int:
        """Until Ctrl-C or SIGTERM; the exit code. Raises ConfigError, ServerError."""
        from eventbus.drivers.nats.auth import Servers  # noqa: PLC0415 - it imports nats-py

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends the process
                loop.add_signal_handler(number, self._stop.set)
        settings = Settings.from_env(self._environ)
        given = Servers.of(settings.nats_url).shown
        self._take_port()
        async with _nats_server(settings) as url:
            self._nats = url or given
            if url:
                self._environ["NATS_URL"] = url
            try:
                return await self._follow()
            finally:
                if self._edge is not None:
                    await self._edge.stop()

    async def _follow(self) -> int:
        """Start an edge, and another one after each change."""
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
                self._say(f"changed: {_names(self._changed)}: starting anew", "cyan")
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
        """Put a new edge in the old one's place; whether there is a new one."""
        new, old = await _Edge.start(self._environ), self._edge
        stopping = asyncio.create_task(self._stop.wait())
        listening = asyncio.create_task(new.listens())
        await asyncio.wait({stopping, listening}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not listening.done() or not listening.result():
            listening.cancel()
            await new.stop()
            if not self._stop.is_set():
                lives = old is not None and old.process.returncode is None
                kept = "; the edge before it stays" if lives else ""
                more = ": save a file to try again" if self._folders is not None else ""
                self._say(f"the edge could not start{kept}{more}", "red")
            return False
        self._edge = new
        new.ended.add_done_callback(lambda _: self._on_end(new))
        self._environ["BROADCAST_WEBSOCKET_PORT"] = new.address.rpartition(":")[2]
        if old is None:
            self._tell(new.address)
        else:
            await old.stop()
            self._say(f"ready again on {new.address}", "green")
        return True

    def _on_end(self, edge: _Edge) -> None:
        if edge is self._edge and not self._stop.is_set():
            self._say(f"the edge has ended (exit code {edge.process.returncode})", "red")

    async def _watch(self, folders: Iterable[Path]) -> None:
        """Note what changes, until the end, of which it tells too."""
        rules_file = self._environ.get("BROADCAST_RULES", "")
        try:
            async for changes in watchfiles.awatch(
                *_folders(folders, rules_file),
                watch_filter=_Watched(rules_file),
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

    def _take_port(self) -> None:
        """Whether the port is free: edges share it with each other, and would with a stranger."""
        host = self._environ["BROADCAST_WEBSOCKET_HOST"]
        port = self._environ.get("BROADCAST_WEBSOCKET_PORT") or "8080"
        if not port.isdecimal() or int(port) > 65535:
            return  # the edge says what is wrong with it
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, int(port)))
            except OSError as exc:
                raise ConfigError(
                    f"BROADCAST_WEBSOCKET_PORT={port}: cannot listen on {host}: "
                    f"{exc.strerror or exc}; give --port another one, or 0 for a free one",
                    variable="BROADCAST_WEBSOCKET_PORT",
                ) from None
            self._environ["BROADCAST_WEBSOCKET_PORT"] = str(tried.getsockname()[1])

    def _tell(self, address: str) -> None:
        lines = {
            "edge": address,
            "dashboard": f"{address}/dashboard",
            "WebSocket": f"{address.replace('http', 'ws', 1)}/ws",
            "NATS": self._nats,
        }
        self._say(f"edge ready on {address}", "green")
        for name, value in lines.items():
            if value:
                self._out.print(Text("  ").append(name.ljust(11), style="bold").append(value))
        if self._token:
            about = "  token      for an hour, user dev, admin, any channel:"
            self._out.print(Text(about, style="bold"))
            typer.echo(self._token)  # on one line, to be copied
        if self._folders is not None:
            about = f"  watching {_names(map(str, self._folders))}; Ctrl-C ends it"
            self._out.print(Text(about, style="dim"))
        sys.stdout.flush()

    def _say(self, text: str, style: str) -> None:
        self._out.print(Text(text, style=style))
        sys.stdout.flush()


@contextlib.asynccontextmanager
async def _nats_server(settings: Settings) -> AsyncIterator[str]:
    """The address of a nats-server of our own; empty where the settings need none."""
    needs_one = settings.driver == "nats" or (
        settings.driver == "stack" and "nats" in settings.stack
    )
    if not needs_one or settings.nats_url:
        yield ""
        return
    async with NatsServer(Path(settings.nats_data), port=settings.nats_port) as server:
        yield server.url


def _folders(folders: Iterable[Path], rules_file: str) -> set[Path]:
    """The folders to watch: the rules file's too."""
    rules = Path(rules_file).absolute().parent
    return {*folders, rules} if rules_file and rules.is_dir() else {*folders}


def _names(paths: Iterable[str]) -> str:
    """The first few of the paths, as seen from here."""
    return ", ".join(sorted(os.path.relpath(path) for path in paths)[:3])
