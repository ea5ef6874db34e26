"""Faults of one nats-server."""

import asyncio
import time
from typing import ClassVar

from scripts.chaos_lab.faults.base import Fault
from scripts.chaos_lab.machine import NAMESPACES

__all__ = ["DiskFull", "LinkCut", "LinkSlow", "NatsErased", "NatsKilled", "NatsStopped"]


_MISSED_S = 1.5


class NatsKilled(Fault):
    name = "nats-killed"
    summary = "nats-server is killed (-9) and started again"
    hold_s = 2.0

    async def begin(self) -> str:
        await self.site.brokers.all[0].kill()
        return ""

    async def heal(self) -> None:
        await self.site.brokers.all[0].start()


class NatsStopped(Fault):
    name = "nats-stopped"
    summary = "nats-server is suspended (SIGSTOP) and resumed"
    hold_s = 15.0

    async def begin(self) -> str:
        self.site.brokers.all[0].stop()
        return ""

    async def heal(self) -> None:
        self.site.brokers.all[0].proceed()


class NatsErased(Fault):
    name = "nats-erased"
    summary = "nats-server loses its store while clients are away"
    hold_s = 2.0
    takes_s = 15.0
    loses_history: ClassVar[bool] = True

    async def begin(self) -> str:
        broker = self.site.brokers.all[0]
        self.site.workload.cut(away_s=2 * _MISSED_S)
        await asyncio.sleep(_MISSED_S)  # messages that all clients miss
        await broker.kill()
        broker.erase()
        self.site.erased_at.append(time.monotonic())
        return ""

    async def heal(self) -> None:
        await self.site.brokers.all[0].start()


class DiskFull(Fault):
    name = "disk-full"
    summary = "nats-server's disk is full; it is restarted when there is room"
    needs = frozenset({NAMESPACES})
    hold_s = 8.0
    takes_s = 10.0

    async def begin(self) -> str:
        self.site.brokers.all[0].fill()
        return ""

    async def heal(self) -> None:
        broker = self.site.brokers.all[0]
        broker.make_room()
        await broker.end()
        await broker.start()


class LinkSlow(Fault):
    name = "link-slow"
    summary = "NATS is slow for one edge and publisher; packets are lost"
    hold_s = 8.0

    async def begin(self) -> str:
        self.site.link.delay_s = self.choose.uniform(0.05, 0.3)
        self.site.link.loss = 0.05
        return f"{self.site.link.delay_s * 1000:.0f} ms"

    async def heal(self) -> None:
        self.site.link.mend()


class LinkCut(Fault):
    name = "link-cut"
    summary = "one edge and publisher cannot reach NATS; packets vanish"
    hold_s = 12.0
    takes_s = 12.0

    async def begin(self) -> str:
        self.site.link.cut()
        return ""

    async def heal(self) -> None:
        self.site.link.mend()
