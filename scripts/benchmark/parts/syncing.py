"""The speed of sync code and of the outbox, on a real NATS.

    NATS_URL=nats://127.0.0.1:4222 .venv/bin/python scripts/benchmark/parts/syncing.py
    NATS_URL=… DATABASE_URL=postgresql://… .venv/bin/python scripts/benchmark/parts/syncing.py

Prints durable `dispatch_sync()` calls a second from 8 threads, how much slower one call is than the
awaited one, and, with DATABASE_URL, rows a second that a relay publishes, and the time from a
commit until its row is published and deleted. Makes the table eventbus_outbox if it does not exist.
"""

import asyncio
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus import Event, EventBus, ShouldBroadcast, sync
from eventbus.integrations.sqlalchemy import DatabaseOutbox, Outbox, engine_of
from eventbus.outbox.table import create

THREADS: Final = 8
CALLS: Final = 20_000
SINGLE: Final = 2000
ROWS: Final = 10_000
WAKES: Final = 50


class Ticked(Event, ShouldBroadcast, channel="bench.{channel}", name="bench.ticked"):
    channel: int


def threads() -> float:
    """Calls a second from several threads."""

    def call(number: int) -> None:
        for _ in range(CALLS // THREADS):
            Ticked(channel=number).dispatch_sync()

    with ThreadPoolExecutor(THREADS) as pool:
        begun = time.perf_counter()
        list(pool.map(call, range(THREADS)))
        return CALLS / (time.perf_counter() - begun)


def blocking() -> float:
    """Seconds of one blocking call."""
    times = []
    for _ in range(SINGLE):
        begun = time.perf_counter()
        Ticked(channel=0).dispatch_sync()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def awaited() -> float:
    """Seconds of one awaited call."""
    times = []
    async with EventBus.from_env():
        for _ in range(SINGLE):
            begun = time.perf_counter()
            await Ticked(channel=0).dispatch()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def outbox(database_url: str) -> tuple[float, float]:
    """Rows a second, and the median seconds from a commit to the deletion of its row."""
    engine = engine_of(database_url)
    await create(engine)
    declared = Outbox(sa.MetaData())
    store = DatabaseOutbox(engine, declared.table)
    async with EventBus.from_env() as bus:
        relay = declared.relay(engine, bus)
        await relay.drain()
        async with AsyncSession(engine) as session:
            declared.add(session, *(Ticked(channel=number % 100) for number in range(ROWS)))
            await session.commit()
        begun = time.perf_counter()
        await relay.drain()
        rate = ROWS / (time.perf_counter() - begun)
        running = asyncio.create_task(relay.run())
        while not relay.is_active:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.01)
        waits = []
        for _ in range(WAKES):
            await asyncio.sleep(0.02)
            async with AsyncSession(engine) as session:
                declared.add(session, Ticked(channel=0))
                await session.commit()
            begun = time.perf_counter()
            while (await store.stats()).waiting:
                pass
            waits.append(time.perf_counter() - begun)
        running.cancel()
        await asyncio.wait([running])
    await engine.dispose()
    return rate, statistics.median(waits)


def main() -> None:
    """Print the figures."""
    print(f"{THREADS} threads: {threads():,.0f} dispatch_sync() a second")
    one, other = blocking(), asyncio.run(awaited())
    print(f"one call: {one * 1e3:.2f} ms, awaited {other * 1e3:.2f} ms")
    sync.close()
    if database_url := os.environ.get("DATABASE_URL"):
        rate, wake = asyncio.run(outbox(database_url))
        print(f"outbox: {rate:,.0f} rows a second; {wake * 1e3:.0f} ms after the commit")


if __name__ == "__main__":
    main()
