"""Peers from npm: ws, Socket.IO and Bun (peers/node)."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from scripts.benchmark.loader import MARK, Plan, Step, text_frame
from scripts.benchmark.machine import free_port, start_process, version_of
from scripts.benchmark.peers.base import Client, LinePeer, Site, Target, redis

__all__ = ["BunPeer", "SocketIoPeer", "SocketIoRedisPeer", "WsPeer", "socketio_plan"]


class _NodePeer(LinePeer):
    is_node = True
    package: ClassVar[str]
    script: ClassVar[str]

    def missing(self) -> str | None:
        """Node and npm are needed."""
        return None if shutil.which("npm") else "npm is not on PATH"

    def version(self, site: Site) -> str:
        """Of the package, from its lock file."""
        lock = json.loads((site.node / "package-lock.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = lock["packages"][f"node_modules/{self.package}"]
        return f"{self.package} {found['version']}{self.runtime()}"

    def runtime(self) -> str:
        """The version of what runs it, if that is another program."""
        return f", Node {version_of(['node', '--version'])}"

    def command(self, site: Site) -> Sequence[object]:
        """What runs the script."""
        return ["node", site.node / self.script]

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run the script."""
        port, publisher = free_port(), free_port()
        command = [*self.command(site), str(port), str(publisher)]
        with start_process(
            command, core=site.cores.server, folder=site.folder, port=port,
            environ={"NODE_ENV": "production"},
        ) as server:  # fmt: skip
            yield Target(server, port, publisher)


class WsPeer(_NodePeer):
    """A loop over the clients of a channel."""

    name = "ws"
    title = "Node ws"
    package = "ws"
    script = "ws-server.js"
    settings = "no compression, bufferutil, payload encoded once"


class BunPeer(_NodePeer):
    """Bun's own publish."""

    name = "bun"
    title = "Bun publish"
    package = "bun"
    script = "bun-server.js"
    settings = "server.publish() to a topic, no compression"

    def runtime(self) -> str:
        """Bun runs itself."""
        return ""

    def command(self, site: Site) -> Sequence[object]:
        """Bun runs it, not Node."""
        return [site.node / "node_modules" / ".bin" / "bun", site.node / self.script]


class SocketIoPeer(_NodePeer):
    """Rooms in one process."""

    name = "socketio"
    title = "Socket.IO"
    package = "socket.io"
    script = "socketio-server.js"
    replies = (("2", "3"),)  # Engine.IO's ping and pong
    settings = "WebSocket only, no compression, bufferutil, request discarded"

    def plan(self, client: Client) -> Plan:
        """Rooms are joined by an event."""
        return socketio_plan(client)

    def payload(self, channel: str, padding: int) -> bytes:  # noqa: ARG002
        """The data of the event."""
        return json.dumps({"t": MARK, "x": "x" * padding}).encode()


class SocketIoRedisPeer(SocketIoPeer):
    """The same, with messages from another process through Redis."""

    name = "socketio-redis"
    title = "Socket.IO on Redis"
    settings = f"{SocketIoPeer.settings}; @socket.io/redis-adapter, published by redis-emitter"

    def missing(self) -> str | None:
        """It needs Redis too."""
        if shutil.which("redis-server") is None:
            return "redis-server is not on PATH"
        return super().missing()

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run Redis, the emitter and the server."""
        port, publisher = free_port(), free_port()
        with redis(site) as (broker, broker_port):
            emitter = ["node", site.node / "socketio-emitter.js", str(publisher), str(broker_port)]
            command = [*self.command(site), str(port), "0", str(broker_port)]
            with (
                start_process(
                    emitter, core=site.cores.loader, folder=site.folder, port=publisher
                ),
                start_process(
                    command, core=site.cores.server, folder=site.folder, port=port,
                    environ={"NODE_ENV": "production"},
                ) as server,
            ):  # fmt: skip
                yield Target(server, port, publisher, broker=broker)


def socketio_plan(client: Client) -> Plan:
    """The handshakes of Engine.IO and Socket.IO, then an event that joins rooms."""
    join = json.dumps(["join", list(client.channels)], separators=(",", ":"))
    return Plan(
        "/socket.io/?EIO=4&transport=websocket",
        [
            Step(b"0{", text_frame("40")),
            Step(b"40{", text_frame(f"42{join}")),
            Step(b'"joined"'),
        ],
    )
