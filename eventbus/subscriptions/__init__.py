"""Typed subscriptions: events of other services, live or durable.

    @bus.subscribe(OrderShipped, group="billing", durable=True)
    async def bill(event: OrderShipped, context: EventContext) -> None: ...

A live subscription receives what is published while it is connected; with a `group`, one member of
the group receives each message. For a durable one, the broker keeps the group's position in the
stream, and redelivers each message until the handler has returned.
"""

from eventbus.subscriptions.options import SubscribeOptions, consumer_name
from eventbus.subscriptions.registry import SubscribeDecorator, Subscriptions
from eventbus.subscriptions.subscription import EventSubscription, Handler

__all__ = [
    "EventSubscription",
    "Handler",
    "SubscribeDecorator",
    "SubscribeOptions",
    "Subscriptions",
    "consumer_name",
]
