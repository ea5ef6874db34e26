"""Event definitions: what a class statement declares, checked, and channel templates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eventbus.channels import Pattern, encode_token, validate_channel
from eventbus.errors import (
    EventDefinitionError,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    InvalidPattern,
)
from eventbus.events.policy import QueuePolicy, define_policy
from eventbus.messages import CLIENT_EVENT_PREFIX, validate_event_name

__all__ = [
    "EventDefinition",
    "EventKeywords",
    "Traits",
    "define",
    "fill_template",
    "qualified_name",
]


class EventDefinition(NamedTuple):
    """What a class statement declares about its event."""

    name: str
    channel: Pattern | None
    """The channel or its template; None if `broadcast_on` decides, or nothing is broadcast."""
    volatile: bool
    version: int
    abstract: bool
    broadcasts: bool
    queue: QueuePolicy | None = None
    """How its events are queued; None if they are not ShouldQueue."""
    channels: tuple[Pattern, ...] = ()
    """The channels that an overridden `broadcast_on` may name, if they are declared."""
    from_clients: bool = False
    """Whether it is a ClientEvent, which clients send and services only receive."""
    after_commit: bool = False
    """Whether a dispatch within a transaction is held until its commit."""
    rescue: bool = False
    """Whether an error of the broker is logged and counted, and not raised by the dispatch."""
    has_models: bool = False
    """Whether fields have Pydantic models; known once `event_decoder` was called."""

    @property
    def wire_name(self) -> str:
        """The name in the envelope; that of a client event has the edge's prefix."""
        return f"{CLIENT_EVENT_PREFIX}{self.name}" if self.from_clients else self.name


class EventKeywords(NamedTuple):
    """Our keywords of a class statement, unchecked."""

    channel: str | None = None
    channels: Sequence[str] | None = None
    name: str | None = None
    volatile: bool | None = None
    version: int = 1
    abstract: bool = False
    after_commit: bool | None = None
    rescue: bool | None = None
    queue: Mapping[str, Any] = {}


class Traits(NamedTuple):
    """The mix-ins of an event class."""

    broadcasts: bool
    chooses_channels: bool
    """Whether `broadcast_on` is overridden."""
    queued: bool
    from_clients: bool


def define(
    cls: type,
    fields: Sequence[str],
    given: EventKeywords,
    traits: Traits,
    inherited: EventDefinition,
) -> EventDefinition:
    """The definition of an event class. Raises EventDefinitionError."""
    where = qualified_name(cls)
    if type(given.version) is not int or given.version < 1:
        raise EventDefinitionError(
            f"{where}: version={given.version!r}: an integer of at least 1 is allowed"
        )
    if traits.from_clients and (traits.broadcasts or traits.queued):
        raise EventDefinitionError(
            f"{where} is a ClientEvent: clients send it, so it is neither ShouldBroadcast nor "
            "ShouldQueue"
        )
    after_commit = _flag(where, "after_commit", given.after_commit, inherited.after_commit, traits)
    rescue = _flag(where, "rescue", given.rescue, inherited.rescue, traits)
    template, channels = inherited.channel, inherited.channels
    if given.channel is not None:
        template = _template(where, given.channel, filled=not traits.from_clients)
    if given.channels is not None:
        channels = _declared(where, given.channels, traits)
    if not given.abstract:
        _check_channels(where, fields, template, given, traits)
    return EventDefinition(
        name=_name(where, cls.__name__ if given.name is None else given.name, traits),
        channel=template,
        volatile=traits.from_clients
        or (inherited.volatile if given.volatile is None else given.volatile),
        version=given.version,
        abstract=given.abstract,
        broadcasts=traits.broadcasts,
        queue=define_policy(
            where,
            queued=traits.queued,
            inherited=inherited.queue,
            given=given.queue,
            after_commit=after_commit,
        ),
        channels=channels,
        from_clients=traits.from_clients,
        after_commit=after_commit,
        rescue=rescue,
    )


def qualified_name(cls: type) -> str:
    """The name of a class in errors: its module and its name there."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _flag(where: str, keyword: str, given: bool | None, inherited: bool, traits: Traits) -> bool:
    """The value of a keyword of dispatched events. Raises EventDefinitionError."""
    if given is None:
        return inherited
    if not isinstance(given, bool):
        raise EventDefinitionError(
            f"{where}: {keyword}: {str(given)[:80]!r} is neither True nor False"
        )
    if traits.from_clients:
        raise EventDefinitionError(
            f"{where} is a ClientEvent: clients send it, so {keyword}={given} has no meaning"
        )
    return given


def _check_channels(
    where: str,
    fields: Sequence[str],
    template: Pattern | None,
    given: EventKeywords,
    traits: Traits,
) -> None:
    """Check the channels of an event that is not abstract. Raises EventDefinitionError."""
    if traits.from_clients:
        if template is None:
            raise EventDefinitionError(
                f"{where} is a ClientEvent and has no channel: give the class `channel=...`, a "
                "pattern of the channels on which clients send it"
            )
        return
    for field in template.names if template is not None else ():
        if template is not None and field not in fields:
            raise EventDefinitionError(
                f"{where}: channel={template.text!r} names {{{field}}}, which is not a "
                f"field: the fields are {', '.join(fields) or 'none'}"
            )
    if traits.broadcasts:
        if template is None and not traits.chooses_channels:
            raise EventDefinitionError(
                f"{where} is broadcast and has no channel: give the class "
                "`channel=...`, override broadcast_on(), or say `abstract=True`"
            )
    elif given.channel is not None:
        raise EventDefinitionError(
            f"{where} has a channel and is not broadcast: mix in ShouldBroadcast"
        )


def _declared(where: str, channels: Sequence[str], traits: Traits) -> tuple[Pattern, ...]:
    if not traits.chooses_channels:
        raise EventDefinitionError(
            f"{where}: channels={channels!r} says where broadcast_on() may publish, but that is "
            "not overridden: give `channel=...`"
        )
    if isinstance(channels, str):
        raise EventDefinitionError(
            f"{where}: channels={channels!r}: a sequence of patterns is allowed"
        )
    try:
        return tuple(map(Pattern, channels))
    except InvalidPattern as exc:
        raise EventDefinitionError(f"{where}: channels={channels!r}: {exc}") from None


def _name(where: str, name: str, traits: Traits) -> str:
    try:
        validate_event_name(name)
        if traits.from_clients:
            if name.startswith(CLIENT_EVENT_PREFIX):
                raise EventDefinitionError(
                    f"{where}: name={name!r}: leave out the prefix {CLIENT_EVENT_PREFIX}, which "
                    "the edge puts before the name of every client event"
                )
            validate_event_name(CLIENT_EVENT_PREFIX + name)
    except InvalidEventName as exc:
        raise EventDefinitionError(f"{where}: {exc}") from None
    return name


def _template(where: str, channel: str, *, filled: bool) -> Pattern:
    """Parse the channel; one that is `filled` from fields may have no wildcards."""
    try:
        template = Pattern(channel)
        if template.is_exact:
            validate_channel(channel)
    except (InvalidPattern, InvalidChannel) as exc:
        raise EventDefinitionError(f"{where}: channel={channel!r}: {exc}") from None
    if filled and not {"*", ">"}.isdisjoint(channel.split(".")):
        raise EventDefinitionError(
            f"{where}: channel={channel!r} has a wildcard, and an event is "
            "broadcast on one channel: allowed are literal tokens and {field}"
        )
    return template


def fill_template(template: Pattern, fields: Any, event: str) -> str:
    """Fill a channel template with the attributes of `fields`.

    `event` is the event's name, for errors. Raises EventFieldError.
    """
    values = [getattr(fields, field) for field in template.names]
    try:
        return template.fill_in_order(values)
    except InvalidChannel:
        named = dict(zip(template.names, values, strict=True))
        lengths = {field: _length(value, field, event, template) for field, value in named.items()}
        field = max(lengths, key=lengths.__getitem__)
        raise EventFieldError(
            f"event {event!r}: field {field!r} makes channel {template.text!r} too long: "
            f"{str(named[field])[:80]!r} has {lengths[field]} characters when escaped",
            event=event,
            field=field,
        ) from None


def _length(value: object, field: str, event: str, template: Pattern) -> int:
    """The length of the token that a field becomes. Raises EventFieldError."""
    try:
        return len(encode_token(value))
    except InvalidChannel as exc:
        raise EventFieldError(
            f"event {event!r}: field {field!r} cannot be part of channel {template.text!r}: {exc}",
            event=event,
            field=field,
        ) from None
