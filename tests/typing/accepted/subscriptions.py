"""Listeners and subscriptions as a service writes them."""

from eventbus import Event, EventBus, EventContext, Settings, ShouldBroadcast, listen


class Shipped(Event, ShouldBroadcast, name="typing.shipped", channel="orders.{order_id}"):
    order_id: int


class Paid(Event, name="typing.paid"):
    order_id: int


@listen(Shipped)
async def on_shipped(event: Shipped) -> int:
    return event.order_id


@listen(Shipped, Paid)
def on_either(event: Shipped | Paid) -> None:
    assert event.order_id


@listen("order.*", Paid, priority=3)
def on_name(event: Event) -> None:
    assert event.event_meta.id


@listen(Event)
def on_any(event: Event) -> None:
    assert event.event_meta.id


bus = EventBus(Settings(driver="memory"))


@bus.subscribe(Shipped, group="billing", durable=True)
async def bill(event: Shipped, context: EventContext) -> str:
    return f"{event.order_id} {context.attempt}"


@bus.subscribe(Shipped)
def show(event: Shipped) -> None:
    assert event.event_meta.id


async def main() -> None:
    number: int = await on_shipped(Shipped(1))
    async with bus:
        subscription = await bus.subscribe(Shipped, on_shipped, concurrency=2, backoff=[1.0])
        await subscription.aclose()
        event: Shipped = Shipped(number).with_meta(tags=("a",)).to_others("c")
        await event.dispatch_if(number > 0)
        await bus.dispatch(event, raise_errors=True)
