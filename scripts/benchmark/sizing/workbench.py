"""The environment of all measurements: brokers, edges, clients and a bus, in separate processes."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

import trustme

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from scripts.benchmark.sizing.crowd import Crowd, Guest, start_crowd
from scripts.benchmark.sizing.processes import SECRET, Brokers, Server, start_brokers, start_server

__all__ = ["GENERAL", "Options", "Workbench", "signed_in"]

GENERAL: Final = "general"
"""A public channel."""
OWN: Final = "bench"
"""The first token of the channels that this benchmark's tokens grant."""
_HEARTBEAT: Final = "3600"
"""No heartbeats while other things are measured."""


class Options(NamedTuple):
    """The size of the measurements."""

    clients: int = 5000
    messages: int = 200
    seconds: float = 5.0
    processes: int = 2
    driver: str = "nats"


class Workbench:
    """Runs all parts on this machine, over the loopback interface."""

    def __init__(self, options: Options, folder: Path, brokers: Brokers, crowd: Crowd) -> None:
        self.options = options
        self.folder = folder
        self.brokers = brokers
        self.crowd = crowd
        self.ca = str(folder / "ca.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "edge.pem")

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, options: Options, folder: Path) -> AsyncIterator[Self]:
        """Start the brokers and the client processes."""
        async with (
            start_brokers(options.driver, folder) as brokers,
            start_crowd(options.processes) as crowd,
        ):
            yield cls(options, folder, brokers, crowd)

    @contextlib.asynccontextmanager
    async def edge(self, *, tls: bool = False, **settings: str) -> AsyncIterator[Server]:
        """Start an edge with one process, without limits per address."""
        environ = self.brokers.environ | {
            "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
            "BROADCAST_WEBSOCKET_PORT": "0",
            "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS": "1000000",
            "BROADCAST_MAX_CONNECTIONS": "1000000",
            "BROADCAST_HEARTBEAT": _HEARTBEAT,
            "BROADCAST_DRAIN_TIME": "0",
            "JWT_SECRET": SECRET,
        }
        if tls:
            environ["BROADCAST_TLS_CERT"] = str(self.folder / "edge.pem")
        async with self.server("eventbus_edge", environ | settings) as edge:
            yield edge

    @contextlib.asynccontextmanager
    async def server(self, module: str, environ: Mapping[str, str]) -> AsyncIterator[Server]:
        """Start a server. Its clients are disconnected at the end."""
        async with start_server(module, self.folder / "servers.log", environ) as server:
            yield server
            await self.crowd.drop()

    @contextlib.asynccontextmanager
    async def bus(self, brokers: Brokers | None = None) -> AsyncIterator[EventBus]:
        """A bus in this process, for publishing."""
        async with EventBus(Settings.from_env((brokers or self.brokers).environ)) as bus:
            yield bus


def signed_in(number: int, *channels: str) -> Guest:
    """A client with a token that subscribes to channels of this benchmark."""
    asked = "&".join(f"channel={channel}" for channel in channels)
    token = issue_token(f"user-{number}", secret=SECRET, channels=[f"{OWN}.>"])
    return Guest(f"/ws?{asked}", token)
