"""The demo's service: it measures this machine and dispatches the results as typed events."""

import asyncio
import logging
import socket
import statistics
from pathlib import Path

import psutil

from eventbus.errors import EventBusError
from schemas import ChatMessage, DashboardMetrics, LoadAverage

__all__ = ["measure", "serve_measurements"]

_log = logging.getLogger(__name__)
_DISK = Path.home().anchor or "/"


def measure() -> DashboardMetrics:
    """Measure the machine's current load; the CPU load is since the last call."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(_DISK)
    one, five, fifteen = psutil.getloadavg()
    return DashboardMetrics(
        host=socket.gethostname(),
        cpu_percent=psutil.cpu_percent(),
        cpu_count=psutil.cpu_count() or 1,
        memory_percent=memory.percent,
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
        load=LoadAverage(one=one, five=five, fifteen=fifteen),
        disk_percent=disk.percent,
        disk_used_bytes=disk.used,
        disk_total_bytes=disk.total,
    )


async def serve_measurements(interval: float, remark_every: float) -> None:
    """Dispatch a measurement every `interval` seconds, on the current bus, until cancelled.

    Every `remark_every` seconds, post a summary to the chat room.
    """
    loop = asyncio.get_running_loop()
    psutil.cpu_percent()  # the first call always returns 0
    cpu: list[float] = []
    tick = remarked = loop.time()
    while True:
        tick = max(tick + interval, loop.time())  # after a pause, no burst to catch up
        await asyncio.sleep(tick - loop.time())
        try:
            metrics = measure()
            await metrics.dispatch()
            cpu.append(metrics.cpu_percent)
            if loop.time() - remarked >= remark_every:
                await _remark(cpu, remark_every).dispatch()
                cpu, remarked = [], loop.time()
        except EventBusError as exc:
            _log.warning("a measurement was not dispatched: %s", exc)


def _remark(cpu: list[float], seconds: float) -> ChatMessage:
    text = (
        f"Over the last {seconds:g} s, the CPU load was {statistics.fmean(cpu):.0f} % "
        f"on average and {max(cpu):.0f} % at most."
    )
    return ChatMessage(room_id="lobby", user_id="machine", name=socket.gethostname(), text=text)
