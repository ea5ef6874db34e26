"""The cost of `dispatch()` in the process of the publisher.

    .venv/bin/python scripts/benchmark/parts/dispatching.py
    .venv/bin/python scripts/benchmark/parts/dispatching.py --url nats://127.0.0.1:4222

Without a URL, messages go to the driver `null`: all of it is then the project's own code. Compare
ratios, since the microseconds depend on the machine.
"""

import argparse
import asyncio
import json
import time
from typing import Final

from eventbus import Event, EventBus, Settings, ShouldBroadcast

EVENTS: Final = 20_000
CONCURRENT: Final = 100


class Moved(Event, ShouldBroadcast, channel="orders.{order_id}"):
    """A stored event."""

    order_id: int
    text: str = "hello"


class Typing(Event, ShouldBroadcast, channel="orders.{order_id}", volatile=True):
    """A volatile event."""

    order_id: int
    text: str = "hello"


async def _dispatch(bus: EventBus, event: type[Moved | Typing], count: int) -> None:
    for number in range(count):
        await bus.dispatch(event(number % 100))


async def measure(settings: Settings) -> dict[str, dict[str, float]]:
    """µs of CPU per dispatch, and dispatches per second, of concurrent publishers."""
    found = {}
    async with EventBus(settings) as bus:
        for event in (Moved, Typing):
            await _dispatch(bus, event, 500)
            cpu, start = time.process_time(), time.monotonic()
            each = EVENTS // CONCURRENT
            await asyncio.gather(*(_dispatch(bus, event, each) for _ in range(CONCURRENT)))
            cpu, seconds = time.process_time() - cpu, time.monotonic() - start
            found[event.__name__] = {"us": cpu / EVENTS * 1e6, "per_s": EVENTS / seconds}
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", help="of NATS")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    settings = Settings(nats_url=given.url) if given.url else Settings(driver="null")
    found = asyncio.run(measure(settings))
    if given.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name:<10}{figures['us']:8.1f} µs of CPU{figures['per_s']:12,.0f} per s")


if __name__ == "__main__":
    main()
