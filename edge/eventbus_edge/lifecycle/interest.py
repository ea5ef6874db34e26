"""The channels that clients of this node subscribe to, published to the cluster."""

import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.drivers import StateDriver
from eventbus.pacing import paced
from eventbus_edge.deadlines import Deadlines
from eventbus_edge.lifecycle.holdings import (
    heartbeat_key,
    interest_filter,
    interest_key,
)
from eventbus_edge.presence import drop_nothing, write_heartbeat
from eventbus_edge.state import EntryWriter

__all__ = ["OwnChannels"]


_log = logging.getLogger(__name__)

WRITTEN_S: Final = 5.0
"""How long a returning node waits until its deletions are on the bus."""


class OwnChannels:
    """Keeps an entry on the bus for each channel with subscribers, and for a while after.

    So a page that reloads, or a client that moves to another node, does not vacate its channel.
    """

    def __init__(
        self,
        driver: StateDriver,
        node: str,
        *,
        ttl_s: float,
        linger_s: float,
        drop_gone: Callable[[], Awaitable[object]] = drop_nothing,
    ) -> None:
        """`drop_gone` drops connections whose client has closed them unnoticed by this node.

        It is called before this node counts as alive again.
        """
        self._driver = driver
        self._node = node
        self._ttl_s = ttl_s
        self._linger_s = linger_s
        self._drop_gone = drop_gone
        self._last_beat = float("-inf")
        self._occupied: set[str] = set()
        self._lingering = Deadlines()
        self._writer = EntryWriter(driver, "occupied channels")

    def __len__(self) -> int:
        return len(self._occupied)

    def __contains__(self, channel: str) -> bool:
        return channel in self._occupied

    def use(self, channel: str, is_used: bool) -> None:
        """Note that a channel got its first subscriber, or lost its last one."""
        if not is_used:
            self._lingering.set(channel, time.monotonic() + self._linger_s)
            return
        self._lingering.cancel(channel)
        if channel not in self._occupied:
            self._occupied.add(channel)
            self._writer.put(interest_key(self._node, channel), b"")

    async def tick(self, now: float) -> None:
        """Delete entries that have lingered long enough, and renew those about to expire."""
        await self._end_due(now)
        await self._writer.refresh(now)

    async def _end_due(self, now: float) -> None:
        async for channel in paced(self._lingering.due(now)):
            self._occupied.discard(channel)
            self._writer.delete(interest_key(self._node, channel))

    async def beat(self) -> None:
        """Write a heartbeat. Raises a DriverError.

        If the last one has expired, the channels of this node count as vacated. Then only those
        that still have subscribers are occupied again, and no other channel lingers.
        """
        is_first = self._last_beat == float("-inf")
        if not is_first and time.monotonic() - self._last_beat >= self._ttl_s:
            await self._drop_gone()
            await self._end_due(float("inf"))
            if not await self._writer.flush(WRITTEN_S):
                _log.warning("channels without subscribers may be occupied again for a moment")
        now = time.monotonic()
        await write_heartbeat(
            self._driver, heartbeat_key(self._node), self._ttl_s, is_first=is_first
        )
        self._last_beat = now

    async def repair(self) -> None:
        """Write missing entries again after a loss. Raises a DriverError."""
        await self.beat()
        await self._writer.repair(await self._driver.state.entries(interest_filter(self._node)))

    async def aclose(self) -> None:
        """Stop; occupied channels stay so for the linger time. Raises a DriverError."""
        await self._writer.aclose()
        key = heartbeat_key(self._node)
        if self._occupied and self._linger_s > 0:
            await self._driver.state.put(key, b"", ttl_s=self._linger_s)
        else:
            await self._driver.state.delete(key)
