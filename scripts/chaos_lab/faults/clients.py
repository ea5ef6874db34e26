"""Faults of clients: they vanish, come back all at once, or misbehave.

None of this may cost other clients a message.
"""

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any

from scripts.chaos_lab.faults.base import Fault
from scripts.chaos_lab.rude import FLOODS, Crowd, churn, flood, stall, trickle
from scripts.chaos_lab.site import Site

__all__ = ["ClientsChurn", "ClientsCut", "ClientsFlood", "ClientsReturn", "ClientsStall"]

_EACH = 2
"""How many rude clients of a kind each edge gets."""
_CHURN_PER_S = 200.0


class ClientsCut(Fault):
    name = "clients-cut"
    summary = "all clients lose their connections at once, and reconnect"
    hold_s = 0.0
    takes_s = 4.0

    async def begin(self) -> str:
        self.site.workload.cut()
        return ""


class _Rude(Fault):
    hold_s = 6.0
    takes_s = 3.0

    def __init__(self, site: Site, choose: random.Random) -> None:
        super().__init__(site, choose)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a misbehaving client until the fault ends."""
        self._tasks.append(asyncio.create_task(work))

    async def heal(self) -> None:
        for each in self._tasks:
            each.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


class ClientsStall(_Rude):
    name = "clients-stall"
    summary = "clients subscribe and never read, and others trickle bytes"

    async def begin(self) -> str:
        for url in self.site.urls:
            for channel in self.site.channels[:_EACH]:
                self.start(stall(url, channel))
                self.start(trickle(url, channel))
        return ""


class ClientsChurn(_Rude):
    name = "clients-churn"
    summary = "clients open and close 200 connections per second"

    async def begin(self) -> str:
        self._opened = 0
        self._began = time.monotonic()
        self.start(churn(self.site.urls, self.site.channels[0], _CHURN_PER_S, self._count))
        return ""

    def _count(self) -> None:
        self._opened += 1

    async def heal(self) -> None:
        await super().heal()
        self.outcome = f"{self._opened / (time.monotonic() - self._began):.0f} per second"


class ClientsFlood(_Rude):
    name = "clients-flood"
    summary = "clients flood with text, ping and pong frames"

    async def begin(self) -> str:
        for number, kind in enumerate(FLOODS):
            url = self.site.urls[number % len(self.site.urls)]
            self.start(flood(url, self.site.channels[0], kind))
        return ""


class ClientsReturn(Fault):
    name = "clients-return"
    summary = "thousands of clients reconnect at once (--crowd)"
    hold_s = 0.0
    takes_s = 25.0

    async def begin(self) -> str:
        site = self.site
        self._crowd = Crowd(site.urls, site.channels[0], site.size.crowd)
        await self._crowd.join()
        self._crowd.cut()
        began = time.monotonic()
        await self._crowd.return_()
        return f"{site.size.crowd:,} in {time.monotonic() - began:.1f} s"

    async def heal(self) -> None:
        self._crowd.cut()
