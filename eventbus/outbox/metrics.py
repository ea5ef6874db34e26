"""The metrics of a relay, for Prometheus."""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from eventbus.outbox.store import OutboxStats

__all__ = ["RelayMetrics"]

_WAITING: Final = ("eventbus_outbox_waiting_rows", "rows that are committed and not published yet")
_SET_ASIDE: Final = ("eventbus_outbox_set_aside_rows", "rows that could not be published")
_LAG: Final = ("eventbus_outbox_lag_seconds", "the age of the oldest row that waits")
_PUBLISHED: Final = ("eventbus_outbox_published", "rows published and deleted")
_ACTIVE: Final = ("eventbus_outbox_active", "1 in the relay that publishes, 0 in those that wait")


class RelayMetrics:
    """What one relay counts, and what the outbox of its database holds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.waiting = Gauge(*_WAITING, registry=self.registry)
        self.set_aside = Gauge(*_SET_ASIDE, registry=self.registry)
        self.lag = Gauge(*_LAG, registry=self.registry)
        self.active = Gauge(*_ACTIVE, registry=self.registry)
        self.published = Counter(*_PUBLISHED, registry=self.registry)

    def show(self, stats: OutboxStats, *, is_active: bool) -> None:
        """Set the gauges."""
        self.waiting.set(stats.waiting)
        self.set_aside.set(stats.set_aside)
        self.lag.set(stats.lag_s)
        self.active.set(is_active)

    def serve(self, port: int, address: str = "127.0.0.1") -> Sequence[object]:
        """Serve the metrics at /metrics; returns server and thread. Raises OSError."""
        return start_http_server(port, address, self.registry)
