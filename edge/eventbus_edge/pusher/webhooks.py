"""Webhooks in the form that libraries of the Pusher protocol verify and read.

https://pusher.com/docs/channels/server_api/webhooks
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from eventbus.channels import ChannelKind
from eventbus.errors import ConfigError, JobRejected
from eventbus.events import Event, ShouldQueue
from eventbus.integrations.pusher import PusherApp
from eventbus.urls import is_web_address, mask_url
from eventbus.webhooks import LifecycleName, WebhookEvent
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle import Activity, PostRequest, Receiver
from eventbus_edge.protocols import (
    ClientEventSent,
    NothingStored,
    SubscriptionsCounted,
    has_cache,
    is_inbox,
    name_of,
)

__all__ = ["PusherReceiver", "receivers"]


QUEUE: Final = "pusher-webhooks"
_NAMES: Final[Mapping[LifecycleName, str]] = {
    "channel_occupied": "channel_occupied",
    "channel_vacated": "channel_vacated",
    "member_joined": "member_added",
    "member_left": "member_removed",
}
_MISS_S: Final = 10.0
"""How long a miss of a channel is not reported again by the same node."""
_MAX_MISSES: Final = 10_000


class PusherBatch(Event, ShouldQueue, name="eventbus.pusher.webhook", queue=QUEUE):
    """Events that are posted in one request, in their final form."""

    events: list[dict[str, Any]]


class PusherReceiver:
    """The receiver at PUSHER_WEBHOOK_URL; see `eventbus_edge.lifecycle.Receiver`."""

    queue: Final = QUEUE

    def __init__(
        self,
        app: PusherApp,
        url: str,
        events: Sequence[str],
        kind_of: Callable[[str], ChannelKind],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`kind_of` gives the kind of a channel by its rule."""
        self.url = url
        self.lifecycle_events: tuple[LifecycleName, ...] = tuple(
            native for native, name in _NAMES.items() if name in events
        )
        self._app = app
        self._events = frozenset(events)
        self._kind_of = kind_of
        self._now = now
        self._misses: dict[str, float] = {}

    def wants(self, event: WebhookEvent | Activity) -> bool:
        """Whether the settings name the event. Inboxes of users are not reported."""
        if _name(event) not in self._events or is_inbox(event.channel):
            return False
        return not isinstance(event, NothingStored) or self._is_new_miss(event.channel)

    def batch(self, events: Sequence[WebhookEvent | Activity]) -> PusherBatch:
        """See Receiver."""
        return PusherBatch(events=[self._encode(event) for event in events])

    def request(self, batch: Event) -> PostRequest:
        """The request, with the time of now: libraries refuse a body that is old."""
        if not isinstance(batch, PusherBatch):
            raise JobRejected(f"{type(batch).__qualname__} is not a batch of these webhooks")
        text = msgspec.json.encode({"time_ms": int(self._now() * 1000), "events": batch.events})
        signature = self._app.signature(text.decode())
        headers = {"X-Pusher-Key": self._app.key, "X-Pusher-Signature": signature}
        return PostRequest(text, headers, len(batch.events))

    def _name_of(self, channel: str) -> str:
        return name_of(channel, self._kind_of(channel))

    def _encode(self, event: WebhookEvent | Activity) -> dict[str, Any]:
        fields = {"name": _name(event), "channel": self._name_of(event.channel)}
        match event:
            case WebhookEvent(user_id=str(user_id)):
                return fields | {"user_id": user_id}
            case SubscriptionsCounted(connections=connections):
                return fields | {"subscription_count": connections}
            case ClientEventSent():
                sent = {"event": event.event, "data": event.data.decode()}
                if self._kind_of(event.channel) is ChannelKind.PRESENCE:
                    sent["user_id"] = event.user_id or ""
                return fields | sent | {"socket_id": event.connection_id}
            case _:
                return fields

    def _is_new_miss(self, channel: str) -> bool:
        """Whether a miss is to be reported. Many clients may subscribe before the cache is full."""
        if not has_cache(channel):
            return False
        now = time.monotonic()
        if self._misses.get(channel, 0.0) > now:
            return False
        if len(self._misses) >= _MAX_MISSES:
            self._misses.clear()
        self._misses[channel] = now + _MISS_S
        return True


def receivers(
    app: PusherApp, settings: EdgeSettings, kind_of: Callable[[str], ChannelKind]
) -> list[Receiver]:
    """The receiver of the settings, if there is one. Raises ConfigError."""
    url = settings.pusher_webhook_url
    if not url:
        return []
    shown = f"PUSHER_WEBHOOK_URL={mask_url(url)!r}"
    if settings.lifecycle == "off":
        raise ConfigError(
            f"{shown} with BROADCAST_LIFECYCLE=off would post nothing; set it to auto",
            variable="BROADCAST_LIFECYCLE",
        )
    if not is_web_address(url):
        raise ConfigError(
            f"{shown}: allowed: an http:// or https:// address with a host",
            variable="PUSHER_WEBHOOK_URL",
        )
    return [PusherReceiver(app, url, settings.pusher_webhook_events, kind_of)]


def _name(event: WebhookEvent | Activity) -> str:
    match event:
        case WebhookEvent():
            return _NAMES[event.event]
        case ClientEventSent():
            return "client_event"
        case NothingStored():
            return "cache_miss"
        case SubscriptionsCounted():
            return "subscription_count"
