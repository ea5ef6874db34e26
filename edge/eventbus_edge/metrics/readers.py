"""Metrics whose values are kept elsewhere, and read at each scrape."""

from abc import (
    ABC,
    abstractmethod,
)
from collections.abc import (
    Callable,
    Iterator,
)

from prometheus_client.core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import (
    Collector,
    CollectorRegistry,
)

from eventbus_edge.metrics.tally import Latencies

__all__ = ["ReadCounter", "ReadHistogram", "ReadMetric"]


class ReadMetric(Collector, ABC):
    """One metric without labels."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self.name = name
        self.documentation = documentation
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """The metric, for its name and type."""
        return self.collect()

    @abstractmethod
    def collect(self) -> Iterator[Metric]:
        """The metric as it is now."""


class ReadCounter(ReadMetric):
    """A counter."""

    def __init__(
        self,
        name: str,
        documentation: str,
        read: Callable[[], float],
        *,
        registry: CollectorRegistry,
    ) -> None:
        self._read = read
        super().__init__(name, documentation, registry)

    def collect(self) -> Iterator[Metric]:
        """The counter as it is now."""
        yield CounterMetricFamily(self.name, self.documentation, value=self._read())


class ReadHistogram(ReadMetric):
    """A histogram of latencies."""

    def __init__(
        self, name: str, documentation: str, latencies: Latencies, *, registry: CollectorRegistry
    ) -> None:
        self._latencies = latencies
        super().__init__(name, documentation, registry)

    def collect(self) -> Iterator[Metric]:
        """The histogram as it is now."""
        buckets, total = self._latencies.cumulative(), self._latencies.sum
        yield HistogramMetricFamily(self.name, self.documentation, buckets=buckets, sum_value=total)
