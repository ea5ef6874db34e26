"""What others have written where only eventbus writes: counted, and logged at a limited rate."""

import logging
import time
from typing import Final

__all__ = ["Foreign"]


_log = logging.getLogger(__name__)

LOG_EVERY_S: Final = 10.0


class Foreign:
    """The foreign data that one driver has come upon."""

    def __init__(self) -> None:
        self.count = 0
        self._logged_at = float("-inf")
        self._unlogged = 0

    def note(self, text: str, *args: object) -> None:
        """Count a piece of it; `text` and `args` are as for a logger."""
        self.count += 1
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            if self._unlogged > 1:
                text += " (%d pieces of foreign data since the last warning)"
                args = (*args, self._unlogged)
            _log.warning(text, *args)
            self._logged_at, self._unlogged = now, 0
