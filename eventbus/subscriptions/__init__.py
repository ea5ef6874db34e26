"""Typed subscriptions: events of other services, live or durable.

    @bus.subscribe(OrderShipped, group="billing", durable=True)
    async def bill(event: OrderShipped, context: EventContext) -> None: ...

Live, one gets what is published while one listens; with a `group`, one member of the group gets
each message. Durable, the broker keeps the group's place in the stream, and hands each message out
until it is acknowledged, which is when the handler has returned.
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
