"""How much CPU time one turn of a node's event loop takes while others flood it.

    python -m scripts.benchmark.bystanders.turns [FLOOD ...]

All clients of a node wait for each turn. Unlike the latencies that `scripts/bystanders` measures,
CPU time does not grow on a busy machine. The node runs in this process, with asyncio's own loop and
the driver `memory`. Prints milliseconds per turn, and how the flooding connections ended.
"""

import asyncio
import contextlib
import gc
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.config import EdgeSettings
from scripts.benchmark.bystanders.__main__ import ends_in, flooding
from scripts.benchmark.bystanders.floods import APP, FLOODS
from scripts.benchmark.machine import HOST
from scripts.benchmark.sizing.processes import SECRET

SECONDS: Final = 2.0
CLIENTS: Final = 4
SLOW_MS: Final = 5.0
"""Turns above this are slow, since a bystander's message may need four turns."""


class Turns:
    """The CPU time of each turn, in milliseconds, and of the slowest callback."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.slowest = 0.0, ""

    @contextlib.contextmanager
    def measured(self, loop: Any) -> Iterator[None]:
        """Measure the turns of a loop, and its callbacks."""
        run_once, run = loop._run_once, asyncio.events.Handle._run  # noqa: SLF001

        def turn() -> None:
            begin = time.thread_time()
            run_once()
            self.took.append(1000 * (time.thread_time() - begin))

        def call(handle: asyncio.Handle) -> None:
            begin = time.thread_time()
            run(handle)
            took = 1000 * (time.thread_time() - begin)
            if took > self.slowest[0]:
                self.slowest = took, _name(handle._callback)  # type: ignore[attr-defined]  # noqa: SLF001

        loop._run_once = turn  # noqa: SLF001
        asyncio.events.Handle._run = call  # type: ignore[assignment,method-assign]  # noqa: SLF001
        try:
            yield
        finally:
            del loop._run_once  # noqa: SLF001
            asyncio.events.Handle._run = run  # type: ignore[method-assign]  # noqa: SLF001


def _name(callback: Any) -> str:
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return f"task {task.get_coro()!r}"[:70]
    return str(getattr(callback, "__qualname__", callback))[:70]


def node_settings(**more: Any) -> EdgeSettings:
    """The settings of a node for every kind of flood."""
    return EdgeSettings(
        jwt_secret=SECRET, api_key=secrets.token_hex(), compression=True, drain_time=0.0,
        pusher_app_id=APP.id, pusher_app_key=APP.key, pusher_app_secret=APP.secret, **more,
    )  # fmt: skip


async def _measure(name: str) -> str:
    turns = Turns()
    async with EventBus(Settings(driver="memory")) as bus:
        for number in range(100):
            await bus.publish("general", "filled", {"number": number})
        runner = make_runner(create_app(node_settings(), bus))
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        with tempfile.TemporaryDirectory() as folder:
            ends = Path(folder) / "ends"
            async with flooding(runner.addresses[0][1], name, CLIENTS, ends):
                await asyncio.sleep(1.0)
                gc.collect()
                gc.freeze()  # as a node does in a process of its own
                gc.set_threshold(10_000, 10, 10)
                with turns.measured(asyncio.get_running_loop()):
                    await asyncio.sleep(SECONDS)
            about = ends_in(ends)
        await runner.cleanup()
    took = sorted(turns.took)
    p99, longest = took[int(len(took) * 0.99)], took[-1]
    slow, callback = turns.slowest
    mark = f"  slow: {slow:.1f} {callback}" if longest > SLOW_MS else ""
    return f"{name:42} {len(took):7} {p99:8.2f} {longest:8.2f}  {about}{mark}"


def main(names: list[str]) -> None:
    """Print the table."""
    print(f"{'':42} {'turns':>7} {'p99':>8} {'max':>8}  ends of the flooding connections")
    for name in names or FLOODS:
        print(asyncio.run(_measure(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
