"""What a node's gauges show, read when Prometheus asks."""

import asyncio

from edge.lag import BusLag
from edge.metrics import Metrics
from edge.presence_channels import PresenceChannels
from eventbus.drivers.base import Driver

__all__ = ["read_gauges"]


def read_gauges(metrics: Metrics, driver: Driver, presence: PresenceChannels, lag: BusLag) -> None:
    """Tie gauges to what they show; called in the event loop."""
    loop = asyncio.get_running_loop()
    metrics.bus_connected.set_function(lambda: float(driver.is_connected))
    metrics.bus_lag.set_function(lambda: lag.seconds(loop.time()))
    metrics.presence_channels.set_function(lambda: float(presence.counts()[0]))
    metrics.presence_members.set_function(lambda: float(presence.counts()[1]))
