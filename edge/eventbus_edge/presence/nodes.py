"""Which nodes are alive: each node writes a heartbeat that expires, and watches all heartbeats."""

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.attempts import OutageLog
from eventbus.drivers import StateDriver
from eventbus.errors import (
    EventBusError,
    PublishFailed,
)
from eventbus_edge.state import Mirror

__all__ = ["LiveNodes", "drop_nothing", "live_nodes", "write_heartbeat"]


_log = logging.getLogger(__name__)

_ROOT: Final = "node."


async def drop_nothing() -> None:
    """The default for `drop_gone`: there are no connections to check."""


async def live_nodes(driver: StateDriver) -> set[str]:
    """The ids of the nodes whose heartbeat is on the bus now. Raises a DriverError."""
    return {key.removeprefix(_ROOT) for key in await driver.state.entries(f"{_ROOT}*")}


async def write_heartbeat(driver: StateDriver, key: str, ttl_s: float, *, is_first: bool) -> None:
    """Write a heartbeat that expires after `ttl_s`. Raises a DriverError.

    Unless it is the first, a write that takes longer than `ttl_s` is cancelled. The other nodes may
    count this one as dead by then, and a late retry must not bring it back to life.
    """
    try:
        async with asyncio.timeout(None if is_first else ttl_s):
            await driver.state.put(key, b"", ttl_s=ttl_s)
    except TimeoutError:
        message = f"a heartbeat was not acknowledged within {ttl_s:g} s"
        raise PublishFailed(message, driver=driver.name) from None


class LiveNodes:
    """The ids of all live nodes, including this one, as far as the bus reports them."""

    def __init__(
        self,
        driver: StateDriver,
        node: str,
        ttl_s: float,
        on_change: Callable[[str], None],
        before_return: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_change` gets the id of each node that appears or dies.

        `before_return` is awaited before this node writes a heartbeat after its last one expired.
        """
        self.ids = {node}
        self._driver = driver
        self._node = node
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._before_return = before_return
        self._last_beat = float("-inf")
        self._heartbeats: Mirror | None = None  # a driver may have no state store
        self._beat_now = asyncio.Event()

    async def start(self) -> None:
        """Write the first heartbeat, and learn which other nodes are alive. Raises a DriverError.

        After an error it can be called again.
        """
        if self._heartbeats is None:
            self._heartbeats = Mirror(self._driver.state, f"{_ROOT}*", self._on_heartbeat)
        await self._beat()
        await self._heartbeats.start()

    async def read(self, *, keep_missing: bool) -> None:
        """Read all heartbeats again. Raises a DriverError.

        Nodes without one are dead, unless `keep_missing`.
        """
        assert self._heartbeats is not None, "call start() first"
        await self._heartbeats.read(keep_missing=keep_missing)

    async def read_ids(self) -> set[str]:
        """The ids of the nodes whose heartbeat is on the bus now. Raises a DriverError."""
        return await live_nodes(self._driver)

    def beat_now(self) -> None:
        """Write a heartbeat at once, because the last one may be lost."""
        self._beat_now.set()

    async def keep_beating(self) -> None:
        """Write heartbeats until cancelled, three in the lifetime of one."""
        outage = OutageLog(_log, "the heartbeat of this node is stored again")
        while True:
            self._beat_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / 3):
                    await self._beat_now.wait()
            try:
                await self._beat()
            except EventBusError as exc:
                outage.failed("the heartbeat of this node was not stored: %s", exc)
            else:
                outage.ended()

    async def aclose(self, linger_s: float) -> None:
        """Stop watching; other nodes count this one as alive for `linger_s` more seconds.

        Raises a DriverError.
        """
        if self._heartbeats is None:
            return
        key = _ROOT + self._node
        if linger_s > 0:
            await self._driver.state.put(key, b"", ttl_s=linger_s)
        else:
            await self._driver.state.delete(key)
        await self._heartbeats.aclose()

    async def _beat(self) -> None:
        is_first = self._last_beat == float("-inf")
        if not is_first and time.monotonic() - self._last_beat >= self._ttl_s:
            await self._before_return()
        now = time.monotonic()
        await write_heartbeat(self._driver, _ROOT + self._node, self._ttl_s, is_first=is_first)
        self._last_beat = now

    def _on_heartbeat(self, key: str, value: bytes | None) -> None:
        node, alive = key.removeprefix(_ROOT), value is not None
        if node == self._node or alive == (node in self.ids):
            return
        if alive:
            self.ids.add(node)
        else:
            self.ids.discard(node)
        self._on_change(node)
