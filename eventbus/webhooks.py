"""Lifecycle events of channels and members, received as webhooks or on the bus.

A web service verifies each request of an edge node:

    events = verify(request.headers, body, secret)

A service on the bus receives the same events without HTTP:

    await listen_lifecycle(bus, handler)
"""

import datetime
import hashlib
import hmac
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.drivers import Delivery, Subscription
from eventbus.errors import InvalidWebhook
from eventbus.messages import json_decoder
from eventbus.user_code import check_callable, check_not_async

__all__ = [
    "HEADER_DELIVERY",
    "HEADER_SIGNATURE",
    "HEADER_TIMESTAMP",
    "LIFECYCLE_EVENTS",
    "LifecycleName",
    "WebhookEvent",
    "encode_event",
    "encode_events",
    "lifecycle_subject",
    "listen_lifecycle",
    "sign",
    "verify",
]

_log = logging.getLogger(__name__)

LifecycleName = Literal["channel_occupied", "channel_vacated", "member_joined", "member_left"]
LIFECYCLE_EVENTS: Final[tuple[LifecycleName, ...]] = get_args(LifecycleName)

HEADER_DELIVERY: Final = "Eventbus-Delivery"
"""The id of a request, the same for each attempt."""
HEADER_TIMESTAMP: Final = "Eventbus-Timestamp"
"""The time of the signature, in whole Unix seconds."""
HEADER_SIGNATURE: Final = "Eventbus-Signature"
"""`v1=` and the HMAC-SHA256, in hexadecimal, of the timestamp, a full stop, and the body."""
_SCHEME: Final = "v1="
_TOPIC: Final = "lifecycle"
_TIME: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_REMEMBERED: Final = 10_000
"""Ids of received events that a listener remembers, to drop duplicates."""


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lifecycle event; `user_id` and `info` are those of a member."""

    id: str
    """The same for every copy of the event."""
    event: LifecycleName
    channel: str
    timestamp: datetime.datetime
    user_id: str | None = None
    info: dict[str, Any] | None = None


class _Body(msgspec.Struct, frozen=True):
    events: list[WebhookEvent]


_encode: Final = msgspec.json.Encoder().encode
_decode_body: Final = json_decoder(_Body)
_decode_event: Final = json_decoder(WebhookEvent)


def encode_event(event: WebhookEvent) -> bytes:
    """Encode an event for its control subject."""
    return _encode(event)


def encode_events(events: list[WebhookEvent]) -> bytes:
    """Encode the body of a request."""
    return _encode(_Body(events))


def sign(body: bytes, secret: str, timestamp: int) -> str:
    """The value of the header Eventbus-Signature of a request."""
    signed = b"%d.%b" % (timestamp, body)
    return _SCHEME + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def verify(
    headers: Mapping[str, str], body: bytes, secret: str, tolerance_s: float = 300.0
) -> list[WebhookEvent]:
    """Verify a request of an edge node; returns its events.

    `headers` are those of the request, with names in any case; `body` is the unparsed body. A
    request that was signed more than `tolerance_s` seconds ago, or ahead, is refused, so that a
    recorded request cannot be replayed. Within that time, and when a node repeats a request without
    an answer, use the ids of the events to drop duplicates.

    Raises InvalidWebhook with a `reason`: `headers`, `signature`, `time` or `body`. Raises
    ValueError for an empty secret.
    """
    if not secret:
        raise ValueError("an empty secret would accept anybody's signature")
    given = {name.lower(): value for name, value in headers.items()}
    stamp, signatures = given.get(HEADER_TIMESTAMP.lower()), given.get(HEADER_SIGNATURE.lower())
    if stamp is None or signatures is None:
        raise InvalidWebhook("headers", f"it lacks {HEADER_TIMESTAMP} or {HEADER_SIGNATURE}")
    if not _TIME.fullmatch(stamp):
        raise InvalidWebhook("headers", f"{HEADER_TIMESTAMP} is not a time in Unix seconds")
    expected = sign(body, secret, int(stamp)).encode()
    # There may be several, separated by commas, during a change of the secret.
    matches = [
        hmac.compare_digest(expected, each.strip().encode(errors="replace"))
        for each in signatures.split(",")
    ]
    if not any(matches):
        raise InvalidWebhook("signature", "the signature is not one of this secret and body")
    age = time.time() - int(stamp)
    if math.fabs(age) > tolerance_s:
        raise InvalidWebhook("time", f"it was signed {age:.0f} s ago: {tolerance_s:g} are allowed")
    try:
        return _decode_body(body).events
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidWebhook("body", f"the body has no events: {exc}") from None


def lifecycle_subject(subjects: Subjects, event: LifecycleName) -> str:
    """The subject of an event: `<namespace>.control.lifecycle.<event>`."""
    return subjects.control(f"{_TOPIC}.{event}")


async def listen_lifecycle(
    bus: EventBus,
    handler: Callable[[WebhookEvent], None],
    *,
    events: Collection[LifecycleName] = LIFECYCLE_EVENTS,
) -> Subscription:
    """Receive the events from now on, until the subscription is closed.

    Edge nodes publish them if BROADCAST_LIFECYCLE is on. They are not stored: events during a lost
    connection are not received later. `handler` is called in the event loop, in order, once per
    event; it must not block. Raises ConnectionFailed, and
    TypeError for an async handler.
    """
    check_callable(handler, "a handler", 1)
    check_not_async(handler, "a handler")
    wanted = frozenset(events)
    seen: dict[str, None] = {}

    def receive(delivery: Delivery) -> None:
        try:
            event = _decode_event(delivery.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            # A publisher on the bus may publish anything.
            _log.warning("not an event, on %s: %s", delivery.subject, exc)
            return
        # A node that takes over from a dead one repeats events that may not have been published.
        if event.event not in wanted or event.id in seen:
            return
        seen[event.id] = None
        if len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        handler(event)

    return await bus.driver.subscribe(f"{bus.subjects.control(_TOPIC)}.*", receive)
