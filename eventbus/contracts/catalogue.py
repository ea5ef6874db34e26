"""The catalogue: what the event types that are defined mean for those outside the process."""

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

from eventbus.contracts.docs import class_doc
from eventbus.events import Event, ShouldBroadcast, data_type, event_definition, event_types

__all__ = ["Contract", "Kind", "catalogue", "shared"]


class Kind(enum.StrEnum):
    """Who gets an event."""

    BROADCAST = "broadcast"
    """Services publish it; clients and services receive it."""
    CLIENT = "client"
    """Clients send it; other clients and services receive it."""
    QUEUED = "queued"
    """Workers get it from a queue: it is stored, and read by a process that may be newer."""
    LOCAL = "local"
    """It never leaves its process."""


class Contract(NamedTuple):
    """What one event type promises."""

    name: str
    """The event's name in the envelope: with the prefix `client-` for a client event."""
    kind: Kind
    version: int
    channels: tuple[str, ...]
    """Patterns of its channels, sorted; empty where the type does not tell them."""
    volatile: bool
    queue: str | None
    """The queue's name; None where it is not queued, or decided at each dispatch."""
    queued: bool
    cls: type[Event]
    data: Any
    """The type of the envelope's `data`: the event's own, or what `broadcast_with` returns."""
    doc: str


def catalogue(types: Iterable[type[Event]] | None = None) -> tuple[Contract, ...]:
    """The contracts of event types (by default all that are defined), sorted by name.

    Raises EventDefinitionError where `broadcast_with` is annotated with what cannot be resolved.
    """
    if types is None:
        types = event_types().values()
    found = [_contract(cls) for cls in types if not _is_internal(cls)]
    return tuple(sorted(found, key=lambda contract: contract.name))


def shared(contracts: Iterable[Contract]) -> tuple[Contract, ...]:
    """Those that others see on channels: broadcast events and client events."""
    return tuple(each for each in contracts if each.kind in (Kind.BROADCAST, Kind.CLIENT))


def _is_internal(cls: type[Event]) -> bool:
    """Whether it is one of the library's own, which nobody outside sees under its name."""
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
    return Contract(
        name=definition.wire_name,
        kind=_kind(cls),
        version=definition.version,
        channels=tuple(sorted(pattern.text for pattern in patterns)),
        volatile=definition.volatile,
        queue=None if queue is None else queue.queue,
        queued=queue is not None,
        cls=cls,
        data=data_type(cls) if definition.broadcasts else cls,
        doc=class_doc(cls),
    )


def _kind(cls: type[Event]) -> Kind:
    definition = event_definition(cls)
    if definition.from_clients:
        return Kind.CLIENT
    if definition.broadcasts:
        return Kind.BROADCAST
    return Kind.QUEUED if definition.queue is not None else Kind.LOCAL
