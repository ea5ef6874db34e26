"""Events: typed structs, their registry, listeners and transactions."""

from eventbus.events.current import Dispatcher, PublishOptions, current_bus
from eventbus.events.data_types import data_type
from eventbus.events.decoding import EventContext, EventReader, read_delivery
from eventbus.events.definition import EventDefinition
from eventbus.events.encoding import (
    Outgoing,
    check_dispatchable,
    encode_event,
    encode_messages,
    event_decoder,
)
from eventbus.events.event import (
    ClientEvent,
    Event,
    EventMeta,
    ShouldBroadcast,
    event_definition,
    event_type,
    event_types,
    qualified_name,
    with_event_meta,
)
from eventbus.events.listeners import Listeners, default_listeners, listen
from eventbus.events.policy import (
    DEFAULT_QUEUE,
    QueuePolicy,
    ShouldQueue,
    pause_after,
    policy_of,
    validate_queue,
)
from eventbus.events.transaction import Transaction

__all__ = [
    "DEFAULT_QUEUE",
    "ClientEvent",
    "Dispatcher",
    "Event",
    "EventContext",
    "EventDefinition",
    "EventMeta",
    "EventReader",
    "Listeners",
    "Outgoing",
    "PublishOptions",
    "QueuePolicy",
    "ShouldBroadcast",
    "ShouldQueue",
    "Transaction",
    "check_dispatchable",
    "current_bus",
    "data_type",
    "default_listeners",
    "encode_event",
    "encode_messages",
    "event_decoder",
    "event_definition",
    "event_type",
    "event_types",
    "listen",
    "pause_after",
    "policy_of",
    "qualified_name",
    "read_delivery",
    "validate_queue",
    "with_event_meta",
]
