"""Posts lifecycle events: signed, within a time, and never redirected."""

import datetime
import email.utils
import logging
import time
from typing import Final

import aiohttp

from edge.lifecycle_settings import LifecycleSettings
from edge.metrics import Metrics
from edge.webhook_jobs import WebhookBatch
from eventbus.errors import EventBusError, JobRejected, JobRetry
from eventbus.events import Event
from eventbus.urls import mask_url
from eventbus.webhooks import (
    HEADER_DELIVERY,
    HEADER_SIGNATURE,
    HEADER_TIMESTAMP,
    encode_events,
    sign,
)

__all__ = ["PostFailed", "Poster"]

_log = logging.getLogger(__name__)

GONE: Final = 410
_ASKS_TO_WAIT: Final = (429, 503)
_MAX_WAIT_S: Final = 3600.0


class PostFailed(EventBusError):
    """A post that was not taken; it is tried again."""


class Poster:
    """Carries out the jobs of one queue."""

    def __init__(self, settings: LifecycleSettings, metrics: Metrics) -> None:
        """Used in the event loop that is running."""
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
        """Post a batch. Raises PostFailed, JobRetry where the receiver says when, JobRejected."""
        if not isinstance(event, WebhookBatch):
            raise JobRejected(f"{type(event).__qualname__} is nothing to post")
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
            raise PostFailed(f"{self._shown} has not answered within {limit:g} s") from None
        except (aiohttp.ClientError, OSError) as exc:
            # The messages of aiohttp may hold the address, with what it must not show.
            raise PostFailed(f"{self._shown} cannot be reached: {type(exc).__name__}") from None
        if 200 <= status < 300:
            return
        problem = f"{self._shown} answered {status}"
        if status == GONE:
            raise JobRejected(f"{problem}: it wants no more")
        if status in _ASKS_TO_WAIT and (seconds := retry_after_s(wait)) is not None:
            raise JobRetry(f"{problem}, and to come again in {seconds:g} s", after_s=seconds)
        raise PostFailed(problem + (", and is not followed" if 300 <= status < 400 else ""))

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._session.close()


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a Retry-After asks for (RFC 9110, 10.2.3), at most an hour; else None."""
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
