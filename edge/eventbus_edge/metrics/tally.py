"""Counters of the hot path: plain numbers of one event loop, read at each scrape.

A counter of prometheus-client takes a lock per addition, and a histogram costs more. All of these
together cost less per message than two such counters (scripts/benchmark/parts/counting.py).
"""

import bisect
import datetime
import time
from collections.abc import Sequence
from typing import Final

__all__ = ["JOIN_BOUNDS", "LATENCY_BOUNDS", "Latencies", "Tally", "Times"]


LATENCY_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
"""Upper bounds of the buckets, in seconds."""
JOIN_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
"""The same for the time to join a channel."""
_MAX_S: Final = 3600.0
"""Longer times count as this, because a publisher's wrong clock would spoil the sum."""
_parse: Final = datetime.datetime.fromisoformat


class Times:
    """A histogram of seconds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The counts of the buckets; the last one has no upper bound."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> Sequence[tuple[str, float]]:
        """Prometheus's buckets: an upper bound, and the number of observations up to it."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Latencies(Times):
    """A histogram of the seconds from a message's publishing to its delivery."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(LATENCY_BOUNDS)

    def since(self, published: str) -> None:
        """Observe one message, by the RFC 3339 time of its publishing.

        An invalid time is ignored; one in the future, by another clock, counts as now.
        """
        try:
            moment = _parse(published)
            if moment.tzinfo is None:
                return
            seconds = time.time() - moment.timestamp()
        except (ValueError, OverflowError):
            return
        if not 0.0 <= seconds <= _MAX_S:
            seconds = 0.0 if seconds < 0.0 else _MAX_S
        self.counts[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.sum += seconds


class Tally:
    """Counts of messages and bytes of one node, and the latencies of messages."""

    __slots__ = ("bytes_in", "bytes_out", "joins", "latencies", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.bytes_in = 0
        self.messages_out = 0
        self.bytes_out = 0
        self.latencies = Latencies()
        self.joins = Times(JOIN_BOUNDS)

    def count(self, size: int, clients: int, published: str | None) -> None:
        """Count a message of `size` bytes from the bus that was sent to `clients`.

        `published` is the RFC 3339 time of its publishing, if that is known.
        """
        self.messages_in += 1
        self.bytes_in += size
        self.messages_out += clients
        if published is not None:
            self.latencies.since(published)

    def count_received(self, size: int) -> None:
        """Count a message of `size` bytes from the bus."""
        self.messages_in += 1
        self.bytes_in += size

    def count_written(self, size: int) -> None:
        """Count bytes written to clients' sockets."""
        self.bytes_out += size

    def count_delivered(self, count: int) -> None:
        """Count a message sent to `count` clients."""
        self.messages_out += count
