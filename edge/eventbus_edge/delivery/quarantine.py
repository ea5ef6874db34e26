"""Payloads from the bus that are not messages: counted, logged at a limited rate, and set aside."""

import logging

from eventbus.attempts import RateLimitedLog
from eventbus.channels import Subjects
from eventbus.drivers import Driver
from eventbus.errors import (
    EventBusError,
    InvalidPayload,
)
from eventbus.messages import HEADER_REASON
from eventbus_edge.background import Background
from eventbus_edge.metrics import Metrics

__all__ = ["Quarantine"]


_log = logging.getLogger(__name__)


class Quarantine:
    """A node's way to put payloads aside, where an operator can look at them."""

    def __init__(
        self, driver: Driver, subjects: Subjects, background: Background, metrics: Metrics
    ) -> None:
        self._driver = driver
        self._subjects = subjects
        self._background = background
        self._metrics = metrics
        self._faults = RateLimitedLog(_log)

    def put(self, channel: str, payload: bytes, fault: InvalidPayload) -> None:
        """Publish a payload of a channel on the channel's quarantine subject, with the reason."""
        self._metrics.quarantined.labels(fault.reason).inc()
        self._faults.warning("a payload on %s was put into quarantine: %s", channel, fault)
        subject = self._subjects.quarantine(channel)
        self._background.start(
            self._publish(subject, payload, fault.reason), f"quarantine of {channel}"
        )

    async def _publish(self, subject: str, payload: bytes, reason: str) -> None:
        try:
            await self._driver.publish(subject, payload, {HEADER_REASON: reason})
        except EventBusError as exc:
            self._faults.warning("could not publish to %s: %s", subject, exc, kind="publish")
