"""A FastAPI service that tells browsers about its orders.

eventbus dev                 # in another terminal, in the same folder
uvicorn app:app --port 8000
"""

from typing import Annotated

from fastapi import Cookie, FastAPI

from eventbus import Event, ShouldBroadcast
from eventbus.integrations.fastapi import Bus, setup, token_route


class OrderShipped(Event, ShouldBroadcast, name="order.shipped", channel="orders.{order_id}"):
    """An order has left the warehouse."""

    order_id: int
    carrier: str = "DHL"


def current_user(session: Annotated[str | None, Cookie()] = None) -> str | None:
    """The user of a request: your own sign-in goes here."""
    return session


app = FastAPI()
setup(app)
app.include_router(token_route(current_user))


@app.post("/orders/{order_id}/ship", status_code=204)
async def ship(order_id: int, bus: Bus) -> None:
    """Ship an order; the tab that asked for it does not hear about it again."""
    await bus.dispatch(OrderShipped(order_id=order_id).to_others())


@app.post("/sync/orders/{order_id}/ship", status_code=204)
def ship_in_a_thread(order_id: int) -> None:
    """The same in a plain function, which FastAPI runs in a thread."""
    OrderShipped(order_id=order_id).to_others().dispatch_sync()
