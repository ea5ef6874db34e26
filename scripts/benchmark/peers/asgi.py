"""Peers from PyPI under uvicorn: Starlette, Django Channels, python-socketio (peers/python)."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

from scripts.benchmark.loader import MARK, Plan
from scripts.benchmark.machine import HOST, free_port, start_process
from scripts.benchmark.peers.base import Client, LinePeer, Site, Target, redis
from scripts.benchmark.peers.node import socketio_plan

__all__ = ["ChannelsPeer", "PythonSocketIoPeer", "StarlettePeer"]

FOLDER: Final = Path(__file__).parent / "python"
_UVICORN: Final = (
    "--loop", "uvloop", "--http", "httptools", "--ws", "websockets", "--ws-per-message-deflate",
    "false", "--no-access-log", "--log-level", "warning", "--backlog", "4096",
)  # fmt: skip


class _AsgiPeer(LinePeer):
    is_python = True
    app: ClassVar[str]
    package: ClassVar[str]
    publisher: ClassVar[str]
    """The argument of publisher.py; empty if messages are published at Redis itself."""

    def missing(self) -> str | None:
        """Redis is needed."""
        return None if shutil.which("redis-server") else "redis-server is not on PATH"

    def version(self, site: Site) -> str:
        """Of the package and of uvicorn."""
        script = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
        names = [self.package, "uvicorn", "websockets"]
        done = subprocess.run(  # noqa: S603 - the environment of this benchmark
            [site.python, "-c", script, *names], capture_output=True, text=True, check=True
        )
        versions = done.stdout.split()
        return ", ".join(f"{name} {v}" for name, v in zip(names, versions, strict=True))

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run Redis, the publisher and the server."""
        port = free_port()
        with contextlib.ExitStack() as stack:
            broker, publisher_port = stack.enter_context(redis(site))
            environ = {"REDIS_URL": f"redis://{HOST}:{publisher_port}/0"}
            if self.publisher:
                publisher_port = free_port()
                command: list[object] = [
                    site.python, FOLDER / "publisher.py", publisher_port, self.publisher,
                ]  # fmt: skip
                stack.enter_context(
                    start_process(
                        command, core=site.cores.loader, folder=site.folder,
                        environ=environ, port=publisher_port,
                    )
                )  # fmt: skip
            command = [
                site.python, "-m", "uvicorn", f"{self.app}:app", "--app-dir", FOLDER,
                "--host", HOST, "--port", port, *_UVICORN,
            ]  # fmt: skip
            server = stack.enter_context(
                start_process(
                    command, core=site.cores.server, folder=site.folder, environ=environ, port=port
                )
            )
            yield Target(server, port, publisher_port, broker=broker)


class StarlettePeer(_AsgiPeer):
    """The loop that most people write, with Redis pub/sub in front."""

    name = "starlette"
    title = "Starlette on Redis"
    app = "starlette_app"
    package = "starlette"
    publisher = ""
    settings = "uvicorn with uvloop, httptools and websockets, no compression; hiredis"

    def publication(self, channel: str, payload: bytes) -> bytes:
        """PUBLISH, as Redis's protocol has it."""
        words = (b"PUBLISH", channel.encode(), payload)
        return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class ChannelsPeer(_AsgiPeer):
    """Consumers and groups."""

    name = "channels"
    title = "Django Channels, Redis"
    app = "channels_app"
    package = "channels"
    publisher = "channels"
    settings = f"channels_redis (pub/sub layer), group_send; {StarlettePeer.settings}"


class PythonSocketIoPeer(_AsgiPeer):
    """Rooms."""

    name = "python-socketio"
    title = "python-socketio, Redis"
    app = "socketio_app"
    package = "python-socketio"
    publisher = "socketio"
    replies = (("2", "3"),)
    settings = f"AsyncRedisManager, published by a write-only one; {StarlettePeer.settings}"

    def plan(self, client: Client) -> Plan:
        """Rooms are joined by an event."""
        return socketio_plan(client)

    def payload(self, channel: str, padding: int) -> bytes:  # noqa: ARG002
        """The data of the event."""
        return json.dumps({"t": MARK, "x": "x" * padding}).encode()
