"""Payloads from the bus that are no message: counted, logged once in a while, put aside."""

import logging
import time
from typing import Final

from eventbus.channels import Subjects
from eventbus.drivers.base import Driver
from eventbus.errors import (
    EventBusError,
    InvalidPayload,
)
from eventbus.messages import HEADER_REASON
from eventbus_edge.background import Background
from eventbus_edge.metrics.metrics import Metrics

__all__ = ["Quarantine"]


_log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 10.0


class Quarantine:
    """A node's way to put payloads aside, where an operator can look at them."""

    def __init__(
        self, driver: Driver, subjects: Subjects, background: Background, metrics: Metrics
    ) -> None:
        self._driver = driver
        self._subjects = subjects
        self._background = background
        self._metrics = metrics
        self._logged_at = 0.0
        self._unlogged = 0

    def put(self, channel: str, payload: bytes, fault: InvalidPayload) -> None:
        """Publish a payload of a channel on the channel's quarantine subject, with the reason."""
        self._metrics.quarantined.labels(fault.reason).inc()
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            _log.warning(
                "%d payloads put into quarantine; the last on %s: %s",
                self._unlogged,
                channel,
                fault,
            )
            self._logged_at, self._unlogged = now, 0
        subject = self._subjects.quarantine(channel)
        self._background.start(
            self._publish(subject, payload, fault.reason), f"quarantine of {channel}"
        )

    async def _publish(self, subject: str, payload: bytes, reason: str) -> None:
        try:
            await self._driver.publish(subject, payload, {HEADER_REASON: reason})
        except EventBusError as exc:
            _log.warning("could not publish to %s: %s", subject, exc)
