"""Announces lifecycle events: on the control subjects, and as queued jobs that nodes post."""

import asyncio
import collections
import datetime
import email.utils
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
import msgspec

from eventbus.attempts import Backoff, OutageLog
from eventbus.bus import EventBus
from eventbus.drivers import QueueStore
from eventbus.errors import (
    ConfigError,
    EncodingError,
    EventBusError,
    JobRejected,
    JobRetry,
    NotSupported,
)
from eventbus.events import Event, EventMeta, with_event_meta
from eventbus.messages import new_id, utc_now
from eventbus.queue import Job, job_of, push
from eventbus.urls import fault_text, mask_url, proxy_for
from eventbus.webhooks import WebhookEvent, encode_event, lifecycle_subject
from eventbus_edge.config import LifecycleSettings
from eventbus_edge.lifecycle.networks import Networks
from eventbus_edge.lifecycle.receivers import QUEUE, Activity, Receiver, WebhookBatch
from eventbus_edge.metrics import Metrics
from eventbus_edge.protocols import ClientEventSent

__all__ = [
    "QUEUE", "Activities", "EventAnnouncer", "PostFailed", "PostQueue", "Poster",
    "WebhookBatch", "webhook_outage", "webhook_queue",
]  # fmt: skip


_log = logging.getLogger(__name__)

_ROOM_S: Final = 10.0
"""How much longer than its post a job may take."""
MAX_ACTIVITIES: Final = 10_000
"""Activities that may wait for the queue; beyond it they are dropped."""
_BATCH_BYTES: Final = 32 * 1024
_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 5.0


async def webhook_queue(bus: EventBus, settings: LifecycleSettings) -> QueueStore:
    """The queue store for posts. Raises ConfigError if the driver has none, and DriverError."""
    try:
        return await bus.queues(settings.webhook_queue_connection or None)
    except NotSupported as exc:
        raise ConfigError(
            f"there is a URL for webhooks, but the driver {exc.driver} has no queues to hold the "
            "posts: set BROADCAST_WEBHOOK_QUEUE_CONNECTION to the name of a driver with queues, "
            "such as nats; or unset the URL and set BROADCAST_LIFECYCLE=on, which publishes the "
            "events on the bus only",
            variable="BROADCAST_WEBHOOK_QUEUE_CONNECTION",
        ) from exc


class EventAnnouncer:
    """Publishes each event on its control subject, and queues those that receivers want."""

    def __init__(self, bus: EventBus, queues: Sequence["PostQueue"], metrics: Metrics) -> None:
        self._bus = bus
        self._queues = queues
        self._metrics = metrics

    async def announce(self, batch: str, events: Sequence[WebhookEvent]) -> None:
        """Announce a batch. Repeating it after an error queues the same job with the same events.

        Raises a DriverError if the job is not safe in the queue.
        """
        for queue in self._queues:
            await queue.push(batch, [each for each in events if queue.receiver.wants(each)])
        await asyncio.gather(*map(self._publish, events))

    async def _publish(self, event: WebhookEvent) -> None:
        subject = lifecycle_subject(self._bus.subjects, event.event)
        try:
            await self._bus.driver.publish(subject, encode_event(event))
        except EncodingError as exc:
            _log.error("a lifecycle event cannot be published and is dropped: %s", exc)
        self._metrics.lifecycle_events.labels(event.event).inc()


class PostQueue:
    """Puts the events that one receiver wants into its queue."""

    def __init__(
        self, receiver: Receiver, settings: LifecycleSettings, store: QueueStore, metrics: Metrics
    ) -> None:
        self.receiver = receiver
        self._settings = settings
        self._store = store
        self._metrics = metrics

    async def push(self, batch: str, wanted: Sequence[WebhookEvent | Activity]) -> None:
        """Queue events that the receiver wants, as one post. Raises a DriverError.

        The id of the post follows from that of the batch: repeating it queues nothing.
        """
        if not wanted:
            return
        queue = self.receiver.queue
        meta = EventMeta(id=batch if queue == QUEUE else f"{batch}-{queue}", timestamp=utc_now())
        try:
            await push(
                self._store, self._job(with_event_meta(self.receiver.batch(wanted), meta), queue)
            )
        except EncodingError as exc:
            self._metrics.webhook_events.labels("dropped").inc(len(wanted))
            _log.error("%d webhook events cannot be queued and are dropped: %s", len(wanted), exc)

    def _job(self, event: Event, queue: str) -> Job:
        settings = self._settings
        return msgspec.structs.replace(
            job_of(event),
            queue=queue,
            tries=settings.webhook_tries,
            timeout=settings.webhook_timeout + _ROOM_S,
            backoff=settings.webhook_backoff,
        )


class Activities:
    """What clients of this node did, on its way to the queue of a receiver. It is limited."""

    def __init__(self, queue: PostQueue, settings: LifecycleSettings, metrics: Metrics) -> None:
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._waiting: collections.deque[Activity] = collections.deque()
        self._came = asyncio.Event()
        self._outage = OutageLog(_log, "webhook events can be queued again")

    def add(self, activity: Activity) -> None:
        """Queue an activity soon, if the receiver wants it."""
        if not self._queue.receiver.wants(activity):
            return
        if len(self._waiting) >= MAX_ACTIVITIES:
            self._metrics.webhook_events.labels("dropped").inc()
            self._outage.failed("webhook events are dropped: %d wait already", MAX_ACTIVITIES)
            return
        self._waiting.append(activity)
        self._came.set()

    async def run(self) -> None:
        """Queue activities, in batches."""
        while True:
            await self._came.wait()
            await asyncio.sleep(self._settings.webhook_wait)
            await self.flush()

    async def flush(self) -> None:
        """Queue all that waits; repeats what fails."""
        self._came.clear()
        backoff = Backoff(_PAUSE_S, _MAX_PAUSE_S)
        while self._waiting:
            batch, id_ = self._next(), new_id()
            while True:
                try:
                    await self._queue.push(id_, batch)
                    break
                except EventBusError as exc:
                    self._outage.failed("webhook events cannot be queued yet: %s", exc)
                    await asyncio.sleep(backoff.next())
            for _ in batch:
                self._waiting.popleft()
            self._outage.ended()

    def _next(self) -> list[Activity]:
        found: list[Activity] = []
        size = 0
        for activity in self._waiting:
            size += len(activity.data) if isinstance(activity, ClientEventSent) else 0
            if found and (len(found) >= self._settings.webhook_batch or size > _BATCH_BYTES):
                break
            found.append(activity)
        return found


GONE: Final = 410
_ASKS_TO_WAIT: Final = (429, 503)
_MAX_WAIT_S: Final = 3600.0


class PostFailed(EventBusError):
    """A post failed; it is retried."""


def webhook_outage() -> OutageLog:
    """Logs when posts fail, and when they succeed again."""
    return OutageLog(_log, "webhooks can be posted again")


class Poster:
    """Posts the batches of a receiver's queue."""

    def __init__(
        self,
        receiver: Receiver,
        settings: LifecycleSettings,
        metrics: Metrics,
        outage: OutageLog | None = None,
    ) -> None:
        """Must be created in a running event loop. Several may share one `outage`.

        A proxy resolves the names itself, and decides where it connects to. Raises ConfigError for
        an unusable proxy, and for invalid networks.
        """
        self._outage = outage or webhook_outage()
        self._proxy = proxy_for(receiver.url)
        networks = Networks(settings.webhook_networks)
        self._receiver = receiver
        self._settings = settings
        self._metrics = metrics
        self._shown = mask_url(receiver.url)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=settings.webhook_timeout),
            connector=aiohttp.TCPConnector(
                limit=settings.webhook_concurrency,
                socket_factory=None if self._proxy else networks.open_socket,
            ),
            headers={"Content-Type": "application/json", "User-Agent": "eventbus"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def process(self, event: Event) -> None:
        """Post a batch. Raises PostFailed, JobRetry if the receiver says when, and JobRejected."""
        body, headers, count = self._receiver.request(event)
        begun = time.monotonic()
        try:
            await self._post(body, headers)
        except EventBusError as exc:
            self._metrics.webhook_posts.labels("failed").inc()
            self._outage.failed("webhooks cannot be posted: %s", exc)
            raise
        finally:
            self._metrics.webhook_seconds.observe(time.monotonic() - begun)
        self._outage.ended()
        self._metrics.webhook_posts.labels("ok").inc()
        self._metrics.webhook_events.labels("sent").inc(count)

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> None:
        url = self._receiver.url
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                status, wait = response.status, response.headers.get("Retry-After")
        except TimeoutError:
            limit = self._settings.webhook_timeout
            raise PostFailed(f"{self._shown} did not answer within {limit:g} s") from None
        except (aiohttp.ClientError, OSError) as exc:
            raise PostFailed(f"{self._shown} cannot be reached: {fault_text(exc)}") from None
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
