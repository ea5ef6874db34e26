"""A Litestar service that tells browsers about its orders.

eventbus dev                 # in another terminal, in the same folder
uvicorn app:app --port 8000
"""

from typing import Any

from litestar import Litestar, Request, post

from eventbus import Event, EventBus, ShouldBroadcast
from eventbus.integrations.litestar import EventBusPlugin, token_route


class OrderShipped(Event, ShouldBroadcast, name="order.shipped", channel="orders.{order_id}"):
    """An order has left the warehouse."""

    order_id: int
    carrier: str = "DHL"


def current_user(request: Request[Any, Any, Any]) -> str | None:
    """The user of a request: your own sign-in goes here."""
    return request.cookies.get("session")


@post("/orders/{order_id:int}/ship", status_code=204)
async def ship(order_id: int, bus: EventBus) -> None:
    """Ship an order; the tab that asked for it does not hear about it again."""
    await bus.dispatch(OrderShipped(order_id=order_id).to_others())


@post("/sync/orders/{order_id:int}/ship", status_code=204, sync_to_thread=True)
def ship_in_a_thread(order_id: int) -> None:
    """The same in a plain function, which Litestar runs in a thread."""
    OrderShipped(order_id=order_id).to_others().dispatch_sync()


app = Litestar(
    [ship, ship_in_a_thread, token_route(current_user)],
    plugins=[EventBusPlugin()],
)
