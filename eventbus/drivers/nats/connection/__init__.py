"""The connection to NATS: clients, requests with their replies, and subscriptions."""

from eventbus.drivers.nats.connection.connection import (
    ATTEMPT_S,
    MIN_SERVER,
    PENDING_BYTES,
    NatsConnection,
)
from eventbus.drivers.nats.connection.cutoff import CutOffWatch
from eventbus.drivers.nats.connection.replies import (
    Replies,
    Reply,
)
from eventbus.drivers.nats.connection.subscriptions import (
    ServerSubscription,
    ServerSubscriptions,
)
from eventbus.drivers.nats.connection.visit import Visit

__all__ = [
    "ATTEMPT_S",
    "MIN_SERVER",
    "PENDING_BYTES",
    "CutOffWatch",
    "NatsConnection",
    "Replies",
    "Reply",
    "ServerSubscription",
    "ServerSubscriptions",
    "Visit",
]
