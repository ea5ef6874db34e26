"""Messages that a history gave up before a durable group had handled them."""

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Evicted"]

_log = logging.getLogger(__name__)

_QUIET_S: Final = 10.0


class Evicted:
    """Counts and logs such losses of one consumer; a log line at most every ten seconds."""

    def __init__(self, consumer: str, on_found: Callable[[], object] = lambda: None) -> None:
        """`on_found` is called for each loss."""
        self.count = 0
        """How often messages of a channel were found to be gone."""
        self._consumer = consumer
        self._on_found = on_found
        self._quiet_until = float("-inf")
        self._unlogged = 0

    def found(self, subject: str, what: str) -> None:
        """Messages of a live subject or filter are gone, or may be: `what` says which and why."""
        self.count += 1
        self._on_found()
        now = time.monotonic()
        if now < self._quiet_until:
            self._unlogged += 1
            return
        more, self._unlogged = self._unlogged, 0
        self._quiet_until = now + _QUIET_S
        _log.error(
            "consumer %s: messages of %s %s%s; see BROADCAST_HISTORY_MESSAGES, _SECONDS and _BYTES",
            self._consumer,
            subject,
            what,
            f" ({more} more losses since the last line)" if more else "",
        )
