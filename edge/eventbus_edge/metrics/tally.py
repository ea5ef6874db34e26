"""What the hot path counts: plain numbers of one event loop, read when somebody asks for them.

A counter of prometheus-client takes a lock for each addition and a histogram more; all of this
costs a message less than two such counters (scripts/bench/counting.py).
"""

import bisect
import datetime
import time
from collections.abc import Sequence
from typing import Final

__all__ = ["LATENCY_BOUNDS", "Latencies", "Tally"]


LATENCY_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
"""Upper bounds of the buckets, in seconds."""
_MOST_S: Final = 3600.0
"""More counts as this: a publisher's clock may say anything, and one sum is kept for all."""
_parse: Final = datetime.datetime.fromisoformat


class Latencies:
    """A histogram of seconds from a message's publishing to its delivery."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS) + 1)
        """How many fell into each bucket; the last one has no bound."""
        self.sum = 0.0

    def since(self, published: str) -> None:
        """Observe one message by the time of its publishing, RFC 3339.

        What is no such time is not observed; one in the future (of another clock) counts as now.
        """
        try:
            moment = _parse(published)
            if moment.tzinfo is None:
                return
            seconds = time.time() - moment.timestamp()
        except (ValueError, OverflowError):
            return
        if not 0.0 <= seconds <= _MOST_S:
            seconds = 0.0 if seconds < 0.0 else _MOST_S
        self.counts[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> Sequence[tuple[str, float]]:
        """The buckets as Prometheus has them: a bound, and how many are not above it."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, LATENCY_BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Tally:
    """Messages and bytes of one node, and how long messages took."""

    __slots__ = ("bytes_in", "bytes_out", "latencies", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.bytes_in = 0
        self.messages_out = 0
        self.bytes_out = 0
        self.latencies = Latencies()

    def came(self, size: int) -> None:
        """One message of that many bytes came from the bus."""
        self.messages_in += 1
        self.bytes_in += size

    def wrote(self, size: int) -> None:
        """That many bytes were given to clients' sockets."""
        self.bytes_out += size

    def went(self, count: int) -> None:
        """One message was given to that many clients."""
        self.messages_out += count
