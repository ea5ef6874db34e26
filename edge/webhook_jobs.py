"""Telling of lifecycle events: on the control subjects, and as jobs that nodes post."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from edge.lifecycle_settings import LifecycleSettings
from edge.metrics import Metrics
from eventbus.bus import EventBus
from eventbus.drivers.base import QueueStore
from eventbus.errors import ConfigError, EncodingError, NotSupported
from eventbus.events import Event, EventMeta, with_event_meta
from eventbus.jobs import Job, job_of, push
from eventbus.message import utc_now
from eventbus.queue import ShouldQueue
from eventbus.webhooks import WebhookEvent, encode_event, lifecycle_subject

__all__ = ["QUEUE", "Outlet", "WebhookBatch", "webhook_queue"]

_log = logging.getLogger(__name__)

QUEUE: Final = "webhooks"
_ROOM_S: Final = 10.0
"""What a job has beyond the time of its post, to end."""


class WebhookBatch(Event, ShouldQueue, name="eventbus.webhook", queue=QUEUE):
    """Events that are posted together."""

    events: list[WebhookEvent]


async def webhook_queue(bus: EventBus, settings: LifecycleSettings) -> QueueStore:
    """The queues in which posts wait. Raises ConfigError where there are none, DriverError."""
    try:
        return await bus.queues(settings.webhook_queue_connection or None)
    except NotSupported as exc:
        raise ConfigError(
            f"BROADCAST_WEBHOOK_URL is set, and the driver {exc.driver} has no queue in which "
            "posts could wait: set BROADCAST_WEBHOOK_QUEUE_CONNECTION to the name of a driver with "
            "queues, such as nats; without a URL, the events are published all the same with "
            "BROADCAST_LIFECYCLE=on",
            variable="BROADCAST_WEBHOOK_QUEUE_CONNECTION",
        ) from exc


class Outlet:
    """Where events go: each to its control subject, and those that are asked for to the queue."""

    def __init__(
        self, bus: EventBus, settings: LifecycleSettings, store: QueueStore | None, metrics: Metrics
    ) -> None:
        """Without `store` nothing is posted."""
        self._bus = bus
        self._settings = settings
        self._store = store
        self._metrics = metrics

    async def tell(self, batch: str, events: Sequence[WebhookEvent]) -> None:
        """Tell a batch; again, after a fault, it is the same job and the same events.

        Raises a DriverError when it is not safe in the queue.
        """
        if self._store is not None:
            posted = [event for event in events if event.event in self._settings.webhook_events]
            await self._push(self._store, batch, posted)
        await asyncio.gather(*map(self._publish, events))

    async def _push(self, store: QueueStore, batch: str, events: list[WebhookEvent]) -> None:
        if not events:
            return
        meta = EventMeta(id=batch, timestamp=utc_now())
        try:
            await push(store, self._job(with_event_meta(WebhookBatch(events=events), meta)))
        except EncodingError as exc:
            self._metrics.webhook_events.labels("dropped").inc(len(events))
            _log.error(
                "%d lifecycle events cannot be queued, and are dropped: %s", len(events), exc
            )

    def _job(self, event: WebhookBatch) -> Job:
        settings = self._settings
        return msgspec.structs.replace(
            job_of(event),
            tries=settings.webhook_tries,
            timeout=settings.webhook_timeout + _ROOM_S,
            backoff=settings.webhook_backoff,
        )

    async def _publish(self, event: WebhookEvent) -> None:
        subject = lifecycle_subject(self._bus.subjects, event.event)
        try:
            await self._bus.driver.publish(subject, encode_event(event))
        except EncodingError as exc:
            _log.error("a lifecycle event cannot be published, and is dropped: %s", exc)
        self._metrics.lifecycle_events.labels(event.event).inc()
