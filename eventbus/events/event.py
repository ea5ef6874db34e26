"""Events: typed structs that declare where they are broadcast, and the registry of their types.

    class OrderShipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
        order_id: int
        carrier: str

    await OrderShipped(order_id=42, carrier="DHL").dispatch()

An object is one event: dispatched twice, it has the same id, and a stream stores it once.
"""

import datetime
import difflib
import functools
import inspect
import os.path
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import (
    Any,
    ClassVar,
    Final,
    Self,
    TypeVar,
    cast,
    dataclass_transform,
    get_type_hints,
    overload,
)

import msgspec

from eventbus.errors import EventDefinitionError
from eventbus.events.current import (
    CURRENT,
    CurrentType,
    current_bus,
    current_connection,
    run_blocking,
)
from eventbus.events.definition import (
    EventDefinition,
    EventKeywords,
    Traits,
    define,
    fill_template,
    qualified_name,
)
from eventbus.events.policy import POLICY_KEYWORDS, ShouldQueue
from eventbus.messages import (
    Receipt,
    check_id,
    check_models,
    check_tags,
    decodable,
    encode_metadata,
    is_model,
    json_decoder,
    may_have_models,
    new_id,
    utc_now,
)

__all__ = [
    "ClientEvent",
    "Event",
    "EventDefinition",
    "EventMeta",
    "ShouldBroadcast",
    "event_decoder",
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


class _MetaOnce:
    """The event's id and timestamp, set on first access."""

    # Without __set__, so that the instance's __dict__ comes first.
    @overload
    def __get__(self, event: None, cls: type) -> Self: ...
    @overload
    def __get__(self, event: "Event", cls: type) -> EventMeta: ...
    def __get__(self, event: "Event | None", cls: type) -> "EventMeta | Self":
        if event is None:
            return self
        # Threads that dispatch the same event get the same meta: `setdefault` is atomic.
        meta = EventMeta(id=new_id(), timestamp=utc_now())
        return cast(EventMeta, event.__dict__.setdefault("event_meta", meta))


class ShouldBroadcast:
    """A mix-in for events that `dispatch` publishes.

    Override a method to choose what is published, where, and whether; each dispatch calls all four.
    """

    __slots__ = ()
    __event_definition__: ClassVar[EventDefinition]
    """That of the event type."""

    def broadcast_on(self) -> str | Sequence[str]:
        """The channel, or several of them: one message each, all with the same id."""
        definition = self.__event_definition__
        assert definition.channel is not None  # otherwise this is overridden
        return fill_template(definition.channel, self, definition.name)

    def broadcast_as(self) -> str:
        """The event name in the message."""
        return self.__event_definition__.name

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
        *("dispatch", "dispatch_if", "dispatch_unless"),
        *("dispatch_sync", "dispatch_if_sync", "dispatch_unless_sync"),
        *("event_meta", "to_others", "with_meta"),
        *(name for name in (*vars(ShouldBroadcast), *vars(ShouldQueue)) if name[0] != "_"),
    }
)


_KEYWORDS: Final = (
    *("channel", "channels", "name", "volatile", "version", "abstract", "after_commit", "rescue"),
)
_STRUCT_KEYWORDS: Final = (
    *("tag_field", "tag", "rename", "omit_defaults", "forbid_unknown_fields", "frozen", "eq"),
    *("order", "kw_only", "repr_omit_defaults", "array_like", "gc", "weakref", "dict"),
    "cache_hash",
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
        after_commit: bool | None = None,
        rescue: bool | None = None,
        **struct_options: Any,
    ) -> "_EventClass":
        queued = {key: struct_options.pop(key) for key in POLICY_KEYWORDS if key in struct_options}
        try:
            event_class = super().__new__(mcls, cls_name, bases, namespace, **struct_options)
        except TypeError as exc:
            unknown = [key for key in struct_options if key not in _STRUCT_KEYWORDS]
            if not unknown:
                raise
            where = f"{namespace.get('__module__')}.{namespace.get('__qualname__', cls_name)}"
            raise EventDefinitionError(f"{where}: {_unknown_keyword(unknown[0])}") from exc
        if bases != (msgspec.Struct,):  # it is not Event itself
            cls = cast("type[Event]", event_class)
            given = EventKeywords(
                channel, channels, name, volatile, version, abstract, after_commit, rescue, queued
            )
            cls.__event_definition__ = _define(cls, given)
            _check_fields(cls)
            _register(cls)
        return event_class

    def __init__(cls, *args: Any, **_keywords: Any) -> None:  # noqa: N805 - a class's class
        type.__init__(cls, *args)

    def complete(cls) -> None:  # noqa: N805
        """Prepare fields that have Pydantic models, once all annotations can be resolved.

        Raises NameError for an annotation that its module defines later, and TypeError for models
        that cannot be sent.
        """
        for base in cls.__mro__:
            if isinstance(base, _EventClass):
                base.replace_unions()
        for name, default in zip(
            reversed(cls.__struct_fields__), reversed(cls.__struct_defaults__), strict=False
        ):
            if is_model(type(default)):
                raise TypeError(
                    f"the default of {name!r} is a Pydantic model, which all events would share: "
                    "give msgspec.field(default_factory=...)"
                )
        definition = event_definition(cast("type[Event]", cls))
        cls.__event_definition__ = definition._replace(has_models=check_models(cls))

    def replace_unions(cls) -> None:  # noqa: N805
        """Annotate fields with what msgspec can decode instead of unions of Pydantic models."""
        own = inspect.get_annotations(cls)
        try:
            hints = get_type_hints(cls, include_extras=True) if own else {}
        except NameError:  # msgspec reports it
            return
        replaced = {
            name: decoded_as
            for name in own
            if (decoded_as := decodable(hints[name])) is not hints[name]
        }
        if replaced:
            cls.__annotations__ = own | replaced


# As for msgspec.Struct itself, except that subclasses are frozen.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True, dict=True, metaclass=_EventClass):
    """The base of every event type: an immutable struct with fields of any type msgspec encodes.

    Class keywords: `channel` (a channel, or a template such as `orders.{order_id}` that is filled
    from fields of type str, int, UUID or an enum of these: see `encode_token`), `channels`
    (patterns of those that an overridden `broadcast_on` may name), `name` (the event name; the
    class's own by default), `volatile` (never stored or replayed), `version` (of its schema,
    starting at 1), `abstract` (a base class that is neither registered nor dispatched),
    `after_commit` (a dispatch within a transaction is held until its commit), `rescue` (an error of
    the broker is logged and counted, and not raised), and msgspec's own, such as `kw_only` or
    `rename`. `channel`, `channels`, `volatile`, `after_commit` and `rescue` are inherited.
    ShouldQueue adds its own keywords.

    The class statement raises EventDefinitionError for an unknown field in a template, a wildcard
    or bad syntax, a broadcast event without a channel, a name that another event has, an unknown
    keyword, or a field that cannot be decoded.
    """

    __event_definition__: ClassVar[EventDefinition] = EventDefinition(
        "Event", channel=None, volatile=False, version=1, abstract=True, broadcasts=False
    )

    # It is in the instance's __dict__ (`dict=True`) and not a field, so that a type may have fields
    # called `id` or `timestamp`.
    event_meta = _MetaOnce()

    # Copies and pickles are the same event. msgspec's own ones have the fields only.

    def __copy__(self) -> Self:
        return with_event_meta(self, self.event_meta)

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments = cast("tuple[Any, Any]", msgspec.Struct.__reduce__(self))
        return make, arguments, {"event_meta": self.event_meta}

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

    def dispatch_sync(self) -> tuple[Receipt, ...]:
        """Dispatch from code without an event loop, and wait until that is done.

        Goes through the last opened bus of `eventbus.sync`, or else through the default bus of the
        process, which is opened at first use from the environment. Raises as `EventBus.dispatch`
        does, and BusStateError in a thread whose event loop is running: `await dispatch()` there.
        """
        return run_blocking(self.dispatch)

    def dispatch_if_sync(self, condition: bool) -> tuple[Receipt, ...]:
        """`dispatch_sync` if `condition` is true; otherwise return no receipts."""
        return self.dispatch_sync() if condition else ()

    def dispatch_unless_sync(self, condition: bool) -> tuple[Receipt, ...]:
        """`dispatch_sync` unless `condition` is true."""
        return self.dispatch_if_sync(not condition)

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

    def to_others(self, connection_id: str | CurrentType | None = CURRENT) -> Self:
        """The same event, which that client connection does not receive; None excludes nobody.

        Without an argument it is the connection that the current web request names, if an
        integration handles it (docs/integrations.md). Raises InvalidName for a bad id.
        """
        if isinstance(connection_id, CurrentType):
            connection_id = current_connection()
        if connection_id is not None:
            check_id("a connection's id", connection_id)
        return with_event_meta(
            self, msgspec.structs.replace(self.event_meta, except_connection=connection_id)
        )


def with_event_meta(event: E, meta: EventMeta) -> E:
    """A copy of the event with that id, time and metadata, such as those of a received message."""
    other: E = cast(Any, msgspec.Struct).__copy__(event)
    other.__dict__["event_meta"] = meta
    return other


@functools.lru_cache(maxsize=1024)
def event_decoder(cls: type[Event]) -> Callable[[bytes | msgspec.Raw], Any]:
    """Decodes an event type's JSON; one function per type.

    Raises EventDefinitionError for fields that cannot be decoded.
    """
    try:
        if may_have_models():
            cls.complete()
        return json_decoder(cls)
    except Exception as exc:
        raise _undecodable(cls, exc) from exc


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


def _check_fields(cls: type[Event]) -> None:
    """Raises EventDefinitionError for fields that cannot be decoded.

    A field may name a type that its module defines later: then the first use of the class checks
    it. Events that never leave their process may hold anything.
    """
    definition = event_definition(cls)
    leaves = definition.broadcasts or definition.queue or definition.from_clients
    if definition.abstract or not leaves:
        return
    try:
        if may_have_models():
            cls.complete()
        msgspec.json.Decoder(cls)
    except (NameError, AttributeError) as exc:
        if not _is_being_imported(cls.__module__):
            raise _undecodable(cls, exc) from exc
    except Exception as exc:
        raise _undecodable(cls, exc) from exc


def _undecodable(cls: type[Event], exc: Exception) -> EventDefinitionError:
    hint = ""
    if may_have_models() and "custom type" in str(exc):
        hint = " (of Pydantic models inside a struct: declare RootModel[A | B])"
    return EventDefinitionError(
        f"{qualified_name(cls)}: the types of its fields cannot be decoded: {exc}{hint}"
    )


def _is_being_imported(name: str) -> bool:
    """Whether a module's own code is running, so that it may still define more names."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == name:
            return True
        frame = frame.f_back
    return False


def _unknown_keyword(keyword: str) -> str:
    known = (*_KEYWORDS, *POLICY_KEYWORDS, *_STRUCT_KEYWORDS)
    close = difflib.get_close_matches(keyword, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return f"{keyword!r} is not a keyword of an event class: {hint}"


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
