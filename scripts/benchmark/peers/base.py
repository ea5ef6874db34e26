"""What the benchmark needs of a system: to run it, to connect to it and to publish through it."""

import abc
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scripts.benchmark.loader import MARK, Plan, Step
from scripts.benchmark.machine import HOST, Cores, Process, free_port, start_process

__all__ = [
    "HISTORY",
    "LIBRARY",
    "RESIDENT",
    "SSE",
    "TLS",
    "TOKENS",
    "Client",
    "LinePeer",
    "Peer",
    "Resume",
    "Site",
    "Target",
    "channel",
    "nats",
    "redis",
]  # fmt: skip

HISTORY: Final = "history"
"""The system stores messages, and clients can resume."""
SSE: Final = "sse"
TOKENS: Final = "tokens"
LIBRARY: Final = "library"
TLS: Final = "tls"
RESIDENT: Final = "resident"
"""Its memory is worth a row (the limit keeps nothing)."""


def channel(number: int) -> str:
    """The name of a channel: the same in every system."""
    return f"c{number}"


class Site(NamedTuple):
    """Where a measurement takes place."""

    cores: Cores
    folder: Path
    """For files of this measurement."""
    built: Path
    """Where the compiled programs are."""
    node: Path
    """The folder of the Node peers, with its node_modules."""
    python: Path
    """The interpreter of the Python peers."""


class Resume(NamedTuple):
    """From where a client resumes; `sample` is the last message that it received."""

    channel: str
    sample: bytes


class Client(NamedTuple):
    """What a client subscribes to, and how."""

    number: int
    channels: Sequence[str]
    resume: Resume | None = None
    is_stream: bool = False
    has_token: bool = False


class Target(NamedTuple):
    """A running system."""

    server: Process
    """The process that holds the sockets: the one that is measured."""
    port: int
    publisher_port: int
    preamble: bytes = b""
    """What the publisher sends first."""
    broker: Process | None = None


class Peer(abc.ABC):
    """A system to measure."""

    name: str
    """For the command line."""
    title: str
    """For the tables, at most 22 characters."""
    features: frozenset[str] = frozenset({RESIDENT})
    is_node = False
    """Whether it needs the packages of peers/node."""
    is_python = False
    """Whether it needs the environment of peers/python."""
    replies: Sequence[tuple[str, str]] = ()
    """Texts that the server sends to check that clients are there, and the answers."""
    settings: str = ""
    """What its documentation advises, as results state it."""

    def missing(self) -> str | None:
        """Why it cannot run on this machine, None if it can."""
        return None

    @abc.abstractmethod
    def version(self, site: Site) -> str:
        """Its version."""

    @abc.abstractmethod
    def start(
        self, site: Site, options: Mapping[str, str]
    ) -> contextlib.AbstractContextManager[Target]:
        """Run it. `options` are settings of a workload that only some systems know."""

    @abc.abstractmethod
    def plan(self, client: Client) -> Plan:
        """How a client connects and subscribes."""

    @abc.abstractmethod
    def publication(self, channel: str, payload: bytes) -> bytes:
        """What the publisher sends, on its one connection, for a message."""

    def payload(self, channel: str, padding: int) -> bytes:
        """The message as the application publishes it, with `padding` more bytes."""
        data = {"channel": channel, "event": "tick", "data": {"t": MARK, "x": "x" * padding}}
        return json.dumps(data, separators=(",", ":")).encode()


class LinePeer(Peer):
    """A server whose publisher sends lines: a channel, a tab, the payload."""

    def plan(self, client: Client) -> Plan:
        """The channels are in the address."""
        asked = "&".join(f"channel={each}" for each in client.channels)
        if client.is_stream:
            return Plan(f"/sse?{asked}", [Step(b"joined")], is_stream=True)
        return Plan(f"/ws?{asked}", [])

    def publication(self, channel: str, payload: bytes) -> bytes:
        """One line."""
        return b"%b\t%b\n" % (channel.encode(), payload)


@contextlib.contextmanager
def nats(site: Site) -> Iterator[tuple[Process, int]]:
    """A nats-server with JetStream, from the wheel that eventbus depends on."""
    port = free_port()
    program = Path(sys.executable).parent / "nats-server"
    store = site.folder / f"nats-{port}"
    command = [program, "-a", HOST, "-p", str(port), "-js", "-sd", store]
    with start_process(command, core=site.cores.broker, folder=site.folder, port=port) as process:
        yield process, port


@contextlib.contextmanager
def redis(site: Site) -> Iterator[tuple[Process, int]]:
    """A redis-server without persistence."""
    port = free_port()
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not on PATH")
    command = [
        program, "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no",
        "--client-output-buffer-limit", "pubsub 0 0 0", "--dir", site.folder,
    ]  # fmt: skip
    with start_process(command, core=site.cores.broker, folder=site.folder, port=port) as process:
        yield process, port
