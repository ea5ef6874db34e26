"""The options of a subscription, and the name of its consumer."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypedDict

import msgspec

from eventbus.errors import ConfigError, EventDefinitionError, InvalidName
from eventbus.events import Event, event_definition, qualified_name

__all__ = ["Options", "SubscribeOptions", "check_options", "consumer_name"]

_GROUP: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


class SubscribeOptions(TypedDict, total=False):
    """The options of `subscribe`; defaults in brackets."""

    group: str
    """Members of a group share the messages; 1 to 64 letters, digits, _ and - [none]."""
    durable: bool
    """The broker keeps the group's position, and messages are acknowledged [False]."""
    from_start: bool
    """A new durable group begins with the oldest stored message [False]."""
    channel: str
    """A pattern of channels, for a type that overrides `broadcast_on` [the type's template]."""
    name: str
    """The event name, for a type that overrides `broadcast_as` [the type's]."""
    concurrency: int
    """How many handlers run at once; with 1, in order but for redeliveries [16]."""
    buffer: int
    """Live: how many events may wait for a handler; further ones are dropped and logged [1000]."""
    ack_wait: float
    """Durable: seconds that a handler may take before it is cancelled; also the time after which
    the messages of a member that died go to another one [30]."""
    max_deliver: int
    """Durable: deliveries before a failing event goes into quarantine [5]."""
    backoff: Sequence[float]
    """Durable: seconds before each retry; the last one repeats [1, 5, 30, 120]."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SubscribeOptions, checked."""

    group: str = ""
    durable: bool = False
    from_start: bool = False
    channel: str | None = None
    name: str | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 16
    buffer: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    ack_wait: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 30.0
    max_deliver: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    backoff: Annotated[
        tuple[Annotated[float, msgspec.Meta(ge=0, le=86_400)], ...], msgspec.Meta(min_length=1)
    ] = (1.0, 5.0, 30.0, 120.0)


def consumer_name(namespace: str, group: str, event: str) -> str:
    """The name of a group's durable consumer, and of its NATS queue group, for one event.

    `eb-billing-OrderShipped-5cbd2f1e`: any character but letters, digits, _ and - becomes _. The
    suffix is from the SHA-256 of the unchanged group and event.
    """
    digest = hashlib.sha256(f"{group}\0{event}".encode()).hexdigest()[:8]
    return f"{namespace}-{group}-{_UNSAFE.sub('_', event)[:64]}-{digest}"


def check_options(cls: Any, given: Mapping[str, Any]) -> Options:
    """The options of a subscription to `cls`.

    Raises ConfigError, InvalidName for a bad group, and EventDefinitionError for a `cls` that is
    not an event type.
    """
    if not isinstance(cls, type) or not issubclass(cls, Event):
        raise EventDefinitionError(
            f"{repr(cls)[:80]} is not an event type: `@bus.subscribe(OrderShipped)`"
        )
    where = f"subscribe({qualified_name(cls)})"
    try:
        options = msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: {exc}") from None
    if options.group and not _GROUP.fullmatch(options.group):
        shown = repr(options.group)[:80]
        raise InvalidName(
            f"{where}: {shown} is not a group: 1 to 64 letters, digits, _ and - are", name=shown
        )
    if options.durable and not options.group:
        raise ConfigError(
            f"{where}: durable=True needs `group=`, the name under which its position is kept"
        )
    if options.durable and event_definition(cls).volatile:
        raise EventDefinitionError(
            f"{where}: events of this type are volatile and never stored: it cannot be durable"
        )
    return options
