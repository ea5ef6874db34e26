"""The CPU time of a publisher and of the broker for publishing messages."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable
from typing import Final

from eventbus.bus import EventBus
from schemas import ChatMessage
from scripts.benchmark.sizing.clients import EVENT
from scripts.benchmark.sizing.processes import start_brokers
from scripts.benchmark.sizing.table import Table, figure
from scripts.benchmark.sizing.workbench import GENERAL, Workbench

__all__ = ["publishing"]

IN_FLIGHT: Final = 200
BATCH: Final = 100
CLUSTER: Final = 3
_TEXT: Final = "x" * 200


async def publishing(bench: Workbench) -> Table:
    """Publish messages of 0.2 KB without subscribers, with one replica and with three on NATS."""
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        brokers = {"": bench.brokers}
        if bench.options.driver == "nats":
            cluster = start_brokers("nats", bench.folder, CLUSTER)
            brokers[f", {CLUSTER} replicas"] = await stack.enter_async_context(cluster)
        for where, each in brokers.items():
            async with bench.bus(each) as bus:
                for how, publish in WAYS.items():
                    await publish(bus, 20)  # warm up
                    count = 10 * bench.options.messages
                    publisher, broker = time.process_time(), each.measured.cpu_s()
                    waits = await publish(bus, count)
                    await _publish(bus)  # a barrier: earlier messages have arrived
                    taken = time.process_time() - publisher, each.measured.cpu_s() - broker
                    rows.append(
                        (
                            f"{how}{where}",
                            *(figure(seconds / count * 1e6) for seconds in taken),
                            figure(statistics.median(waits) * 1e3),
                        )
                    )
    columns = ("message", "publisher, µs of CPU", "broker, µs of CPU", "ms until acknowledged")
    return Table("A publish", columns, rows)


async def _one_after_another(bus: EventBus, count: int) -> list[float]:
    return [await _waited(_publish(bus)) for _ in range(count)]


async def _in_flight(bus: EventBus, count: int) -> list[float]:
    waits: list[float] = []
    for at in range(0, count, IN_FLIGHT):
        flight = min(IN_FLIGHT, count - at)
        waits += await asyncio.gather(*(_waited(_publish(bus)) for _ in range(flight)))
    return waits


async def _batches(bus: EventBus, count: int) -> list[float]:
    events = [ChatMessage(room_id="1", user_id="7", name="Ada", text=_TEXT) for _ in range(count)]
    return [await _waited(bus.dispatch(*events[at : at + BATCH])) for at in range(0, count, BATCH)]


async def _volatile(bus: EventBus, count: int) -> list[float]:
    return [await _waited(_publish(bus, volatile=True)) for _ in range(count)]


def _publish(bus: EventBus, *, volatile: bool = False) -> Awaitable[object]:
    return bus.publish(GENERAL, EVENT, {"text": _TEXT}, volatile=volatile)


async def _waited(publishing: Awaitable[object]) -> float:
    """How long an awaitable takes, in seconds."""
    start = time.perf_counter()
    await publishing
    return time.perf_counter() - start


WAYS: Final = {
    "durable, one after another": _one_after_another,
    f"durable, {IN_FLIGHT} in flight": _in_flight,
    f"events dispatched in batches of {BATCH}": _batches,
    "volatile": _volatile,
}
