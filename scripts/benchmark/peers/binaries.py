"""Centrifugo and AnyCable, if they are on PATH. The benchmark neither builds nor fetches them.

Written after the documentation of Centrifugo 6 (server configuration, server API, client protocol)
and of AnyCable 1.6 (public streams, broadcasting, broker, Action Cable extended protocol).
"""

import abc
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from scripts.benchmark.loader import MARK, Plan, Step, text_frame
from scripts.benchmark.machine import HOST, Process, free_port, program_version, start_process
from scripts.benchmark.peers.base import (
    HISTORY,
    RESIDENT,
    Client,
    Peer,
    Resume,
    Site,
    Target,
    nats,
    redis,
)

__all__ = [
    "AnyCableNatsPeer", "AnyCablePeer", "CentrifugoNatsPeer", "CentrifugoPeer",
    "CentrifugoRedisPeer",
]  # fmt: skip

_ONE_CORE: Final = {"GOMAXPROCS": "1"}
"""The process has one core: more threads than cores would only cost switches."""


def _post(path: str, body: Any) -> bytes:
    data = _json(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class _BinaryPeer(Peer):
    program: ClassVar[str]
    version_argument: ClassVar[str]

    def missing(self) -> str | None:
        """The program must be on PATH."""
        return None if shutil.which(self.program) else f"{self.program} is not on PATH"

    def version(self, site: Site) -> str:  # noqa: ARG002
        """Of the program."""
        return program_version(self.program, self.version_argument) or "unknown"

    def payload(self, channel: str, padding: int) -> bytes:  # noqa: ARG002
        """The data of a publication."""
        return _json({"t": MARK, "x": "x" * padding}).encode()


class CentrifugoPeer(_BinaryPeer):
    """Centrifugo with its memory engine."""

    name = "centrifugo"
    title = "Centrifugo in memory"
    program = "centrifugo"
    version_argument = "version"
    features = frozenset({HISTORY, RESIDENT})
    replies = (("{}", "{}"),)  # its ping and pong
    settings = "memory engine, history of 100, HTTP API, JSON protocol"

    @contextlib.contextmanager
    def broker(self, site: Site) -> Iterator[tuple[dict[str, Any], Process | None]]:  # noqa: ARG002
        """Yield its part of the configuration, and the running broker."""
        yield {}, None

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run the broker and Centrifugo."""
        port = free_port()
        with self.broker(site) as (config, broker):
            history = {
                "history_size": 100, "history_ttl": "600s", "allow_recovery": True,
            } if HISTORY in self.features else {}  # fmt: skip
            config |= {
                "http_server": {"address": HOST, "port": port},
                "http_api": {"insecure": True},
                "client": {"allow_anonymous_connect_without_token": True},
                "channel": {
                    "without_namespace": {
                        "allow_subscribe_for_client": True,
                        "allow_subscribe_for_anonymous": True,
                        **history,
                    }
                },
                "log": {"level": "error"},
                "usage_stats": {"disabled": True},
            }
            path = site.folder / "centrifugo.json"
            path.write_text(json.dumps(config), encoding="utf-8")
            command = [shutil.which(self.program), "--config", path]
            with start_process(
                command, core=site.cores.server, folder=site.folder, environ=_ONE_CORE, port=port
            ) as server:
                yield Target(server, port, port, broker=broker)

    def plan(self, client: Client) -> Plan:
        """Connect and subscribe in one frame, as its protocol allows."""
        commands: list[dict[str, Any]] = [{"id": 1, "connect": {}}]
        for number, name in enumerate(client.channels, 2):
            subscribe = {"channel": name, **_centrifugo_position(client.resume)}
            commands.append({"id": number, "subscribe": subscribe})
        frame = text_frame("\n".join(map(_json, commands)))
        return Plan(
            "/connection/websocket",
            [Step(b"", frame), Step(b',"subscribe":', times=len(client.channels))],
        )

    def publication(self, channel: str, payload: bytes) -> bytes:
        """A request of its HTTP API."""
        return _post("/api/publish", {"channel": channel, "data": json.loads(payload)})


def _centrifugo_position(resume: Resume | None) -> dict[str, Any]:
    if resume is None:
        return {}
    # The sample may be several replies, one per line. Without an epoch, any epoch will do.
    last = json.loads(resume.sample.split(b"\n")[-1])
    return {"recover": True, "offset": last["push"]["pub"]["offset"], "epoch": ""}


class CentrifugoNatsPeer(CentrifugoPeer):
    """The same, with NATS between nodes. It has no history there."""

    name = "centrifugo-nats"
    title = "Centrifugo on NATS"
    features = frozenset({RESIDENT})
    settings = "NATS broker (no history), HTTP API, JSON protocol"

    @contextlib.contextmanager
    def broker(self, site: Site) -> Iterator[tuple[dict[str, Any], Process | None]]:
        """Run NATS."""
        with nats(site) as (process, port):
            url = {"url": f"nats://{HOST}:{port}"}
            yield {"broker": {"enabled": True, "type": "nats", "nats": url}}, process


class CentrifugoRedisPeer(CentrifugoPeer):
    """The same, with Redis."""

    name = "centrifugo-redis"
    title = "Centrifugo on Redis"
    settings = "Redis engine, history of 100, HTTP API, JSON protocol"

    def missing(self) -> str | None:
        """Redis is needed, too."""
        return super().missing() or (
            None if shutil.which("redis-server") else "redis-server is not on PATH"
        )

    @contextlib.contextmanager
    def broker(self, site: Site) -> Iterator[tuple[dict[str, Any], Process | None]]:
        """Run Redis."""
        with redis(site) as (process, port):
            address = {"address": f"redis://{HOST}:{port}"}
            yield {"engine": {"type": "redis", "redis": address}}, process


class _AnyCable(_BinaryPeer, abc.ABC):
    program = "anycable-go"
    version_argument = "-v"

    @abc.abstractmethod
    def options(self, broker_port: int) -> Sequence[str]:
        """The options that say how messages come in."""

    @contextlib.contextmanager
    def serve(
        self, site: Site, broker_port: int, *, publisher_port: int, preamble: bytes = b""
    ) -> Iterator[Target]:
        """Run AnyCable."""
        port = free_port()
        command = [
            shutil.which(self.program), "--host", HOST, "--port", port, "--public", "--norpc",
            "--log_level", "error", *self.options(broker_port),
        ]  # fmt: skip
        with start_process(
            command, core=site.cores.server, folder=site.folder, environ=_ONE_CORE, port=port
        ) as server:
            yield Target(server, port, publisher_port, preamble)

    def plan(self, client: Client) -> Plan:
        """Subscribe to public streams with the extended protocol."""
        steps = [Step(b'"welcome"')]
        for name in client.channels:
            identifier = _json({"channel": "$pubsub", "stream_name": name})
            command = {"command": "subscribe", "identifier": identifier}
            command |= _anycable_position(client.resume)
            steps += [Step(b"", text_frame(_json(command))), Step(b"confirm_subscription")]
        return Plan("/cable", steps, ["Sec-WebSocket-Protocol: actioncable-v1-ext-json"])

    def publication(self, channel: str, payload: bytes) -> bytes:
        """What NATS carries."""
        body = _json({"stream": channel, "data": payload.decode()}).encode()
        return b"PUB __anycable__ %d\r\n%b\r\n" % (len(body), body)


def _anycable_position(resume: Resume | None) -> dict[str, Any]:
    if resume is None:
        return {}
    last = json.loads(resume.sample)
    position = {"offset": last["offset"], "epoch": last["epoch"]}
    return {"history": {"streams": {last["stream_id"]: position}}}


class AnyCablePeer(_AnyCable):
    """AnyCable with its broker in memory, so that clients can resume."""

    name = "anycable"
    title = "AnyCable in memory"
    features = frozenset({HISTORY, RESIDENT})
    settings = "public streams, broker in memory, HTTP broadcasts, extended protocol"

    def options(self, broker_port: int) -> Sequence[str]:
        """Broadcasts over HTTP, at a port of their own."""
        return ("--broker=memory", "--broadcast_adapter=http",
                f"--http_broadcast_port={broker_port}")  # fmt: skip

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run it."""
        publisher_port = free_port()
        with self.serve(site, publisher_port, publisher_port=publisher_port) as target:
            yield target

    def publication(self, channel: str, payload: bytes) -> bytes:
        """A request."""
        return _post("/_broadcast", {"stream": channel, "data": payload.decode()})


class AnyCableNatsPeer(_AnyCable):
    """AnyCable with broadcasts through NATS, which have no history."""

    name = "anycable-nats"
    title = "AnyCable on NATS"
    settings = "public streams, NATS broadcasts, extended protocol"

    def options(self, broker_port: int) -> Sequence[str]:
        """Broadcasts over NATS."""
        return "--broadcast_adapter=nats", f"--nats_servers=nats://{HOST}:{broker_port}"

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:  # noqa: ARG002
        """Run NATS and AnyCable."""
        preamble = b'CONNECT {"verbose":false}\r\n'
        with (
            nats(site) as (broker, port),
            self.serve(site, port, publisher_port=port, preamble=preamble) as target,
        ):
            yield target._replace(broker=broker)
