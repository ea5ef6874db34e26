"""Whether the bus can store messages, checked every few seconds."""

import asyncio
import logging
import random
from typing import Final

from eventbus.drivers.base import (
    Driver,
    check_of,
)
from eventbus.errors import EventBusError
from eventbus.tasks import Tasks

__all__ = ["BusHealth"]


_log = logging.getLogger(__name__)

CHECK_S: Final = 5.0


class BusHealth:
    """A node's view of its bus."""

    def __init__(self, driver: Driver) -> None:
        self.fault = ""
        """Why the bus stores no messages; empty if it does, or if that is not known."""
        self._driver = driver
        self._tasks = Tasks()

    @property
    def is_connected(self) -> bool:
        """Whether the driver is connected."""
        return self._driver.is_connected

    def start(self) -> None:
        """Begin to check."""
        self._tasks.keep(self._run, "checking what the bus stores")

    async def aclose(self) -> None:
        """Stop checking."""
        await self._tasks.aclose()

    async def _run(self) -> None:
        while True:
            # Pause first: a node that has just started has already stored its state on the bus.
            await asyncio.sleep(CHECK_S * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            try:
                self.fault = await check_of(self._driver)
            except EventBusError as exc:
                _log.debug("the bus cannot be checked: %s", exc)  # readiness says so
