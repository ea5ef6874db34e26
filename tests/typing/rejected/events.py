"""What must not type-check: each marked line is an error of the code named there, and no other."""

from eventbus import Event, EventBus, Settings, ShouldBroadcast
from schemas import AlertLevel, SystemAlert


class Shipped(Event, ShouldBroadcast, channel="orders.{order_id}"):
    order_id: int
    carrier: str = "DHL"


class Odd(Event, ShouldBroadcast):
    def broadcast_on(self) -> int:  # expect: override
        return 5


Shipped("42")  # expect: arg-type
Shipped(order_id="42")  # expect: arg-type
Shipped(42, carrier=None)  # expect: arg-type
Shipped()  # expect: call-arg
Shipped(42, "UPS", 5)  # expect: call-arg
Shipped(42, speed=5)  # expect: call-arg
Shipped(42).order_id = 43  # expect: misc
assert Shipped(42).speed  # expect: attr-defined
SystemAlert(level="critical", message="down")  # expect: arg-type
SystemAlert(AlertLevel.INFO, "down")  # expect: call-arg
Settings(history_messages="many")  # expect: arg-type


async def main(bus: EventBus) -> None:
    await bus.dispatch("shipped")  # expect: arg-type
    await bus.dispatch(Shipped)  # expect: arg-type
    await bus.publish("general", 5, {})  # expect: arg-type
    await bus.publish("general", "hello")  # expect: call-arg
    await bus.publish("general", "hello", {}, volatil=True)  # expect: call-arg
    await bus.using("log").publish("general", "hello", {}, volatil=True)  # expect: call-arg
    await bus.using("log").publish("general", "hello", {}, volatile=1)  # expect: arg-type
    assert (await Shipped(1).dispatch())[0].ofset  # expect: attr-defined
