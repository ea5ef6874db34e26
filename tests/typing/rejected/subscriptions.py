"""What the type checker refuses of listeners and subscriptions."""

from eventbus import Event, EventBus, EventContext, Settings, ShouldBroadcast, listen


class Shipped(Event, ShouldBroadcast, name="typing.rejected.shipped", channel="orders"):
    order_id: int


class Paid(Event, name="typing.rejected.paid"):
    order_id: int


bus = EventBus(Settings(driver="memory"))


@listen(Shipped)  # expect: arg-type
def other_type(event: Paid) -> None: ...


@listen(Shipped, Paid)  # expect: arg-type
def one_of_two(event: Paid) -> None: ...


@bus.subscribe(Shipped)  # expect: arg-type
async def subscribed_other(event: Paid) -> None: ...


@bus.subscribe(Shipped)  # expect: arg-type
async def wrong_context(event: Shipped, context: int) -> None: ...


async def on_shipped(event: Shipped, context: EventContext) -> None: ...


bus.subscribe(Shipped, on_shipped, concurrency="many")  # expect: call-overload
bus.subscribe(Paid, on_shipped)  # expect: arg-type
Shipped(1).with_meta(tags=5)  # expect: arg-type
