"""The message rates of channels, counted only while they are watched. Pure."""

import math
from typing import Final

__all__ = ["MAX_COUNTED", "ChannelRates"]


MAX_COUNTED: Final = 10_000
"""Channels whose messages are counted; for others, only `overflowed` is set."""
_MEMORY_S: Final = 5.0
"""After this time a message counts for a third (1/e): rates are smooth, and still follow."""
_NEGLIGIBLE: Final = 0.01


class ChannelRates:
    """Messages per second of each channel, as an exponentially weighted mean."""

    def __init__(self, now: float) -> None:
        """`now` is in seconds of a monotonic clock."""
        self._began = self._rolled = now
        self._counts: dict[str, int] = {}
        self._decayed: dict[str, float] = {}
        self.overflowed = False
        """Whether there were more channels than are counted."""

    def count(self, channel: str) -> None:
        """Count one message. Part of the hot path."""
        counts = self._counts
        if channel in counts:
            counts[channel] += 1
        elif len(counts) < MAX_COUNTED:
            counts[channel] = 1
        else:
            self.overflowed = True

    def read(self, now: float) -> dict[str, float]:
        """Messages per second by channel; silent channels are dropped soon."""
        factor = math.exp((self._rolled - now) / _MEMORY_S)
        self._rolled = now
        decayed = {}
        for channel, weight in self._decayed.items():
            left = weight * factor
            if left > _NEGLIGIBLE:
                decayed[channel] = left
        for channel, count in self._counts.items():
            decayed[channel] = decayed.get(channel, 0.0) + count
        self._counts = {}
        if len(decayed) > MAX_COUNTED:
            self.overflowed = True
            busiest = sorted(decayed, key=decayed.__getitem__, reverse=True)[:MAX_COUNTED]
            decayed = {channel: decayed[channel] for channel in busiest}
        self._decayed = decayed
        # The sum of all weights at one message per second; less just after the start.
        whole = _MEMORY_S * (1.0 - math.exp((self._began - now) / _MEMORY_S))
        if whole <= 0.0:
            return {}
        return {channel: weight / whole for channel, weight in decayed.items()}
