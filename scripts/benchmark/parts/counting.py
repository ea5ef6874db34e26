"""The cost of metrics on the hot path: a message from the bus to the frames of N clients.

    .venv/bin/python scripts/benchmark/parts/counting.py

Compares the delivery of `Traffic` with the same delivery without metrics, and with the counters of
prometheus-client. Compare the ratios: the microseconds depend on the machine.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from eventbus import tracing
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import Delivery, Position
from eventbus.drivers.nats.client import WireHeaders
from eventbus.messages import Message, utc_now
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.delivery.traffic import (
    Traffic,
    to_message,
)
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing.frames import TEXT_FRAMES
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.protocols.native import NATIVE

CHANNEL: Final = "general"
MESSAGES: Final = 20_000
ROUNDS: Final = 7


class NullSink:
    """A sink that discards everything."""

    is_behind = False

    def write(self, data: bytes) -> None:
        """Discard the bytes."""

    def unsent(self) -> int:
        """Nothing is buffered."""
        return 0

    def abort(self) -> None:
        """There is nothing to close."""


def new_hub(clients: int, on_written: Callable[[int], None] = lambda _: None) -> Hub:
    hub = Hub(lambda _: None, lambda _: None, on_written)
    wire = Wires().shared(NATIVE, TEXT_FRAMES)
    for number in range(clients):
        hub.add(CHANNEL, Outbox(f"c{number}", wire, NullSink(), 2**20))
    return hub


def timed(deliver: Callable[[], None], hub: Hub) -> float:
    """CPU time per message in microseconds."""
    start = time.process_time()
    for _ in range(MESSAGES // 10):
        for _ in range(10):  # ten messages per turn of the loop
            deliver()
        hub.flush()
    return (time.process_time() - start) / MESSAGES * 1e6


def new_traffic(hub: Hub, metrics: Metrics) -> Traffic:
    return Traffic(
        EventBus(Settings(driver="memory")), EdgeSettings(), hub, metrics,
        quarantine=None, rules=ChannelRules(),  # type: ignore[arg-type] # nothing is put there
    )  # fmt: skip


def variants(clients: int, delivery: Delivery) -> dict[str, tuple[Callable[[], None], Hub]]:
    plain_hub = new_hub(clients)
    registry = CollectorRegistry()
    came = Counter("came", "…", registry=registry)
    went = Counter("went", "…", registry=registry)
    size = Counter("size", "…", registry=registry)
    latency = Histogram("latency", "…", registry=registry)
    metrics = Metrics()
    own_hub = new_hub(clients, metrics.tally.count_written)
    counted_hub = new_hub(clients)
    traffic = new_traffic(own_hub, metrics)

    def plain() -> None:
        plain_hub.deliver(to_message(CHANNEL, delivery))

    def two_counters() -> None:
        came.inc()
        went.inc(counted_hub.deliver(to_message(CHANNEL, delivery)))

    def by_client_library() -> None:
        two_counters()
        size.inc(len(delivery.payload))
        latency.observe(0.01)

    return {
        "no metrics": (plain, plain_hub),
        "two counters of prometheus-client": (two_counters, counted_hub),
        "all with prometheus-client": (by_client_library, counted_hub),
        "all, as in a node": (lambda: traffic.take(CHANNEL, delivery), own_hub),
    }


def traced(clients: int, delivery: Delivery) -> tuple[Callable[[], None], Hub]:
    metrics = Metrics()
    hub = new_hub(clients, metrics.tally.count_written)
    traffic = new_traffic(hub, metrics)
    return lambda: traffic.take(CHANNEL, delivery), hub


async def main() -> None:
    payload = Message.create(CHANNEL, "news", {"text": "x" * 200}).encode()
    stamp = utc_now().isoformat().replace("+00:00", "123Z")
    headers = WireHeaders(b"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Msg-Id: 8\r\n\r\n")
    delivery = Delivery("eb.live.general", payload, headers, Position(7, "e"), 6, stamp)
    tables = {clients: variants(clients, delivery) for clients in (1, 100)}
    tracing.load()
    for clients, table in tables.items():
        table["the same, with OpenTelemetry"] = traced(clients, delivery)
        rounds: dict[str, list[float]] = {name: [] for name in table}
        for _ in range(ROUNDS):
            for name, (deliver, hub) in table.items():
                rounds[name].append(timed(deliver, hub))
        base = min(rounds["no metrics"])
        print(f"{clients} subscribers of the channel")
        for name, times in rounds.items():
            best = min(times)
            print(f"  {name:<36}{best:8.2f} µs  {best / base:5.2f}")


if __name__ == "__main__":
    asyncio.run(main())
