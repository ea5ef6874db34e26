"""A service's events and their use: all of it must pass `mypy --strict`."""

import datetime
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Unpack, assert_type

import msgspec

from eventbus import Event, EventBus, Receipt, Settings, ShouldBroadcast, event_type
from eventbus.events import PublishOptions
from schemas import AlertLevel, Notification, SystemAlert


class OrderEvent(Event, ShouldBroadcast, channel="orders.{order_id}", abstract=True):
    order_id: int


class Shipped(OrderEvent, name="order.shipped", version=2):
    carrier: str = "DHL"
    weights: Annotated[list[float], msgspec.Meta(max_length=10)] = msgspec.field(
        default_factory=list
    )


class Reading(Event, ShouldBroadcast, volatile=True, kw_only=True, rename="camel"):
    id: uuid.UUID
    timestamp: datetime.datetime
    rooms: list[str]

    def broadcast_on(self) -> Sequence[str]:
        return [f"rooms.{room}" for room in self.rooms]

    def broadcast_as(self) -> str:
        return "reading"

    def broadcast_with(self) -> dict[str, Any]:
        return {"id": self.id}

    def broadcast_when(self) -> bool:
        return bool(self.rooms)


class Local(Event):
    thing: object


async def pass_on(bus: EventBus, **options: Unpack[PublishOptions]) -> Receipt:
    return await bus.publish("general", "hello", 1, **options)


async def main() -> None:
    async with EventBus.from_env({"BROADCAST_DRIVER": "memory"}) as bus:
        assert_type(bus, EventBus)
        event = Shipped(42, "UPS")
        assert_type(event.order_id, int)
        assert_type(await event.dispatch(), tuple[Receipt, ...])
        await Shipped(order_id=42).dispatch()
        await bus.dispatch(event, Local(object()))
        now = datetime.datetime.now(datetime.UTC)
        await Reading(id=uuid.uuid4(), timestamp=now, rooms=["a"]).dispatch()
        receipt = await bus.publish("general", "hello", {"a": 1}, volatile=True)
        assert_type(receipt.offset, int | None)
        other = bus.using("null")
        await other.publish("general", "hello", 1, id="7", headers={"a": "b"})
        await pass_on(bus, id=None, volatile=False)
        await Notification(user_id="7", title="Hello", message="you").dispatch()
        await SystemAlert(level=AlertLevel.INFO, message="fine").dispatch()
    assert_type(event.event_meta.id, str)
    assert_type(event_type("order.shipped"), type[Event] | None)
    bus = EventBus(Settings(driver="memory"))
