"""The CPU time of an edge for delivering messages."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import aiohttp

from eventbus.messages import Message
from scripts.benchmark.sizing.clients import EVENT
from scripts.benchmark.sizing.crowd import Crowd, Guest, How
from scripts.benchmark.sizing.processes import Measured
from scripts.benchmark.sizing.table import Table, figure
from scripts.benchmark.sizing.workbench import GENERAL, OWN, Workbench, signed_in

__all__ = ["deliveries", "own_channels", "ways"]

FAN_OUTS: Final = (1, 100, 1000, 5000)
SIZES: Final = (200, 2000)
BURST: Final = 50
"""The number of messages in a burst."""
_ANYBODY: Final = Guest(f"/ws?channel={GENERAL}")
_STREAM: Final = Guest(f"/sse?channel={GENERAL}")
_WORDS: Final = ("order", "shipped", "pending", "customer", "the", "total", "of", "paid", "by")

Publish = Callable[[], Awaitable[object]]


async def deliveries(bench: Workbench) -> Table:
    """Deliver messages on one channel to a growing number of clients."""
    rows = []
    for size in SIZES:
        edge = await _edge_by_fan_out(bench, size)
        reference = await _reference_by_fan_out(bench, size)
        for clients, (single, burst) in edge.items():
            compared = reference[clients]
            rows.append(
                (
                    f"{size / 1000:g} KB to {clients:,}",
                    *(figure(each * 1e6) for each in (single, single / clients, burst / clients)),
                    figure(compared / clients * 1e6),
                    f"{single / compared:.2f}" if compared else "-",
                )
            )
    columns = (
        "message",
        "µs per message",
        "µs per client",
        f"in bursts of {BURST}",
        "bare aiohttp",
        "ratio",
    )
    return Table("A delivery, CPU of the edge", columns, rows)


class Way(NamedTuple):
    """How messages reach clients."""

    name: str
    guest: Guest = _ANYBODY
    tls: bool = False
    deflate: bool = False


WAYS: Final = (
    Way("WebSocket"),
    Way("WebSocket, TLS", tls=True),
    Way("WebSocket, compression", deflate=True),
    Way("Server-Sent Events", _STREAM),
    Way("Server-Sent Events, TLS", _STREAM, tls=True),
)


async def ways(bench: Workbench) -> Table:
    """Deliver the same messages over every transport."""
    clients = min(1000, bench.options.clients)
    count = _rounds(bench, clients)
    rows = []
    for way in WAYS:
        how = How(
            "sse" if way.guest is _STREAM else "websocket",
            deflate=way.deflate,
            ca=bench.ca if way.tls else "",
        )
        compression = {"BROADCAST_WEBSOCKET_COMPRESSION": "true"} if way.deflate else {}
        async with bench.edge(tls=way.tls, **compression) as edge, bench.bus() as bus:
            await bench.crowd.open(edge.port, [way.guest] * clients, how)
            taken = []
            for size in SIZES:
                data = _data(size)
                publish = lambda data=data: bus.publish(GENERAL, EVENT, data)  # noqa: E731
                taken.append(await _one_by_one(bench.crowd, edge, publish, count))
        rows.append((way.name, *(figure(each / clients * 1e6) for each in taken)))
    columns = (f"to {clients:,} clients", *(f"{size / 1000:g} KB, µs each" for size in SIZES))
    return Table("A delivery over each transport, CPU of the edge", columns, rows)


async def own_channels(bench: Workbench) -> Table:
    """Deliver messages to single clients, each on its own channel, in bursts."""
    clients = min(1000, bench.options.clients)
    channels = [f"{OWN}.{number}" for number in range(clients)]
    rounds = max(1, bench.options.messages // 20)
    rows = []
    for tls in (False, True):
        async with bench.edge(tls=tls) as edge, bench.bus() as bus:
            guests = [signed_in(number, channel) for number, channel in enumerate(channels)]
            await bench.crowd.open(edge.port, guests, How(ca=bench.ca if tls else ""))
            both = (edge, bench.brokers.measured)
            before = [each.cpu_s() for each in both]
            for _ in range(rounds):
                for at in range(0, clients, BURST):
                    flight = channels[at : at + BURST]
                    await asyncio.gather(*(bus.publish(each, EVENT, _DATA) for each in flight))
                await bench.crowd.expect(messages=1)
            taken = (each.cpu_s() - start for each, start in zip(both, before, strict=True))
            count = rounds * clients
            name = "WebSocket, TLS" if tls else "WebSocket"
            rows.append((name, *(figure(seconds / count * 1e6) for seconds in taken)))
    columns = (f"0.2 KB to one of {clients:,} clients", "edge, µs of CPU", "broker, µs of CPU")
    return Table("A message to one client", columns, rows)


async def _edge_by_fan_out(bench: Workbench, size: int) -> dict[int, tuple[float, float]]:
    """Seconds per message, one by one and in bursts, by number of clients."""
    found = {}
    data = _data(size)
    async with bench.edge() as edge, bench.bus() as bus:
        publish: Publish = lambda: bus.publish(GENERAL, EVENT, data)  # noqa: E731
        async for clients in _growing(bench, edge.port):
            count = _rounds(bench, clients)
            found[clients] = (
                await _one_by_one(bench.crowd, edge, publish, count),
                await _in_bursts(bench.crowd, edge, publish, count),
            )
    return found


async def _reference_by_fan_out(bench: Workbench, size: int) -> dict[int, float]:
    found = {}
    text = Message.create(GENERAL, EVENT, _data(size)).encode().decode()
    async with (
        bench.server("scripts.benchmark.sizing.reference", {}) as server,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{server.port}/publish") as publisher,
    ):
        publish: Publish = lambda: publisher.send_str(text)  # noqa: E731
        async for clients in _growing(bench, server.port):
            count = _rounds(bench, clients)
            found[clients] = await _one_by_one(bench.crowd, server, publish, count)
    return found


async def _growing(bench: Workbench, port: int) -> AsyncIterator[int]:
    """Connect more and more clients. Yields their number."""
    there = 0
    for clients in sorted({min(each, bench.options.clients) for each in FAN_OUTS}):
        await bench.crowd.open(port, [_ANYBODY] * (clients - there))
        there = clients
        yield clients


def _rounds(bench: Workbench, clients: int) -> int:
    """How many messages to send for reliable figures: more if each takes less time."""
    most = bench.options.messages
    return max(most // 5, min(10 * most, 1000 * most // clients))


async def _one_by_one(crowd: Crowd, server: Measured, publish: Publish, count: int) -> float:
    """CPU seconds per message if messages are sent one by one."""
    await _send(crowd, publish, count // 10)  # warm up the node
    cpu = server.cpu_s()
    await _send(crowd, publish, count)
    return (server.cpu_s() - cpu) / count


async def _send(crowd: Crowd, publish: Publish, count: int) -> None:
    for _ in range(count):
        await publish()
        await crowd.expect(messages=1)


async def _in_bursts(crowd: Crowd, server: Measured, publish: Publish, count: int) -> float:
    """CPU seconds per message in bursts: messages that arrive together are written together."""
    cpu = server.cpu_s()
    for at in range(0, count, BURST):
        flight = min(BURST, count - at)
        await asyncio.gather(*(publish() for _ in range(flight)))
        await crowd.expect(messages=flight)
    return (server.cpu_s() - cpu) / count


def _data(size: int) -> dict[str, str]:
    """Data like that of an application, with a realistic compression ratio."""
    pick = random.Random(size)  # noqa: S311 - the same in every run, and no secret
    text = ""
    while len(text) < size:
        text += f"{pick.choice(_WORDS)} {pick.getrandbits(32):x} "
    return {"text": text[:size]}


_DATA: Final = _data(SIZES[0])
