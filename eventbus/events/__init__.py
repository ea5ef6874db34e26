"""Events: typed structs, their registry, listeners and transactions."""

from eventbus.events import current
from eventbus.events.current import Dispatcher, PublishOptions, current_bus
from eventbus.events.data_types import data_has_models, data_type
from eventbus.events.decoding import EventContext, EventReader, read_delivery
from eventbus.events.definition import EventDefinition
from eventbus.events.encoding import (
    Outgoing,
    check_dispatchable,
    encode_event,
    encode_messages,
)
from eventbus.events.event import (
    ClientEvent,
    Event,
    EventMeta,
    ShouldBroadcast,
    event_decoder,
    event_definition,
    event_type,
    event_types,
    qualified_name,
    with_event_meta,
)
from eventbus.events.history import (
    ChannelPosition,
    HistoryPage,
    StoredMessage,
    read_history,
    read_position,
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
from eventbus.events.requests import add_to_request, one_request, parts_of_request
from eventbus.events.rescue import Rescues, can_rescue, rescue_counter
from eventbus.events.transaction import (
    Held,
    HeldEvents,
    Holder,
    Prepared,
    Transaction,
    carried,
    check_room,
    hold,
    holders_around,
    provide_holders,
    waits_for_commit,
)

__all__ = [
    "DEFAULT_QUEUE",
    "ChannelPosition",
    "ClientEvent",
    "Dispatcher",
    "Event",
    "EventContext",
    "EventDefinition",
    "EventMeta",
    "EventReader",
    "Held",
    "HeldEvents",
    "HistoryPage",
    "Holder",
    "Listeners",
    "Outgoing",
    "Prepared",
    "PublishOptions",
    "QueuePolicy",
    "Rescues",
    "ShouldBroadcast",
    "ShouldQueue",
    "StoredMessage",
    "Transaction",
    "add_to_request",
    "can_rescue",
    "carried",
    "check_dispatchable",
    "check_room",
    "current",
    "current_bus",
    "data_has_models",
    "data_type",
    "default_listeners",
    "encode_event",
    "encode_messages",
    "event_decoder",
    "event_definition",
    "event_type",
    "event_types",
    "hold",
    "holders_around",
    "listen",
    "one_request",
    "parts_of_request",
    "pause_after",
    "policy_of",
    "provide_holders",
    "qualified_name",
    "read_delivery",
    "read_history",
    "read_position",
    "rescue_counter",
    "validate_queue",
    "waits_for_commit",
    "with_event_meta",
]
