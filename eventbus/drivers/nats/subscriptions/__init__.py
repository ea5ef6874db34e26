"""Subscriptions to live subjects: stored messages arrive in order, once, and without gaps."""

from eventbus.drivers.nats.subscriptions.resync import Subscriptions
from eventbus.drivers.nats.subscriptions.subscription import NatsSubscription

__all__ = ["NatsSubscription", "Subscriptions"]
