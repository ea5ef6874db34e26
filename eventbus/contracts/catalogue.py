"""The catalogue: the contracts of all defined event types."""

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

from eventbus.contracts.docs import class_doc
from eventbus.events import (
    Event,
    ShouldBroadcast,
    data_has_models,
    data_type,
    event_decoder,
    event_definition,
    event_types,
)
from eventbus.messages import decodable

__all__ = ["Contract", "Kind", "catalogue", "channel_contracts"]


class Kind(enum.StrEnum):
    """Where an event goes."""

    BROADCAST = "broadcast"
    """Published by services, received by clients and services."""
    CLIENT = "client"
    """Sent by clients, received by other clients and services."""
    QUEUED = "queued"
    """Stored in a queue and read by workers, which may run newer code."""
    LOCAL = "local"
    """Never leaves its process."""


class Contract(NamedTuple):
    """The contract of one event type."""

    name: str
    """The event's name in the envelope. Client events have the prefix `client-`."""
    kind: Kind
    version: int
    channels: tuple[str, ...]
    """Patterns of its channels, sorted; empty if the type does not declare them."""
    volatile: bool
    queue: str | None
    """The queue's name; None if the event is not queued, or if each dispatch sets the queue."""
    queued: bool
    cls: type[Event]
    data: Any
    """The type of the envelope's `data`: the event's type, or the result of `broadcast_with`."""
    doc: str


def catalogue(types: Iterable[type[Event]] | None = None) -> tuple[Contract, ...]:
    """The contracts of the event types, by default all defined ones, sorted by name.

    Raises EventDefinitionError if the annotation of a `broadcast_with` cannot be resolved, or has
    Pydantic models that cannot be sent.
    """
    if types is None:
        types = event_types().values()
    found = [_contract(cls) for cls in types if not _is_internal(cls)]
    return tuple(sorted(found, key=lambda contract: contract.name))


def channel_contracts(contracts: Iterable[Contract]) -> tuple[Contract, ...]:
    """The contracts of the events on channels: broadcast events and client events."""
    return tuple(each for each in contracts if each.kind in (Kind.BROADCAST, Kind.CLIENT))


def _is_internal(cls: type[Event]) -> bool:
    """Whether it is an internal event of this library."""
    return event_definition(cls).name.startswith("eventbus.")


def _contract(cls: type[Event]) -> Contract:
    definition = event_definition(cls)
    chooses = definition.broadcasts and (
        getattr(cls, "broadcast_on") is not ShouldBroadcast.broadcast_on  # noqa: B009 - a mixin's
    )
    patterns = definition.channels if chooses or definition.channel is None else ()
    if not chooses and definition.channel is not None:
        patterns = (definition.channel,)
    queue = definition.queue
    if _kind(cls) is not Kind.LOCAL and not definition.abstract:
        event_decoder(cls)  # completes the type, whose module may have defined names after it
        if definition.broadcasts:
            data_has_models(cls)  # refuses models that cannot be sent
    return Contract(
        name=definition.wire_name,
        kind=_kind(cls),
        version=definition.version,
        channels=tuple(sorted(pattern.text for pattern in patterns)),
        volatile=definition.volatile,
        queue=None if queue is None else queue.queue,
        queued=queue is not None,
        cls=cls,
        data=decodable(data_type(cls)) if definition.broadcasts else cls,
        doc=class_doc(cls),
    )


def _kind(cls: type[Event]) -> Kind:
    definition = event_definition(cls)
    if definition.from_clients:
        return Kind.CLIENT
    if definition.broadcasts:
        return Kind.BROADCAST
    return Kind.QUEUED if definition.queue is not None else Kind.LOCAL
