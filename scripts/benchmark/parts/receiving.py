"""The cost of a message in the edge: from the bytes of the broker's client to those of the sockets.

    .venv/bin/python scripts/benchmark/parts/receiving.py
    .venv/bin/python scripts/benchmark/parts/receiving.py --against ../other-checkout

Feeds bytes to the parser of the client of NATS, and so through the node's own subscription, check,
hub and outboxes, into sinks that discard what is written. There is no broker and no socket, so all
of it is the project's own code. `--against` runs another checkout in alternation, in processes of
their own, and prints the ratio: compare those, since the microseconds depend on the machine.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.drivers.base import Driver, Handler, Position
from eventbus.drivers.nats.client import FastClient
from eventbus.drivers.nats.identity import StreamState
from eventbus.drivers.nats.subscriptions import NatsSubscription
from eventbus.drivers.nats.subscriptions.repeats import Repeats
from eventbus.messages import Message
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing.base import Framing
from eventbus_edge.framing.frames import TEXT_FRAMES
from eventbus_edge.framing.sse import ONE_CHANNEL, ManyChannels
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.protocols.native import NATIVE

EPOCH: Final = "1789000000"
STAMPED: Final = (
    b"NATS/1.0\r\nNats-Msg-Id: 019f5a0e-8f20-7ef1-b4b5-6a0d8bb0ab55:general\r\n"
    b"Nats-Stream: EVENTS\r\nNats-Subject: eb.event.general\r\nNats-Sequence: %d\r\n"
    b"Nats-Time-Stamp: 2026-11-30T12:00:00.123456789Z\r\nNats-Last-Sequence: %d\r\n\r\n"
)
ROUNDS: Final = 3


class Nowhere:
    """A sink that discards everything, and counts the calls."""

    is_behind = False
    writes = 0

    def write(self, _data: bytes) -> None:
        """Discard the bytes."""
        Nowhere.writes += 1

    def unsent(self) -> int:
        """Nothing is buffered."""
        return 0

    def abort(self) -> None:
        """There is nothing to close."""


class _Owner:
    is_verified = True
    repeats = Repeats()
    watched_since = 0

    def resync(self, subscription: NatsSubscription) -> None:
        """Never needed: no message is missing."""
        raise AssertionError(subscription.subject)

    async def leave(self, subscription: NatsSubscription) -> None:
        """Nothing is subscribed at a server."""


class _Bench:
    """One node's delivery, on a client of NATS without a connection."""

    def __init__(self, channels: int, clients: int, framing: Framing) -> None:
        self.channels = [f"general.{number}" for number in range(channels)]
        self.metrics = Metrics()
        self.client = FastClient()
        self.due: list[Callable[[], None]] = []
        self.hub = Hub(self.due.append, lambda _: None, self.metrics.tally.count_written)
        bus = EventBus(Settings(driver="memory"))
        bus.driver = cast(Driver, self)
        self.traffic = Traffic(
            bus, EdgeSettings(), self.hub, self.metrics,
            quarantine=None, rules=ChannelRules(),  # type: ignore[arg-type] # nothing is put there
        )  # fmt: skip
        wire = Wires().own(NATIVE, framing)
        for channel in self.channels:
            for number in range(clients):
                outbox = Outbox(f"{channel}.{number}", wire, Nowhere(), 2**20)
                self.hub.add(channel, outbox)
        self.offset = 0
        self.last = [0] * channels
        self.payloads = [
            Message.create(channel, "news", {"text": "x" * 30}).encode()
            for channel in self.channels
        ]
        self.subjects = [Subjects("eb").live(channel).encode() for channel in self.channels]

    # What Interest uses of a driver

    name = "nats"
    capabilities = frozenset[str]()

    async def subscribe(self, subject: str, handler: Handler) -> NatsSubscription:
        """As NatsDriver does, without a server."""
        subscription = NatsSubscription(_Owner(), subject, handler, b"EVENTS")
        await self.client.listen(subject, subscription.receive)
        subscription.begin(StreamState(EPOCH, 0))
        return subscription

    async def start(self) -> None:
        """Subscribe to all channels."""
        for channel in self.channels:
            await self.traffic.acquire(channel)

    def message(self, number: int) -> bytes:
        """The bytes of the next message, as the server of NATS sends them."""
        self.offset += 1
        at = number % len(self.channels)
        headers = STAMPED % (self.offset, self.last[at])
        self.last[at] = self.offset
        payload = self.payloads[at]
        sizes = len(headers), len(headers) + len(payload)
        return b"HMSG %b %d %d %d\r\n%b%b\r\n" % (
            self.subjects[at], at + 1, *sizes, headers, payload,
        )  # fmt: skip

    def turn(self, data: bytes) -> None:
        """What one read of the broker's connection causes in one turn of the event loop."""
        coroutine = self.client._ps.parse(data)  # noqa: SLF001 - what nats-py's read loop calls
        try:
            coroutine.send(None)
        except StopIteration:
            for flush in self.due:
                flush()
            self.due.clear()
            return
        raise AssertionError("a delivery must not wait")

    def run(self, messages: int, per_turn: int) -> float:
        """µs of CPU per message, written in turns of `per_turn` messages."""
        turns = [
            b"".join(map(self.message, range(first, first + per_turn)))
            for first in range(0, messages, per_turn)
        ]
        gc.collect()
        start = time.process_time()
        for data in turns:
            self.turn(data)
        return (time.process_time() - start) / messages * 1e6


def _many() -> ManyChannels:
    names = [f"general.{number}" for number in range(100)]
    return ManyChannels(names, {name: Position(0, EPOCH) for name in names})


CASES: Final[dict[str, tuple[int, int, Callable[[], Framing], int, int]]] = {
    "1,000 channels, one client each": (1000, 1, lambda: TEXT_FRAMES, 20_000, 20),
    "one channel, one client, alone in its turn": (1, 1, lambda: TEXT_FRAMES, 20_000, 1),
    "one channel, 1,000 clients, alone in its turn": (1, 1000, lambda: TEXT_FRAMES, 300, 1),
    "one channel, 1,000 clients, 20 per turn": (1, 1000, lambda: TEXT_FRAMES, 600, 20),
    "SSE: one channel, 1,000 clients": (1, 1000, lambda: ONE_CHANNEL, 300, 1),
    "SSE: a stream of 100 channels": (100, 1, _many, 5_000, 20),
}
"""Channels, clients of each, framing, messages, messages per turn of the event loop."""


async def measure() -> dict[str, float]:
    """µs per message of each case, the best of three."""
    found = {}
    for name, (channels, clients, framing, messages, per_turn) in CASES.items():
        bench = _Bench(channels, clients, framing())
        await bench.start()
        bench.run(messages // 4, per_turn)
        found[name] = min(bench.run(messages, per_turn) for _ in range(3))
    return found


def measure_in(checkout: Path) -> dict[str, float]:
    """The same, with the code of another checkout, in a process of its own."""
    path = os.pathsep.join([str(checkout), str(checkout / "edge")])
    done = subprocess.run(  # noqa: S603 - this script
        [sys.executable, __file__, "--json"],
        env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return cast("dict[str, float]", json.loads(done.stdout))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--json", action="store_true", help="print one run as JSON")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(asyncio.run(measure())))
        return
    here = Path(__file__).parents[3]
    checkouts = [here] if given.against is None else [given.against.resolve(), here]
    runs: list[list[dict[str, float]]] = [[] for _ in checkouts]
    for _ in range(ROUNDS):
        for checkout, found in zip(checkouts, runs, strict=True):
            found.append(measure_in(checkout))
    for name in CASES:
        best = [min(run[name] for run in found) for found in runs]
        figures = "".join(f"{each:10.2f} µs" for each in best)
        if len(runs) > 1:
            pairs = zip(*runs, strict=True)
            ratio = statistics.median(new[name] / old[name] for old, new in pairs)
            figures += f"  ratio {ratio:.2f}"
        print(f"{name:<48}{figures}", flush=True)


if __name__ == "__main__":
    main()
