"""Which nodes are alive: each gives a sign of life with an end, and watches those of the others."""

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
)
from typing import Final

from eventbus.drivers.base import Subscription
from eventbus.drivers.state import StateDriver
from eventbus.errors import (
    EventBusError,
    PublishFailed,
)

__all__ = ["LiveNodes", "give_sign", "nobody_gone", "signs_of"]


_log = logging.getLogger(__name__)

_ROOT: Final = "node."


async def nobody_gone() -> None:
    """For a keeper whose connections need no look."""


async def signs_of(driver: StateDriver) -> set[str]:
    """The nodes that the bus has a sign of, this moment. Raises a DriverError."""
    return {key.removeprefix(_ROOT) for key in await driver.state.entries(f"{_ROOT}*")}


async def give_sign(driver: StateDriver, key: str, ttl_s: float, *, is_first: bool) -> None:
    """Say that a node is alive, which holds for `ttl_s`. Raises a DriverError.

    A sign that has not arrived in that time is given up, unless it is the first. The bus, or this
    process, may have been away for so long that the node counts as dead: then it must not come back
    to life by a retry.
    """
    try:
        async with asyncio.timeout(None if is_first else ttl_s):
            await driver.state.put(key, b"", ttl_s=ttl_s)
    except TimeoutError:
        message = f"a sign of life was not acknowledged within {ttl_s:g} s"
        raise PublishFailed(message, driver=driver.name) from None


class LiveNodes:
    """The nodes that are alive, this one among them, as far as the bus tells."""

    def __init__(
        self,
        driver: StateDriver,
        node: str,
        ttl_s: float,
        on_change: Callable[[str], None],
        before_return: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_change` gets each node that comes to life or dies.

        `before_return` is awaited before this node gives a sign when its last one has ended.
        """
        self.ids = {node}
        self._driver = driver
        self._node = node
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._before_return = before_return
        self._beaten_at = float("-inf")
        self._watch: Subscription | None = None
        self._told: set[str] | None = None
        """While signs are read: what was told meanwhile is newer."""
        self._beat_now = asyncio.Event()

    async def start(self) -> None:
        """Give the first sign, and learn who else is there. Raises a DriverError."""
        if self._watch is None:
            self._watch = await self._driver.state.watch(f"{_ROOT}*", self._on_sign)
        await self._beat()
        await self.read(keep_missing=False)

    async def read(self, *, keep_missing: bool) -> None:
        """Read all signs; with `keep_missing`, those that are not there are not dead yet."""
        told: set[str] = set()
        self._told = told
        try:
            found = await self.signs()
        finally:
            self._told = None
        for node in found - told:
            self._set(node, alive=True)
        if not keep_missing:
            for node in self.ids - found - told:
                self._set(node, alive=False)

    async def signs(self) -> set[str]:
        """The nodes that the bus has a sign of, this moment. Raises a DriverError."""
        return await signs_of(self._driver)

    def beat_now(self) -> None:
        """Give a sign at once: the last one may be lost."""
        self._beat_now.set()

    async def keep_beating(self) -> None:
        """Give signs, three in the time that one lasts."""
        while True:
            self._beat_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / 3):
                    await self._beat_now.wait()
            try:
                await self._beat()
            except EventBusError as exc:
                _log.warning("this node could not say that it is alive: %s", exc)

    async def aclose(self, linger_s: float) -> None:
        """Watch no more; to the others this node lives for `linger_s` yet. Raises a DriverError."""
        if self._watch is None:
            return
        await self._watch.aclose()
        key = _ROOT + self._node
        if linger_s > 0:
            await self._driver.state.put(key, b"", ttl_s=linger_s)
        else:
            await self._driver.state.delete(key)

    async def _beat(self) -> None:
        is_first = self._beaten_at == float("-inf")
        if not is_first and time.monotonic() - self._beaten_at >= self._ttl_s:
            await self._before_return()
        now = time.monotonic()
        await give_sign(self._driver, _ROOT + self._node, self._ttl_s, is_first=is_first)
        self._beaten_at = now

    def _on_sign(self, key: str, value: bytes | None) -> None:
        node = key.removeprefix(_ROOT)
        if self._told is not None:
            self._told.add(node)
        self._set(node, alive=value is not None)

    def _set(self, node: str, *, alive: bool) -> None:
        if node == self._node or alive == (node in self.ids):
            return
        if alive:
            self.ids.add(node)
        else:
            self.ids.discard(node)
        self._on_change(node)
