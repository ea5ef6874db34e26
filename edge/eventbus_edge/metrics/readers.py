"""Metrics whose values are kept elsewhere or are plain numbers, and read at each scrape.

Those of prometheus-client take a lock per change, which a process with one event loop need not pay
for each connection.
"""

import collections
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
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import (
    Collector,
    CollectorRegistry,
)

from eventbus_edge.metrics.tally import Times

__all__ = ["LoopCounter", "LoopGauge", "LoopGauges", "ReadCounter", "ReadHistogram", "ReadMetric"]


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


class LoopCounter(ReadMetric):
    """A counter that only the event loop changes."""

    def __init__(self, name: str, documentation: str, *, registry: CollectorRegistry) -> None:
        self.value = 0
        super().__init__(name, documentation, registry)

    def inc(self) -> None:
        """Count one more."""
        self.value += 1

    def collect(self) -> Iterator[Metric]:
        """The counter as it is now."""
        yield CounterMetricFamily(self.name, self.documentation, value=self.value)


class LoopGauge(ReadMetric):
    """A gauge that only the event loop changes."""

    def __init__(self, name: str, documentation: str, *, registry: CollectorRegistry) -> None:
        self.value = 0
        super().__init__(name, documentation, registry)

    def inc(self) -> None:
        """One more."""
        self.value += 1

    def dec(self) -> None:
        """One less."""
        self.value -= 1

    def collect(self) -> Iterator[Metric]:
        """The gauge as it is now."""
        yield GaugeMetricFamily(self.name, self.documentation, value=self.value)


class LoopGauges(ReadMetric):
    """Gauges that only the event loop changes, by one label."""

    def __init__(
        self, name: str, documentation: str, label: str, *, registry: CollectorRegistry
    ) -> None:
        self.values: collections.Counter[str] = collections.Counter()
        """By the value of the label."""
        self._label = label
        super().__init__(name, documentation, registry)

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now."""
        family = GaugeMetricFamily(self.name, self.documentation, labels=[self._label])
        for value, number in self.values.items():
            family.add_metric([value], number)
        yield family


class ReadHistogram(ReadMetric):
    """A histogram of durations."""

    def __init__(
        self, name: str, documentation: str, times: Times, *, registry: CollectorRegistry
    ) -> None:
        self._times = times
        super().__init__(name, documentation, registry)

    def collect(self) -> Iterator[Metric]:
        """The histogram as it is now."""
        buckets, total = self._times.cumulative(), self._times.sum
        yield HistogramMetricFamily(self.name, self.documentation, buckets=buckets, sum_value=total)
