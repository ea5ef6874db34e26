"""Counts the work of a node, for CI: counts do not depend on the machine, as times do.

    scripts/bench --counted

A node in this process, on asyncio's own event loop so that its system calls can be counted, a real
nats-server, and clients in another process. Fails if a count is far above what it was.
"""

import asyncio
import cProfile
import gc
import json
import pstats
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import nats
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.messages import Receipt
from eventbus.server import NatsServer
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.config import EdgeSettings
from scripts.benchmark.sizing.clients import EVENT
from scripts.benchmark.sizing.crowd import Crowd, Guest, start_crowd

__all__ = ["LIMITS", "Bound", "count", "exceeded", "main"]

CLIENTS: Final = 100
WARM_UP: Final = 20
MEASURED: Final = 60
MESSAGES: Final = 20
BURST: Final = 50
CHANNEL: Final = "general"
"""Public by the default rules."""
SECRET: Final = "of-this-benchmark-alone-0123456789"
_SENDS: Final = ("send", "sendmsg", "sendto", "write", "writev")
_WRITTEN_BY: Final = ("_socket.socket", "posix")


class Bound(NamedTuple):
    """The range of acceptable counts."""

    least: float
    """Below it, nothing was counted: a name has changed."""
    most: float


LIMITS: Final = {
    "frames encoded per message": Bound(1, 1.5),
    "writes per delivery, one message at a time": Bound(1, 1.5),
    "writes per client and burst of 50 messages": Bound(1, 20),
    "writes per connection": Bound(1, 3),
    "tasks per connection": Bound(0, 0.1),
    "bytes allocated per connection": Bound(500, 10_000),
    "history reads of 100 clients that missed 50 messages": Bound(1, 50),
    "frames encoded per missed message": Bound(1, 50),
    "writes per client that missed 50 messages": Bound(1, 8),
}
"""About twice the usual counts. Counts that depend on when bytes arrive may be far higher, but must
stay below what they would be if clients shared nothing: 50 or 100."""


def main() -> int:
    """Print the counts. Returns 1 if one of them is out of bounds."""
    with tempfile.TemporaryDirectory(prefix="eventbus-counted-") as folder:
        counts = asyncio.run(count(Path(folder)))
    wrong = exceeded(counts)
    for name, value in counts.items():
        bound = LIMITS[name]
        verdict = "OUT OF BOUNDS" if name in wrong else ""
        print(f"{name:<54}{value:>9,.2f}  {bound.least:g} to {bound.most:g}  {verdict}".rstrip())
    if wrong:
        print(f"{len(wrong)} of {len(counts)} counts are out of bounds", file=sys.stderr)
    return 1 if wrong else 0


def exceeded(counts: dict[str, float]) -> list[str]:
    """The counts that are out of bounds or missing."""
    return [
        name
        for name, bound in LIMITS.items()
        if not bound.least <= counts.get(name, -1) <= bound.most
    ]


async def count(folder: Path) -> dict[str, float]:
    """Run a node and its clients, and count."""
    async with NatsServer(folder) as server, start_crowd(1) as crowd:
        settings = Settings(nats_url=server.url)
        async with EventBus(settings) as bus:
            edge = EdgeSettings(jwt_secret=SECRET, drain_time=0.0, heartbeat=3600.0)
            runner = make_runner(create_app(edge, bus, rules=ChannelRules()))
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                counting = _Counting(runner.addresses[0][1], bus, crowd, server.url)
                return {
                    **await counting.connections(),
                    **await counting.deliveries(),
                    **await counting.storm(),
                }
            finally:
                await crowd.drop()
                await runner.cleanup()


class _Work(NamedTuple):
    """What the node did while it was profiled."""

    encoded: int
    writes: int


class _Profile:
    """Counts calls in a `with` block."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def __enter__(self) -> Self:
        self._profile.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.disable()

    def work(self) -> _Work:
        calls: dict[tuple[str, int, str], tuple[Any, ...]]
        calls = pstats.Stats(self._profile).stats  # type: ignore[attr-defined] # not in typeshed
        return _Work(
            _calls(calls, _is_encode),
            _calls(calls, _is_write),
        )


def _calls(
    calls: dict[tuple[str, int, str], tuple[Any, ...]], chosen: Callable[[str, str], bool]
) -> int:
    return sum(figures[1] for (path, _, name), figures in calls.items() if chosen(path, name))


def _is_encode(path: str, name: str) -> bool:
    return path.endswith("delivery/wire.py") and name == "encode"


def _is_write(_: str, name: str) -> bool:
    """Whether it is a function of C that writes to a socket."""
    return any(f"'{each}' of" in name or f".{each}>" in name for each in _SENDS) and any(
        owner in name for owner in _WRITTEN_BY
    )


class _Counting:
    def __init__(self, port: int, bus: EventBus, crowd: Crowd, url: str) -> None:
        self._port = port
        self._bus = bus
        self._crowd = crowd
        self._url = url

    async def connections(self) -> dict[str, float]:
        """Connect clients, and hold them."""
        guests = [Guest(f"/ws?channel={CHANNEL}")]
        await self._crowd.open(self._port, guests * WARM_UP)
        gc.collect()
        tasks = len(asyncio.all_tasks())
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await self._crowd.open(self._port, guests * MEASURED)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        tasks = max(0, len(asyncio.all_tasks()) - tasks)
        rest = CLIENTS - WARM_UP - MEASURED
        with _Profile() as profile:
            await self._crowd.open(self._port, guests * rest)
        return {
            "writes per connection": profile.work().writes / rest,
            "tasks per connection": tasks / MEASURED,
            "bytes allocated per connection": (after - before) / MEASURED,
        }

    async def deliveries(self) -> dict[str, float]:
        """Deliver messages one at a time, then a burst."""
        await self._publish(1)
        with _Profile() as single:
            for _ in range(MESSAGES):
                await self._publish(1)
        with _Profile() as burst:
            await self._publish(BURST)
        one_by_one = single.work()
        return {
            "frames encoded per message": one_by_one.encoded / MESSAGES,
            "writes per delivery, one message at a time": one_by_one.writes / MESSAGES / CLIENTS,
            "writes per client and burst of 50 messages": burst.work().writes / CLIENTS,
        }

    async def storm(self) -> dict[str, float]:
        """Cut all clients; they come back and resume."""
        last = await self._bus.publish(CHANNEL, EVENT, {})
        await self._crowd.expect(messages=1)
        await self._crowd.drop()
        for _ in range(BURST):
            await self._bus.publish(CHANNEL, EVENT, {})
        reads = 0

        async def note(_: object) -> None:
            nonlocal reads
            reads += 1

        broker = await nats.connect(self._url)
        await broker.subscribe("$JS.API.DIRECT.GET.>", cb=note)
        await broker.flush()
        await self._crowd.open(self._port, [Guest("/ws")] * CLIENTS, joins=0)
        with _Profile() as profile:
            await self._crowd.send(_resume(last))
            await self._crowd.expect(subscribed=1, messages=BURST)
        await broker.close()
        work = profile.work()
        return {
            "history reads of 100 clients that missed 50 messages": reads,
            "frames encoded per missed message": work.encoded / BURST,
            "writes per client that missed 50 messages": work.writes / CLIENTS,
        }

    async def _publish(self, messages: int) -> None:
        await asyncio.gather(*(self._bus.publish(CHANNEL, EVENT, {}) for _ in range(messages)))
        await self._crowd.expect(messages=messages)


def _resume(position: Receipt) -> str:
    data = {"offset": position.offset, "epoch": position.epoch}
    return json.dumps({"action": "subscribe", "channel": CHANNEL, "data": data})
