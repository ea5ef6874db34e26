"""Foreign data: written by others to keys of eventbus. Counted, and logged at a limited rate."""

import logging

from eventbus.attempts import RateLimitedLog

__all__ = ["Foreign"]


_log = logging.getLogger(__name__)


class Foreign:
    """Reports the foreign data that one driver finds."""

    def __init__(self) -> None:
        self.count = 0
        self._log = RateLimitedLog(_log)

    def note(self, text: str, *args: object) -> None:
        """Count and log a piece of it; `text` and `args` are as for a logger."""
        self.count += 1
        self._log.warning(text, *args)
