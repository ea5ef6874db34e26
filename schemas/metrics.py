"""Measurements for dashboards."""

from typing import Annotated

import msgspec

from eventbus.events import Event, ShouldBroadcast

__all__ = ["Bytes", "DashboardMetrics", "LoadAverage", "Percent"]

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
_Load = Annotated[float, msgspec.Meta(ge=0)]


class LoadAverage(msgspec.Struct, frozen=True, kw_only=True):
    """Processes that run or wait to run, as means over one, five and fifteen minutes."""

    one: _Load
    five: _Load
    fifteen: _Load


class DashboardMetrics(
    Event, ShouldBroadcast, channels=("admin.dashboard", "public"), volatile=True, kw_only=True
):
    """What one machine was doing at one moment.

    A tick that the next one replaces: volatile. It goes to the administrators' dashboard, and a
    copy to a public channel for the demo's page.
    """

    host: str
    cpu_percent: Percent
    """Of all cores together."""
    cpu_count: Annotated[int, msgspec.Meta(ge=1)]
    memory_percent: Percent
    memory_used_bytes: Bytes
    memory_total_bytes: Bytes
    load: LoadAverage
    disk_percent: Percent
    disk_used_bytes: Bytes
    disk_total_bytes: Bytes

    def broadcast_on(self) -> tuple[str, str]:
        """The dashboard's channel, and the public copy's."""
        return ("admin.dashboard", "public")
