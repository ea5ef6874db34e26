"""Typed, real-time event broadcasting for Python, with NATS at its centre.

What a service imports. Drivers, the embedded server and the testing support have modules of their
own, which are imported by those who need them.
"""

from eventbus.broadcasting import (
    AlertLevel,
    Broadcast,
    broadcast,
    broadcast_to_channel,
    broadcast_to_organization,
    broadcast_to_team,
    broadcast_to_user,
)
from eventbus.bus import BusState, EventBus
from eventbus.channels import ChannelKind, Pattern, Subjects, validate_channel
from eventbus.config import Settings
from eventbus.decoding import EventContext
from eventbus.definition import EventDefinition
from eventbus.drivers import create_driver
from eventbus.errors import (
    BusStateError,
    CallbackFailed,
    ClientClosed,
    ClientDisconnected,
    ClientError,
    ClientRefused,
    ConfigError,
    ConnectionFailed,
    DispatchFailed,
    DriverError,
    EncodingError,
    EventBusError,
    EventDefinitionError,
    EventFieldError,
    InvalidChannel,
    InvalidEventName,
    InvalidName,
    InvalidPattern,
    InvalidPayload,
    InvalidWebhook,
    JobRejected,
    JobRetry,
    JobTimeout,
    NoListener,
    NotSupported,
    PublishDenied,
    PublishFailed,
    ServerError,
    StreamMismatch,
    UnknownEvent,
    WorkerLost,
)
from eventbus.events import (
    ClientEvent,
    Event,
    EventMeta,
    ShouldBroadcast,
    event_definition,
    event_type,
    event_types,
)
from eventbus.jobs import FailedJob
from eventbus.listeners import Listeners, listen
from eventbus.message import Message, Receipt, validate_event_name
from eventbus.queue import QueuePolicy, ShouldQueue
from eventbus.subscriptions import EventSubscription
from eventbus.worker import Worker

__all__ = [
    "AlertLevel",
    "Broadcast",
    "BusState",
    "BusStateError",
    "CallbackFailed",
    "ChannelKind",
    "ClientClosed",
    "ClientDisconnected",
    "ClientError",
    "ClientEvent",
    "ClientRefused",
    "ConfigError",
    "ConnectionFailed",
    "DispatchFailed",
    "DriverError",
    "EncodingError",
    "Event",
    "EventBus",
    "EventBusError",
    "EventContext",
    "EventDefinition",
    "EventDefinitionError",
    "EventFieldError",
    "EventMeta",
    "EventSubscription",
    "FailedJob",
    "InvalidChannel",
    "InvalidEventName",
    "InvalidName",
    "InvalidPattern",
    "InvalidPayload",
    "InvalidWebhook",
    "JobRejected",
    "JobRetry",
    "JobTimeout",
    "Listeners",
    "Message",
    "NoListener",
    "NotSupported",
    "Pattern",
    "PublishDenied",
    "PublishFailed",
    "QueuePolicy",
    "Receipt",
    "ServerError",
    "Settings",
    "ShouldBroadcast",
    "ShouldQueue",
    "StreamMismatch",
    "Subjects",
    "UnknownEvent",
    "Worker",
    "WorkerLost",
    "broadcast",
    "broadcast_to_channel",
    "broadcast_to_organization",
    "broadcast_to_team",
    "broadcast_to_user",
    "create_driver",
    "event_definition",
    "event_type",
    "event_types",
    "listen",
    "validate_channel",
    "validate_event_name",
]
