"""Announces lifecycle events: on the control subjects, and as queued jobs that nodes post."""

import asyncio
import datetime
import email.utils
import logging
import time
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec

from eventbus.bus import EventBus
from eventbus.drivers.queues import QueueStore
from eventbus.errors import (
    ConfigError,
    EncodingError,
    EventBusError,
    JobRejected,
    JobRetry,
    NotSupported,
)
from eventbus.events import Event, EventMeta, ShouldQueue, with_event_meta
from eventbus.messages import utc_now
from eventbus.queue import Job, job_of, push
from eventbus.urls import mask_url
from eventbus.webhooks import (
    HEADER_DELIVERY,
    HEADER_SIGNATURE,
    HEADER_TIMESTAMP,
    WebhookEvent,
    encode_event,
    encode_events,
    lifecycle_subject,
    sign,
)
from eventbus_edge.config import LifecycleSettings
from eventbus_edge.metrics.metrics import Metrics

__all__ = ["QUEUE", "EventAnnouncer", "PostFailed", "Poster", "WebhookBatch", "webhook_queue"]


_log = logging.getLogger(__name__)

QUEUE: Final = "webhooks"
_ROOM_S: Final = 10.0
"""How much longer than its post a job may take."""


class WebhookBatch(Event, ShouldQueue, name="eventbus.webhook", queue=QUEUE):
    """Events that are posted in one request."""

    events: list[WebhookEvent]


async def webhook_queue(bus: EventBus, settings: LifecycleSettings) -> QueueStore:
    """The queue store for posts. Raises ConfigError if the driver has none, and DriverError."""
    try:
        return await bus.queues(settings.webhook_queue_connection or None)
    except NotSupported as exc:
        raise ConfigError(
            f"BROADCAST_WEBHOOK_URL is set, but the driver {exc.driver} has no queues to hold the "
            "posts: set BROADCAST_WEBHOOK_QUEUE_CONNECTION to the name of a driver with queues, "
            "such as nats; or unset the URL and set BROADCAST_LIFECYCLE=on, which publishes the "
            "events on the bus only",
            variable="BROADCAST_WEBHOOK_QUEUE_CONNECTION",
        ) from exc


class EventAnnouncer:
    """Publishes each event on its control subject, and queues those that webhooks want."""

    def __init__(
        self, bus: EventBus, settings: LifecycleSettings, store: QueueStore | None, metrics: Metrics
    ) -> None:
        """Without a `store`, nothing is posted."""
        self._bus = bus
        self._settings = settings
        self._store = store
        self._metrics = metrics

    async def announce(self, batch: str, events: Sequence[WebhookEvent]) -> None:
        """Announce a batch. Repeating it after an error queues the same job with the same events.

        Raises a DriverError if the job is not safe in the queue.
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
            _log.error("%d lifecycle events cannot be queued and are dropped: %s", len(events), exc)

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
            _log.error("a lifecycle event cannot be published and is dropped: %s", exc)
        self._metrics.lifecycle_events.labels(event.event).inc()


GONE: Final = 410
_ASKS_TO_WAIT: Final = (429, 503)
_MAX_WAIT_S: Final = 3600.0


class PostFailed(EventBusError):
    """A post failed; it is retried."""


class Poster:
    """Posts the batches of the webhook queue."""

    def __init__(self, settings: LifecycleSettings, metrics: Metrics) -> None:
        """Must be created in a running event loop."""
        self._settings = settings
        self._metrics = metrics
        self._shown = mask_url(settings.webhook_url)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=settings.webhook_timeout),
            connector=aiohttp.TCPConnector(limit=settings.webhook_concurrency),
            headers={"Content-Type": "application/json", "User-Agent": "eventbus"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def process(self, event: Event) -> None:
        """Post a batch. Raises PostFailed, JobRetry if the receiver says when, and JobRejected."""
        if not isinstance(event, WebhookBatch):
            raise JobRejected(f"{type(event).__qualname__} is not a batch of webhook events")
        count = len(event.events)
        begun = time.monotonic()
        try:
            await self._post(event)
        except EventBusError:
            self._metrics.webhook_posts.labels("failed").inc()
            raise
        finally:
            self._metrics.webhook_seconds.observe(time.monotonic() - begun)
        self._metrics.webhook_posts.labels("ok").inc()
        self._metrics.webhook_events.labels("sent").inc(count)

    async def _post(self, event: WebhookBatch) -> None:
        body = encode_events(event.events)
        now = int(time.time())
        headers = {
            HEADER_DELIVERY: event.event_meta.id,
            HEADER_TIMESTAMP: str(now),
            HEADER_SIGNATURE: sign(body, self._settings.webhook_secret, now),
        }
        url = self._settings.webhook_url
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status, wait = response.status, response.headers.get("Retry-After")
        except TimeoutError:
            limit = self._settings.webhook_timeout
            raise PostFailed(f"{self._shown} did not answer within {limit:g} s") from None
        except (aiohttp.ClientError, OSError) as exc:
            # Messages of aiohttp may contain the address, including its secrets.
            raise PostFailed(f"{self._shown} cannot be reached: {type(exc).__name__}") from None
        if 200 <= status < 300:
            return
        problem = f"{self._shown} answered {status}"
        if status == GONE:
            raise JobRejected(f"{problem}: it accepts no more posts")
        if status in _ASKS_TO_WAIT and (seconds := retry_after_s(wait)) is not None:
            raise JobRetry(f"{problem}, and asks to retry in {seconds:g} s", after_s=seconds)
        raise PostFailed(problem + (", which is not followed" if 300 <= status < 400 else ""))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def retry_after_s(value: str | None) -> float | None:
    """The seconds of a Retry-After header (RFC 9110 §10.2.3), at most an hour; None if invalid."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), _MAX_WAIT_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(seconds, 0.0), _MAX_WAIT_S)
