"""The events that views dispatch."""

from eventbus import Event, ShouldBroadcast


class OrderShipped(
    Event,
    ShouldBroadcast,
    name="order.shipped",
    channel="orders.{order_id}",
    after_commit=True,
):
    """An order has left the warehouse; a rollback drops it."""

    order_id: int
    carrier: str = "DHL"
