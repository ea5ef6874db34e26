"""Who gets webhooks, and in which form."""

import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from eventbus.errors import JobRejected
from eventbus.events import Event, ShouldQueue
from eventbus.webhooks import (
    HEADER_DELIVERY,
    HEADER_SIGNATURE,
    HEADER_TIMESTAMP,
    LifecycleName,
    WebhookEvent,
    encode_events,
    sign,
)
from eventbus_edge.config import LifecycleSettings
from eventbus_edge.protocols import ClientEventSent, NothingStored, SubscriptionsCounted

__all__ = [
    "QUEUE",
    "Activity",
    "NativeReceiver",
    "PostRequest",
    "Receiver",
    "WebhookBatch",
    "native_receivers",
]


QUEUE: Final = "webhooks"

Activity: TypeAlias = ClientEventSent | NothingStored | SubscriptionsCounted
"""What clients did, beside the lifecycle events of channels and members."""


class PostRequest(NamedTuple):
    """One request; `events` is the number of its events."""

    body: bytes
    headers: Mapping[str, str]
    events: int


class Receiver(Protocol):
    """A receiver of webhooks. Each has a queue of its own, so that none waits for another."""

    @property
    def queue(self) -> str:
        """The queue of its posts."""

    @property
    def url(self) -> str:
        """Where they are posted."""

    @property
    def lifecycle_events(self) -> tuple[LifecycleName, ...]:
        """The lifecycle events that it wants."""

    def wants(self, event: WebhookEvent | Activity) -> bool:
        """Whether it wants this event. It is asked once per event."""

    def batch(self, events: Sequence[WebhookEvent | Activity]) -> Event:
        """A queued event with all these, which it wants."""

    def request(self, batch: Event) -> PostRequest:
        """The request that posts a batch now. Raises JobRejected for one of another receiver."""


class WebhookBatch(Event, ShouldQueue, name="eventbus.webhook", queue=QUEUE):
    """Lifecycle events that are posted in one request."""

    events: list[WebhookEvent]


class NativeReceiver:
    """The receiver at BROADCAST_WEBHOOK_URL."""

    queue: Final = QUEUE

    def __init__(self, settings: LifecycleSettings) -> None:
        self.url = settings.webhook_url
        self.lifecycle_events = settings.webhook_events
        self._secret = settings.webhook_secret

    def wants(self, event: WebhookEvent | Activity) -> bool:
        """See Receiver."""
        return isinstance(event, WebhookEvent) and event.event in self.lifecycle_events

    def batch(self, events: Sequence[WebhookEvent | Activity]) -> WebhookBatch:
        """See Receiver."""
        return WebhookBatch(events=[each for each in events if isinstance(each, WebhookEvent)])

    def request(self, batch: Event) -> PostRequest:
        """See Receiver; eventbus.webhooks.verify is the other side."""
        if not isinstance(batch, WebhookBatch):
            raise JobRejected(f"{type(batch).__qualname__} is not a batch of webhook events")
        body, now = encode_events(batch.events), int(time.time())
        headers = {
            HEADER_DELIVERY: batch.event_meta.id,
            HEADER_TIMESTAMP: str(now),
            HEADER_SIGNATURE: sign(body, self._secret, now),
        }
        return PostRequest(body, headers, len(batch.events))


def native_receivers(settings: LifecycleSettings) -> list[Receiver]:
    """The receiver of the settings, if there is one."""
    return [NativeReceiver(settings)] if settings.webhook_url else []
