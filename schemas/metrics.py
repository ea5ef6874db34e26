"""Measurements for dashboards."""

from typing import Annotated

import msgspec

from eventbus.events import Event, ShouldBroadcast

__all__ = ["Bytes", "DashboardMetrics", "LoadAverage", "Percent"]

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Load = Annotated[float, msgspec.Meta(ge=0)]


class LoadAverage(msgspec.Struct, frozen=True, kw_only=True):
    """The number of running and waiting processes, averaged over one, five and fifteen minutes."""

    one: _Load
    five: _Load
    fifteen: _Load


class DashboardMetrics(
    Event, ShouldBroadcast, channels=("admin.dashboard", "public"), volatile=True, kw_only=True
):
    """The load of a machine at one moment.

    It is volatile, since the next measurement replaces it. It is broadcast to the administrators'
    dashboard, and to a public channel for the demo's page.
    """

    host: str
    cpu_percent: Percent
    """Of all cores together."""
    cpu_count: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    memory_percent: Percent
    memory_used_bytes: Bytes
    memory_total_bytes: Bytes
    load: LoadAverage
    disk_percent: Percent
    disk_used_bytes: Bytes
    disk_total_bytes: Bytes

    def broadcast_on(self) -> tuple[str, str]:
        """The channel of the dashboard, and the public one."""
        return ("admin.dashboard", "public")
