"""The cost of connections: memory while they are open, and CPU time to open them."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from scripts.benchmark.sizing.crowd import Guest, How
from scripts.benchmark.sizing.table import Table, figure
from scripts.benchmark.sizing.workbench import GENERAL, OWN, Workbench, signed_in

__all__ = ["channels", "connections", "heartbeats"]

CHANNELS_EACH: Final = 50
"""Channels per client in the measurement of channels."""
_ANONYMOUS: Final = Guest(f"/ws?channel={GENERAL}")
_STREAM: Final = Guest(f"/sse?channel={GENERAL}")


class Case(NamedTuple):
    """One kind of connection."""

    name: str
    guest: Callable[[int], Guest]
    tls: bool = False
    deflate: bool = False
    is_stream: bool = False
    is_reference: bool = False


CASES: Final = (
    Case("WebSocket, a public channel", lambda _: _ANONYMOUS),
    Case("the same, TLS", lambda _: _ANONYMOUS, tls=True),
    Case("the same, compression", lambda _: _ANONYMOUS, deflate=True),
    Case("the same, TLS and compression", lambda _: _ANONYMOUS, tls=True, deflate=True),
    Case("Server-Sent Events", lambda _: _STREAM, is_stream=True),
    Case("the same, TLS", lambda _: _STREAM, is_stream=True, tls=True),
    Case("WebSocket, token, its own channel", lambda n: signed_in(n, f"{OWN}.{n}")),
    Case("the same, TLS", lambda n: signed_in(n, f"{OWN}.{n}"), tls=True),
    Case(
        "WebSocket, token, presence with nine others", lambda n: signed_in(n, f"presence.{n // 10}")
    ),
    Case("bare aiohttp, for comparison", lambda _: Guest("/ws"), is_reference=True),
)


class Cost(NamedTuple):
    """The cost of the connections of a case."""

    empty: int
    """Bytes of memory of the server without connections."""
    each_bytes: float
    each_s: float


async def connections(bench: Workbench) -> Table:
    """Measure each kind of connection on an otherwise idle server."""
    rows = []
    for case in CASES:
        cost = await _measure(bench, case)
        rows.append(
            (
                case.name,
                figure(cost.empty / 2**20),
                figure(cost.each_bytes / 2**10),
                figure(cost.each_s * 1e3),
            )
        )
    columns = ("connection", "idle server, MiB", "each, KiB", "to connect, ms of CPU")
    return Table("A connection", columns, rows)


async def _measure(bench: Workbench, case: Case) -> Cost:
    if case.is_reference:
        server = bench.server("scripts.benchmark.sizing.reference", {})
    else:
        compression = {"BROADCAST_WEBSOCKET_COMPRESSION": "true"} if case.deflate else {}
        server = bench.edge(tls=case.tls, **compression)
    ca = bench.ca if case.tls else ""
    how = How("sse" if case.is_stream else "websocket", deflate=case.deflate, ca=ca)
    guests = [case.guest(number) for number in range(bench.options.clients)]
    # The first connections also pay for what all share, so they are not measured.
    first = max(1, len(guests) // 5)
    async with server as measured:
        empty = measured.resident()
        await bench.crowd.open(measured.port, guests[:first], how)
        memory, cpu = measured.resident(), measured.cpu_s()
        await bench.crowd.open(measured.port, guests[first:], how)
        rest = max(1, len(guests) - first)
        return Cost(empty, (measured.resident() - memory) / rest, (measured.cpu_s() - cpu) / rest)


async def channels(bench: Workbench) -> Table:
    """Measure a channel with a subscriber, and one more subscriber."""
    cases: dict[str, Callable[[int, int], str]] = {
        "a channel with one subscriber": lambda n, c: f"{OWN}.{n}.{c}",
        "one more subscriber of a channel": lambda _, c: f"{OWN}.shared.{c}",
    }
    count = max(1, bench.options.clients // CHANNELS_EACH)
    rows = []
    for name, channel in cases.items():
        async with bench.edge() as edge:
            both = [edge, bench.brokers.measured]
            before = [(each.resident(), each.cpu_s()) for each in both]
            await bench.crowd.open(edge.port, [signed_in(n) for n in range(count)], joins=0)
            between = [(each.resident(), each.cpu_s()) for each in both]
            guests = [
                signed_in(n, *(channel(n, c) for c in range(CHANNELS_EACH))) for n in range(count)
            ]
            await bench.crowd.open(edge.port, guests, joins=CHANNELS_EACH)
            after = [(each.resident(), each.cpu_s()) for each in both]
        row = [name]
        for start, middle, end in zip(before, between, after, strict=True):
            # Without the cost of the connections.
            memory, cpu = (
                (end[i] - middle[i] - (middle[i] - start[i])) / (count * CHANNELS_EACH)
                for i in (0, 1)
            )
            row += [figure(max(memory, 0) / 2**10), figure(max(cpu, 0) * 1e6)]
        rows.append(tuple(row))
    columns = ("channel", "edge, KiB", "edge, µs of CPU", "broker, KiB", "broker, µs of CPU")
    return Table("A channel", columns, rows)


async def heartbeats(bench: Workbench) -> Table:
    """Measure silent clients, which the edge sends heartbeats to."""
    rows = []
    count, seconds = bench.options.clients, bench.options.seconds
    for name, each_s in (("no heartbeats", 3600), ("a heartbeat every second", 1)):
        async with bench.edge(BROADCAST_HEARTBEAT=str(each_s)) as edge:
            await bench.crowd.open(edge.port, [_ANONYMOUS] * count)
            cpu, start = edge.cpu_s(), time.monotonic()
            await asyncio.sleep(seconds)
            share = (edge.cpu_s() - cpu) / (time.monotonic() - start)
        rows.append((name, figure(share * 1e3), figure(share / count * 1e6)))
    columns = (f"{count:,} silent clients", "ms of CPU per second", "µs per second and client")
    return Table("Silent clients", columns, rows)
