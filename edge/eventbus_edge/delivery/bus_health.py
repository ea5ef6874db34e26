"""Whether the bus can store messages, checked every few seconds."""

import asyncio
import logging
import random
from typing import Final

from eventbus.attempts import RateLimitedLog
from eventbus.drivers import Driver, check_of
from eventbus.errors import EventBusError, SubscribeDenied
from eventbus.tasks import Tasks

__all__ = ["BusHealth", "fault_for_client"]


_log = logging.getLogger(__name__)
_faults = RateLimitedLog(_log)

CHECK_S: Final = 5.0


def fault_for_client(what: str, fault: EventBusError) -> str:
    """The error message for a client whose command failed with a fault of the bus.

    `what` says what failed. The fault itself is logged only: it may name the broker's address and
    its streams, which are not public.
    """
    _faults.warning("%s: %s", what, fault, kind=what)
    if isinstance(fault, SubscribeDenied):
        return f"{what}: the bus refuses the subscription, by a limit or a permission of this node"
    return f"{what}: the bus does not answer, or does not accept it; try again in a moment"


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
