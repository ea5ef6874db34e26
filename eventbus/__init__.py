"""Typed, real-time event broadcasting for Python, with NATS at its center.

What services import. Drivers, the embedded server and the testing support are in modules of their
own. Importing this package is quick, since each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from eventbus.channels import (
        ChannelKind,
        Pattern,
        Subjects,
        user_channel,
        validate_channel,
    )
    from eventbus.config import Settings
    from eventbus.drivers import create_driver
    from eventbus.errors import (
        BusStateError,
        CallbackFailed,
        ClientClosed,
        ClientDisconnected,
        ClientError,
        ClientRefused,
        ClusterBusy,
        ClusterError,
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
        NoEdge,
        NoListener,
        NotSupported,
        PublishDenied,
        PublishFailed,
        ServerError,
        StreamMismatch,
        SubscribeDenied,
        UnknownEvent,
        WorkerLost,
    )
    from eventbus.events import (
        ClientEvent,
        Event,
        EventContext,
        EventDefinition,
        EventMeta,
        Listeners,
        QueuePolicy,
        ShouldBroadcast,
        ShouldQueue,
        event_definition,
        event_type,
        event_types,
        listen,
    )
    from eventbus.messages import Message, Receipt, validate_event_name
    from eventbus.queue import FailedJob, Worker
    from eventbus.subscriptions import EventSubscription
    from eventbus.tokens import TokenIssuer, TokenUser, issue_token

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
    "ClusterBusy",
    "ClusterError",
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
    "NoEdge",
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
    "SubscribeDenied",
    "TokenIssuer",
    "TokenUser",
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
    "issue_token",
    "listen",
    "user_channel",
    "validate_channel",
    "validate_event_name",
]

if not TYPE_CHECKING:  # type checkers must not take every name for one that exists
    _MODULES = (  # the cheap ones first
        "errors",
        "channels",
        "config",
        "messages",
        "drivers",
        "events",
        "queue",
        "subscriptions",
        "bus",
        "broadcasting",
        "tokens",
    )

    def __getattr__(name):  # noqa: ANN001, ANN202 - not for type checkers
        if name in __all__:
            for module in (importlib.import_module(f"eventbus.{each}") for each in _MODULES):
                if name in module.__all__:
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__():  # noqa: ANN202 - as above
        return sorted({*globals(), *__all__})
