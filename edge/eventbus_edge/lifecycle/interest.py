"""The channels that the clients of one node hear, as the cluster knows them."""

import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.drivers.state import StateDriver
from eventbus_edge.deadlines import Deadlines
from eventbus_edge.lifecycle.holdings import (
    interest_key,
    own_interests,
    sign_key,
)
from eventbus_edge.presence.nodes import (
    give_sign,
    nobody_gone,
)
from eventbus_edge.state.writer import EntryWriter

__all__ = ["OwnChannels"]


_log = logging.getLogger(__name__)

WRITTEN_S: Final = 5.0
"""How long a node that returns waits for what it has ended to be on the bus."""


class OwnChannels:
    """Keeps an entry for each channel that is heard, and for a while after it was.

    A page that reloads, and a client that goes to another node, is back before that has ended.
    """

    def __init__(
        self,
        driver: StateDriver,
        node: str,
        *,
        ttl_s: float,
        linger_s: float,
        drop_gone: Callable[[], Awaitable[object]] = nobody_gone,
    ) -> None:
        """`drop_gone` lets go of connections that clients have closed and this node has not seen.

        It is called before this node counts as alive again.
        """
        self._driver = driver
        self._node = node
        self._ttl_s = ttl_s
        self._linger_s = linger_s
        self._drop_gone = drop_gone
        self._beaten_at = float("-inf")
        self._held: set[str] = set()
        self._lingering = Deadlines()
        self._writer = EntryWriter(driver, "channels that are heard")

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, channel: str) -> bool:
        return channel in self._held

    def use(self, channel: str, is_heard: bool) -> None:
        """The first client hears a channel, or the last one does no more."""
        if not is_heard:
            self._lingering.set(channel, time.monotonic() + self._linger_s)
            return
        self._lingering.cancel(channel)
        if channel not in self._held:
            self._held.add(channel)
            self._writer.put(interest_key(self._node, channel), b"")

    def tick(self, now: float) -> None:
        """End what has lingered long enough, and write again what would end by itself."""
        self._end_due(now)
        self._writer.refresh(now)

    def _end_due(self, now: float) -> None:
        for channel in self._lingering.due(now):
            self._held.discard(channel)
            self._writer.delete(interest_key(self._node, channel))

    async def beat(self) -> None:
        """Say that this node is alive. Raises a DriverError.

        When the last sign has ended, the channels of this node have been vacated: only those that
        somebody still hears are occupied again, without having lingered.
        """
        is_first = self._beaten_at == float("-inf")
        if not is_first and time.monotonic() - self._beaten_at >= self._ttl_s:
            await self._drop_gone()
            self._end_due(float("inf"))
            if not await self._writer.flush(WRITTEN_S):
                _log.warning("channels that nobody hears may be occupied again for a moment")
        now = time.monotonic()
        await give_sign(self._driver, sign_key(self._node), self._ttl_s, is_first=is_first)
        self._beaten_at = now

    async def repair(self) -> None:
        """After a loss: put back what is missing. Raises a DriverError."""
        await self.beat()
        self._writer.repair(await self._driver.state.entries(own_interests(self._node)))

    async def aclose(self) -> None:
        """End; what is heard still counts while it would linger. Raises a DriverError."""
        await self._writer.aclose()
        key = sign_key(self._node)
        if self._held and self._linger_s > 0:
            await self._driver.state.put(key, b"", ttl_s=self._linger_s)
        else:
            await self._driver.state.delete(key)
