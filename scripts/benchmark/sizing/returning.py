"""The CPU time for reconnecting clients: resuming, and moving to another node in a drain."""

import asyncio
import json
import time
from typing import Final

from eventbus.messages import Receipt
from scripts.benchmark.sizing.clients import EVENT
from scripts.benchmark.sizing.table import Table, figure
from scripts.benchmark.sizing.workbench import OWN, Workbench, signed_in

__all__ = ["drain", "resumes"]

MISSED: Final = 100
CHANNEL: Final = f"{OWN}.missed"


async def resumes(bench: Workbench) -> Table:
    """Subscribe to a channel, with and without missed messages."""
    clients = min(1000, bench.options.clients)
    rows = []
    async with bench.edge() as edge, bench.bus() as bus:
        last = await bus.publish(CHANNEL, EVENT, {"text": "x" * 200})
        for missed in (0, 1, MISSED):
            start = last
            for _ in range(missed):
                last = await bus.publish(CHANNEL, EVENT, {"text": "x" * 200})
            await bench.crowd.open(edge.port, [signed_in(n) for n in range(clients)], joins=0)
            before = edge.cpu_s(), bench.brokers.measured.cpu_s()
            await bench.crowd.send(_subscribe(start))
            await bench.crowd.expect(subscribed=1, messages=missed)
            after = edge.cpu_s(), bench.brokers.measured.cpu_s()
            taken = (figure((b - a) / clients * 1e3) for a, b in zip(before, after, strict=True))
            rows.append((f"{missed} messages missed", *taken))
            await bench.crowd.drop()
    return Table("A resume", ("a subscription", "edge, ms of CPU", "broker, ms of CPU"), rows)


async def drain(bench: Workbench) -> Table:
    """Drain a node, so that all its clients reconnect to another one at once."""
    clients = min(1000, bench.options.clients)
    async with bench.edge() as there, bench.bus() as bus:
        position = await bus.publish(CHANNEL, EVENT, {"text": "x" * 200})
        async with bench.edge() as here:
            await bench.crowd.open(here.port, [signed_in(n) for n in range(clients)], joins=0)
            await bench.crowd.send(_subscribe(position))
            await bench.crowd.expect(subscribed=1)
            await bench.crowd.follow(there.port, _subscribe(position))
            before, start = there.cpu_s(), time.monotonic()
            ending = asyncio.create_task(here.end())
            await bench.crowd.expect(subscribed=1)
            seconds, taken = time.monotonic() - start, there.cpu_s() - before
            await ending
    row = (f"{clients:,}", figure(seconds), figure(taken), figure(taken / clients * 1e3))
    columns = ("clients reconnecting at once", "s until all have resumed", "s of CPU", "ms each")
    return Table("Draining a node: CPU of the node that takes over its clients", columns, [row])


def _subscribe(position: Receipt) -> str:
    resume = {"offset": position.offset, "epoch": position.epoch}
    return json.dumps({"action": "subscribe", "channel": CHANNEL, "data": resume})
