"""Errors of the broker that fail no dispatch: they are logged, at a limited rate, and counted."""

import functools
import logging
from typing import TYPE_CHECKING, Final

from eventbus.attempts import RateLimitedLog
from eventbus.errors import DriverError, NotSupported

if TYPE_CHECKING:
    from prometheus_client import Counter

__all__ = ["Rescues", "can_rescue", "rescue_counter"]

_log = logging.getLogger(__name__)

_RESCUE: Final = "rescue"
_COMMIT: Final = "commit"


def can_rescue(error: Exception) -> bool:
    """Whether it is the broker's error, and not one of the program or its settings."""
    return isinstance(error, DriverError) and not isinstance(error, NotSupported)


@functools.cache
def rescue_counter() -> "Counter":
    """The counter of the process, in the default registry of prometheus_client.

    A bus creates it when it opens, so that it shows 0 until something is lost.
    """
    from prometheus_client import Counter  # noqa: PLC0415 - slow to import

    counter = Counter(
        "eventbus_rescued",
        "messages and jobs that could not be sent, and whose dispatch did not fail",
        ["reason"],
    )
    for reason in (_RESCUE, _COMMIT):
        counter.labels(reason)
    return counter


class Rescues:
    """What a bus could not send, and did not raise."""

    def __init__(self) -> None:
        self.count = 0
        """Messages and jobs that were not sent."""
        self._log = RateLimitedLog(_log, limit=64)

    def rescued(self, event: str, destination: str, error: Exception) -> None:
        """Count a message of an event with `rescue=True`, and log it, at most every ten seconds."""
        self._add(_RESCUE)
        self._log.warning(
            "event %r could not be sent to %s, and its dispatch does not fail (rescue): %s",
            event, destination, error, kind=event,
        )  # fmt: skip

    def lost(self, event: str, destination: str, error: Exception) -> None:
        """Count a message that a database's commit has released, and log it as an error."""
        self._add(_COMMIT)
        self._log.log(
            logging.ERROR,
            "event %r could not be sent to %s after the commit of its transaction: %s",
            event, destination, error, kind=(event, "lost"),
        )  # fmt: skip

    def _add(self, reason: str) -> None:
        self.count += 1
        rescue_counter().labels(reason).inc()
