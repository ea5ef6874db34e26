"""Events: typed structs that declare where they are broadcast, and the registry of their types.

    class OrderShipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
        order_id: int
        carrier: str

    await OrderShipped(order_id=42, carrier="DHL").dispatch()

An object is one event: dispatched twice, it has the same id, and a stream stores it once.
"""

import copy
import datetime
import functools
import os.path
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self, TypeVar, cast, dataclass_transform

import msgspec

from eventbus.errors import EventDefinitionError
from eventbus.events.current import current_bus
from eventbus.events.definition import (
    EventDefinition,
    EventKeywords,
    Traits,
    define,
    fill_template,
    qualified_name,
)
from eventbus.events.policy import POLICY_KEYWORDS, ShouldQueue
from eventbus.messages import Receipt, check_id, check_tags, encode_metadata, new_id, utc_now

__all__ = [
    "ClientEvent",
    "Event",
    "EventDefinition",
    "EventMeta",
    "ShouldBroadcast",
    "event_definition",
    "event_type",
    "event_types",
    "qualified_name",
    "with_event_meta",
]


E = TypeVar("E", bound="Event")


class EventMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What every event has besides its fields: its id, a UUIDv7, and its time of creation (UTC).

    Both are set when `event_meta` is first read. `metadata` (a JSON object) and `tags` reach
    subscribers on the bus, never clients. `except_connection` is the id of a client connection that
    must not receive the event: usually its sender's.
    """

    id: str
    timestamp: datetime.datetime
    metadata: Mapping[str, Any] = {}
    tags: tuple[str, ...] = ()
    except_connection: str | None = None


class ShouldBroadcast:
    """A mix-in for events that `dispatch` publishes.

    Override a method to choose what is published, where, and whether; each dispatch calls all four.
    """

    __slots__ = ()

    def broadcast_on(self) -> str | Sequence[str]:
        """The channel, or several of them: one message each, all with the same id."""
        name, template = event_definition(type(cast(Event, self)))[:2]
        assert template is not None  # otherwise this is overridden
        return fill_template(template, self, name)

    def broadcast_as(self) -> str:
        """The event name in the message."""
        return event_definition(type(cast(Event, self))).name

    def broadcast_with(self) -> Any:
        """The data: anything that msgspec encodes as JSON; the event's fields by default."""
        return self

    def broadcast_when(self) -> bool:
        """Whether to broadcast at all."""
        return True


class ClientEvent:
    """A mix-in for events that clients send, and that cannot be dispatched.

    `channel` is a pattern of the channels on which clients may send it. It may have wildcards, and
    its named tokens need not be fields. On the wire its name has the prefix `client-`. Services may
    subscribe to it, and an edge can be configured to validate client events against its type.
    """

    __slots__ = ()


_types: dict[str, "type[Event]"] = {}
_sources: dict[tuple[str, str], "type[Event]"] = {}
"""All event classes, including abstract ones, by file and qualified name."""
_SPAWNED_MAIN: Final = "__mp_main__"
"""The name of the main module, imported again, in a process spawned by multiprocessing."""
_RESERVED_FIELDS: Final = frozenset(
    {
        *("dispatch", "dispatch_if", "dispatch_unless", "event_meta", "to_others", "with_meta"),
        *(name for name in (*vars(ShouldBroadcast), *vars(ShouldQueue)) if name[0] != "_"),
    }
)


class _EventClass(msgspec.StructMeta):
    """Takes our keywords from a class statement, and leaves msgspec's to msgspec."""

    def __new__(  # noqa: PYI034 - Self is not for metaclasses (PEP 673)
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        channel: str | None = None,
        channels: Sequence[str] | None = None,
        name: str | None = None,
        volatile: bool | None = None,
        version: int = 1,
        abstract: bool = False,
        **struct_options: Any,
    ) -> "_EventClass":
        queued = {key: struct_options.pop(key) for key in POLICY_KEYWORDS if key in struct_options}
        made = super().__new__(mcls, cls_name, bases, namespace, **struct_options)
        if bases != (msgspec.Struct,):  # it is not Event itself
            cls = cast("type[Event]", made)
            given = EventKeywords(channel, channels, name, volatile, version, abstract, queued)
            cls.__event_definition__ = _define(cls, given)
            _register(cls)
        return made

    def __init__(cls, *args: Any, **_keywords: Any) -> None:  # noqa: N805 - a class's class
        type.__init__(cls, *args)


# As for msgspec.Struct itself, except that subclasses are frozen.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True, dict=True, metaclass=_EventClass):
    """The base of every event type: an immutable struct with fields of any type msgspec encodes.

    Class keywords: `channel` (a channel, or a template such as `orders.{order_id}` that is filled
    from fields of type str, int, UUID or an enum of these), `channels` (patterns of those that an
    overridden `broadcast_on` may name), `name` (the event name; the class's own by default),
    `volatile` (never stored or replayed), `version` (of its schema, starting at 1), `abstract` (a
    base class that is neither registered nor dispatched), and msgspec's own, such as `kw_only` or
    `rename`. `channel`, `channels` and `volatile` are inherited. ShouldQueue adds its own keywords.

    The class statement raises EventDefinitionError for an unknown field in a template, a wildcard
    or bad syntax, a broadcast event without a channel, or a name that another event has.
    """

    __event_definition__: ClassVar[EventDefinition] = EventDefinition(
        "Event", channel=None, volatile=False, version=1, abstract=True, broadcasts=False
    )

    # It is in the instance's __dict__ (`dict=True`) and not a field, so that a type may have fields
    # called `id` or `timestamp`. A copy is an event of its own, with another id.
    @functools.cached_property
    def event_meta(self) -> EventMeta:
        """The event's id and timestamp, set on first access."""
        return EventMeta(id=new_id(), timestamp=utc_now())

    async def dispatch(self) -> tuple[Receipt, ...]:
        """Dispatch through the current bus: see `EventBus.dispatch`.

        Raises BusStateError where no bus is open in the running event loop.
        """
        return await current_bus().dispatch(self)

    async def dispatch_if(self, condition: bool) -> tuple[Receipt, ...]:
        """Dispatch if `condition` is true; otherwise return no receipts."""
        return await self.dispatch() if condition else ()

    async def dispatch_unless(self, condition: bool) -> tuple[Receipt, ...]:
        """Dispatch unless `condition` is true."""
        return await self.dispatch_if(not condition)

    def with_meta(
        self, *, metadata: Mapping[str, Any] | None = None, tags: Iterable[str] = ()
    ) -> Self:
        """The same event, with the same id, with more metadata (new keys win) and more tags.

        They are sent in headers, to subscribers on the bus and never to clients. Raises
        EncodingError for metadata that is not a JSON object of at most MAX_METADATA bytes, and
        InvalidName for a tag that is not 1 to 64 visible ASCII characters without a comma, or for
        more than MAX_TAGS tags.
        """
        meta = self.event_meta
        merged = {**meta.metadata, **(metadata or {})}
        encode_metadata(merged)
        return with_event_meta(
            self,
            msgspec.structs.replace(
                meta, metadata=merged, tags=check_tags((*meta.tags, *check_tags(tags)))
            ),
        )

    def to_others(self, connection_id: str | None) -> Self:
        """The same event, which that client connection does not receive; None excludes nobody.

        Raises InvalidName for a bad id.
        """
        if connection_id is not None:
            check_id("a connection's id", connection_id)
        return with_event_meta(
            self, msgspec.structs.replace(self.event_meta, except_connection=connection_id)
        )


def with_event_meta(event: E, meta: EventMeta) -> E:
    """A copy of the event with that id, time and metadata, such as those of a received message."""
    other = copy.copy(event)
    other.__dict__["event_meta"] = meta
    return other


def event_definition(cls: type[Event]) -> EventDefinition:
    """What the class statement of an event type declares."""
    return cls.__event_definition__


def event_type(name: str) -> type[Event] | None:
    """The event type of that name, or None."""
    return _types.get(name)


def event_types() -> Mapping[str, type[Event]]:
    """All event types defined so far, by name."""
    return MappingProxyType(dict(_types))


def _define(cls: type[Event], given: EventKeywords) -> EventDefinition:
    fields = cls.__struct_fields__
    if taken := sorted(_RESERVED_FIELDS.intersection(fields)):
        raise EventDefinitionError(
            f"{qualified_name(cls)}: a field cannot be called {taken[0]!r}: every event has that "
            "attribute"
        )
    broadcasts = issubclass(cls, ShouldBroadcast)
    traits = Traits(
        broadcasts=broadcasts,
        chooses_channels=issubclass(cls, ShouldBroadcast)
        and cls.broadcast_on is not ShouldBroadcast.broadcast_on,
        queued=issubclass(cls, ShouldQueue),
        from_clients=issubclass(cls, ClientEvent),
    )
    return define(cls, fields, given, traits, event_definition(cls))


def _register(cls: type[Event]) -> None:
    """Register a class by its source, and unless it is abstract, by its name.

    A module that is reloaded, or imported again after its removal, replaces its classes. Raises
    EventDefinitionError for a name that another event has, and for a source that is loaded twice:
    the listeners of one class would not get the events of the other.
    """
    source, definition = _source(cls), event_definition(cls)
    former, namesake = _sources.get(source), _types.get(definition.name)
    if former is not None and cls.__module__ == _SPAWNED_MAIN:
        return
    if (
        former is not None
        and former.__module__ not in (cls.__module__, _SPAWNED_MAIN)
        and former.__module__ in sys.modules
    ):
        raise EventDefinitionError(
            f"{source[0]} is loaded twice, as {former.__module__} and as {cls.__module__}: "
            f"{cls.__qualname__} would be two event types, and listeners to one would not get the "
            "other. Import the module under one name. If other modules import events of a "
            "program's main module, move these into a module of their own"
        )
    if not definition.abstract:
        if namesake not in (None, former) and _source(namesake) != source:
            raise EventDefinitionError(
                f"two event types are called {definition.name!r}: {qualified_name(namesake)} and "
                f"{qualified_name(cls)}; "
                'give one of them another name with `name="..."`'
            )
        _types[definition.name] = cls
    _sources[source] = cls


def _source(cls: type) -> tuple[str, str]:
    """The file (or the module, without a file) and the qualified name of a class."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    return os.path.realpath(file) if file else cls.__module__, cls.__qualname__
