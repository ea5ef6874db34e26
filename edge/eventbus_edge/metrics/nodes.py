"""The metrics of all nodes of a process, in one exposition."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from eventbus_edge.metrics.metrics import Metrics

__all__ = ["NodesMetrics"]


LABEL: Final = "app"
"""The label with a tenant's name. Samples of the application's node do not have it."""
OF_THE_PROCESS: Final = frozenset(
    f"eventbus_edge_{name}"
    for name in (
        "jwks_fetches", "loop_lag_seconds", "memory_bytes", "pauses", "scrape_workers_missing",
        "task_faults", "tls_faults", "unsent_bytes",
    )
)  # fmt: skip
"""Metrics that are the same for all nodes of a process, and are shown once."""


class NodesMetrics(Collector):
    """The metrics of a node, and those of its tenants with a label for the tenant's name."""

    def __init__(self, own: Metrics, tenants: Callable[[], Mapping[str, Metrics]]) -> None:
        """`tenants` returns the metrics of all tenants by name."""
        self._own = own
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        """All families."""
        families: dict[str, Metric] = {}
        _merge(families, self._own.registry.collect(), {})
        for name, metrics in self._tenants().items():
            found = (each for each in metrics.registry.collect() if each.name not in OF_THE_PROCESS)
            _merge(families, found, {LABEL: name})
        return iter(families.values())

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self)


def _merge(families: dict[str, Metric], others: Iterable[Metric], labels: dict[str, str]) -> None:
    """Add the samples of other families, with additional labels."""
    for other in others:
        family = families.get(other.name)
        if family is None:
            family = families[other.name] = Metric(other.name, other.documentation, other.type)
        for sample in other.samples:
            family.samples.append(sample._replace(labels=sample.labels | labels))
