"""What drivers may offer to those who look after what is stored: a list of it, and its removal."""

from collections.abc import Mapping
from typing import Protocol

from eventbus.drivers.base import HistoryDriver

__all__ = ["MaintenanceDriver"]


class MaintenanceDriver(HistoryDriver, Protocol):
    """A driver with MAINTENANCE."""

    async def stored(self, pattern: str, limit: int) -> Mapping[str, int]:
        """How many messages are stored of each live subject that matches a filter.

        Up to `limit` subjects, whichever; those without messages are left out. Raises
        ConnectionFailed.
        """

    async def purge(self, subject: str) -> int:
        """Remove what is stored of a live subject; how many messages it was.

        Offsets go on from where they were, and whoever resumes from before a message that was
        removed is told so: see `Page.complete`. Raises ConnectionFailed.
        """
