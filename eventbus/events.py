"""Events: typed structs that know where they are broadcast, and the registry of their types.

    class OrderShipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
        order_id: int
        carrier: str

    await OrderShipped(order_id=42, carrier="DHL").dispatch()

An object is one event: dispatched twice, it has the same id, and a stream stores it once.
"""

import datetime
import enum
import functools
import sys
import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, cast, dataclass_transform

import msgspec

from eventbus.channels import MAX_CHANNEL_BYTES, Pattern, validate_channel
from eventbus.current import current_bus
from eventbus.errors import (
    EventDefinitionError,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    InvalidPattern,
)
from eventbus.message import Receipt, new_id, utc_now, validate_event_name

__all__ = [
    "Event",
    "EventDefinition",
    "EventMeta",
    "ShouldBroadcast",
    "event_definition",
    "event_type",
    "event_types",
    "qualified_name",
]


class EventMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What every event has beside its fields: a UUIDv7, and the time (UTC) it was first asked."""

    id: str
    timestamp: datetime.datetime


class EventDefinition(NamedTuple):
    """What a class statement said of its event."""

    name: str
    channel: Pattern | None
    """The channel or its template; None where `broadcast_on` decides, or nothing is broadcast."""
    volatile: bool
    version: int
    abstract: bool
    broadcasts: bool


class ShouldBroadcast:
    """Mixed into an Event, it makes `dispatch` publish it.

    What is published, where and whether can be overridden; all four are asked at each dispatch.
    """

    __slots__ = ()

    def broadcast_on(self) -> str | Sequence[str]:
        """The channel, or several: one message each, all of the same id."""
        return _fill(cast(Event, self))

    def broadcast_as(self) -> str:
        """The event name that listeners see."""
        return event_definition(type(cast(Event, self))).name

    def broadcast_with(self) -> Any:
        """The data: anything that msgspec encodes as JSON; the event's fields by default."""
        return self

    def broadcast_when(self) -> bool:
        """Whether to broadcast at all."""
        return True


_types: dict[str, "type[Event]"] = {}
_RESERVED_FIELDS: Final = frozenset(
    {"dispatch", "event_meta", *(name for name in vars(ShouldBroadcast) if name[0] != "_")}
)


class _EventClass(msgspec.StructMeta):
    """Takes our class keywords out of a class statement, and leaves msgspec its own."""

    def __new__(  # noqa: PYI034 - Self is not for metaclasses (PEP 673)
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        channel: str | None = None,
        name: str | None = None,
        volatile: bool | None = None,
        version: int = 1,
        abstract: bool = False,
        **struct_options: Any,
    ) -> "_EventClass":
        made = super().__new__(mcls, cls_name, bases, namespace, **struct_options)
        if bases != (msgspec.Struct,):  # it is not Event itself
            cls = cast("type[Event]", made)
            cls.__event_definition__ = _define(
                cls,
                channel=channel,
                name=name,
                volatile=volatile,
                version=version,
                abstract=abstract,
            )
            if not abstract:
                _register(cls)
        return made

    def __init__(cls, *args: Any, **_keywords: Any) -> None:  # noqa: N805 - a class's class
        type.__init__(cls, *args)


# msgspec.Struct says the same of itself, but that its subclasses can be changed.
@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True, dict=True, metaclass=_EventClass):
    """The base of every event type: an immutable struct with fields of any type msgspec encodes.

    Class keywords: `channel` (a channel, or a template such as `orders.{order_id}` that is filled
    from fields of type str, int, UUID or an enum of these), `name` (the event name; the class's own
    by default), `volatile` (never stored or replayed), `version` (of its schema, from 1),
    `abstract` (a base for others: neither registered nor dispatched), and msgspec's own, such as
    `kw_only` or `rename`. `channel` and `volatile` are inherited.

    Raises EventDefinitionError where the class statement stands: for an unknown field in a
    template, a wildcard or bad grammar, a broadcast event without a channel, a name that is taken.
    """

    __event_definition__: ClassVar[EventDefinition] = EventDefinition(
        "Event", channel=None, volatile=False, version=1, abstract=True, broadcasts=False
    )

    # A struct's instances have a __dict__ (`dict=True`) that holds this and is no field, so that a
    # type may have fields of its own called `id` or `timestamp`. Copies are events of their own.
    @functools.cached_property
    def event_meta(self) -> EventMeta:
        """The event's id and timestamp, made when first asked for and the same ever after."""
        return EventMeta(id=new_id(), timestamp=utc_now())

    async def dispatch(self) -> tuple[Receipt, ...]:
        """Dispatch through the current bus: see `EventBus.dispatch`.

        Raises BusStateError where no bus is open in the running event loop.
        """
        return await current_bus().dispatch(self)


def event_definition(cls: type[Event]) -> EventDefinition:
    """What the class statement of an event type said."""
    return cls.__event_definition__


def event_type(name: str) -> type[Event] | None:
    """The event type of that name, or None."""
    return _types.get(name)


def event_types() -> Mapping[str, type[Event]]:
    """All event types that have been defined, by name, as of now."""
    return MappingProxyType(dict(_types))


def qualified_name(cls: type) -> str:
    """A class as errors speak of it: its module and its name there."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _define(
    cls: type[Event],
    *,
    channel: str | None,
    name: str | None,
    volatile: bool | None,
    version: int,
    abstract: bool,
) -> EventDefinition:
    where = qualified_name(cls)
    inherited = event_definition(cls)
    fields = cls.__struct_fields__
    if taken := sorted(_RESERVED_FIELDS.intersection(fields)):
        raise EventDefinitionError(
            f"{where}: a field cannot be called {taken[0]!r}: every event has that attribute"
        )
    if type(version) is not int or version < 1:
        raise EventDefinitionError(
            f"{where}: version={version!r}: an integer of at least 1 is allowed"
        )
    template = inherited.channel if channel is None else _parse_template(cls, channel)
    if not abstract and template is not None:
        for field in template.names:
            if field not in fields:
                raise EventDefinitionError(
                    f"{where}: channel={template.text!r} names {{{field}}}, which is no "
                    f"field: the fields are {', '.join(fields) or 'none'}"
                )
    if not abstract and issubclass(cls, ShouldBroadcast):
        if template is None and cls.broadcast_on is ShouldBroadcast.broadcast_on:
            raise EventDefinitionError(
                f"{where} is broadcast and has no channel: give the class "
                "`channel=...`, override broadcast_on(), or say `abstract=True`"
            )
    elif not abstract and channel is not None:
        raise EventDefinitionError(
            f"{where} has a channel and is not broadcast: mix in ShouldBroadcast"
        )
    return EventDefinition(
        name=_check_name(cls, cls.__name__ if name is None else name),
        channel=template,
        volatile=inherited.volatile if volatile is None else volatile,
        version=version,
        abstract=abstract,
        broadcasts=issubclass(cls, ShouldBroadcast),
    )


def _check_name(cls: type, name: str) -> str:
    try:
        return validate_event_name(name)
    except InvalidEventName as exc:
        raise EventDefinitionError(f"{qualified_name(cls)}: {exc}") from None


def _parse_template(cls: type, channel: str) -> Pattern:
    try:
        template = Pattern(channel)
        if template.is_exact:
            validate_channel(channel)
    except (InvalidPattern, InvalidChannel) as exc:
        raise EventDefinitionError(f"{qualified_name(cls)}: channel={channel!r}: {exc}") from None
    if not {"*", ">"}.isdisjoint(channel.split(".")):
        raise EventDefinitionError(
            f"{qualified_name(cls)}: channel={channel!r} has a wildcard, and an event is "
            "broadcast on one channel: allowed are literal tokens and {field}"
        )
    return template


def _register(cls: type[Event]) -> None:
    name = cls.__event_definition__.name
    other = _types.get(name)
    if other is not None and _origin(other) != _origin(cls):
        raise EventDefinitionError(
            f"two event types are called {name!r}: {qualified_name(other)} and "
            f"{qualified_name(cls)}; "
            'give one of them another name with `name="..."`'
        )
    _types[name] = cls


def _origin(cls: type) -> tuple[str, str]:
    """Where a class is defined: equal for a module run again, reloaded, or run as __main__."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


def _fill(event: Event) -> str:
    """The channel of an event by its template."""
    name, template = event.__event_definition__[:2]
    assert template is not None  # otherwise broadcast_on is overridden
    values = {field: _token(event, field, name, template) for field in template.names}
    try:
        return template.fill(values)
    except InvalidChannel:
        field = max(values, key=lambda field: len(values[field]))
        raise EventFieldError(
            f"event {name!r}: field {field!r} makes channel {template.text!r} too long: "
            f"{values[field][:80]!r} has {len(values[field])} characters",
            event=name,
            field=field,
        ) from None


def _token(event: Event, field: str, name: str, template: Pattern) -> str:
    value = getattr(event, field)
    plain = value.value if isinstance(value, enum.Enum) else value
    if isinstance(plain, str | int | uuid.UUID) and not isinstance(plain, bool):
        text = str(plain)
        if _is_token(text):
            return text
    raise EventFieldError(
        f"event {name!r}: field {field!r} cannot stand in channel {template.text!r}: "
        f"{repr(value)[:80]} is not one token; allowed are str, int, UUID and enums of these, of "
        f"1 to {MAX_CHANNEL_BYTES} letters, digits and _ = @ , ; -",
        event=name,
        field=field,
    )


def _is_token(text: str) -> bool:
    try:
        return "." not in validate_channel(text)
    except InvalidChannel:
        return False
