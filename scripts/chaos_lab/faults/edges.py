"""Faults of edges and workers."""

import asyncio
import email.utils
import random
import time

import aiohttp

from scripts.chaos_lab.faults.base import Fault
from scripts.chaos_lab.machine import CLOCK
from scripts.chaos_lab.site import Site

__all__ = ["ClockJumped", "EdgeDrained", "EdgeKilled", "EdgeStopped", "RelayKilled", "WorkerKilled"]

_LOOK_S = 0.05
_HOUR_S = 3600
_HOLD_S = 4.0
_PATIENCE_S = 120.0


class _OneEdge(Fault):
    def __init__(self, site: Site, choose: random.Random) -> None:
        super().__init__(site, choose)
        self.edge = choose.choice(site.edges)


class EdgeKilled(_OneEdge):
    name = "edge-killed"
    summary = "an edge is killed (-9) and started again"
    hold_s = 2.0

    async def begin(self) -> str:
        await self.edge.kill()
        return self.edge.name

    async def heal(self) -> None:
        await self.edge.start()


class EdgeDrained(_OneEdge):
    name = "edge-drained"
    summary = "an edge drains (SIGTERM) and is started again"
    hold_s = 0.5
    takes_s = 10.0

    async def begin(self) -> str:
        if not await self.edge.end():
            raise RuntimeError(f"{self.edge.name} did not end after SIGTERM")
        return self.edge.name

    async def heal(self) -> None:
        await self.edge.start()


class EdgeStopped(_OneEdge):
    name = "edge-stopped"
    summary = "an edge is suspended (SIGSTOP) and resumed"
    hold_s = 30.0

    async def begin(self) -> str:
        self.edge.stop()
        return self.edge.name

    async def heal(self) -> None:
        self.edge.proceed()


class WorkerKilled(Fault):
    name = "worker-killed"
    summary = "a worker is killed (-9) inside a listener and started again"
    hold_s = 1.0
    takes_s = 10.0

    async def begin(self) -> str:
        site = self.site
        known = len(site.handled.held)
        site.hold.touch()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while len(site.handled.held) == known:
                    site.handled.read()
                    await asyncio.sleep(_LOOK_S)
            held = set(site.handled.held[known:])
            self.worker = next(each for each in site.workers if each.pid in held)
            await self.worker.kill()
        finally:
            site.hold.unlink()
        return self.worker.name

    async def heal(self) -> None:
        await self.worker.start()


class RelayKilled(Fault):
    name = "relay-killed"
    summary = "the outbox's relay is killed (-9) and started again"
    hold_s = 2.0

    async def begin(self) -> str:
        await self.site.relay.kill()
        return ""

    async def heal(self) -> None:
        await self.site.relay.start()


class ClockJumped(Fault):
    """The clocks of all Python processes jump.

    nats-server is linked statically, so libfaketime cannot be loaded into it, and time namespaces
    do not cover the time of day. It uses the machine's clock, which a run must not change.
    """

    name = "clock-jumped"
    summary = "the clocks of edges and workers jump an hour ahead, then back"
    needs = frozenset({CLOCK})
    hold_s = 4.0
    takes_s = 8.0

    async def begin(self) -> str:
        for offset_s in (_HOUR_S, -_HOUR_S):
            self.site.set_clock(offset_s)
            await asyncio.sleep(_HOLD_S)
            await self._check(offset_s)
        return ""

    async def _check(self, offset_s: int) -> None:
        """Check that the edges' clock did jump; otherwise the fault would prove nothing."""
        async with aiohttp.ClientSession() as http, http.get(self.site.urls[0]) as answer:
            date = email.utils.parsedate_to_datetime(answer.headers["Date"])
        if abs(date.timestamp() - time.time() - offset_s) > _HOUR_S / 2:
            raise RuntimeError(f"the clock of edge 0 is not {offset_s} s off: it shows {date}")

    async def heal(self) -> None:
        self.site.set_clock(0)
