"""Orders of a shop, live in every browser. The README describes how to start it."""

import enum
import itertools
import os
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Cookie, FastAPI, HTTPException, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from eventbus import ClientEvent, DriverError, Event, ShouldBroadcast
from eventbus.integrations.fastapi import Bus, setup, token_route
from eventbus.tokens import TokenUser

CHANNEL = "orders.live"
DIST = Path(__file__).with_name("dist")
PEOPLE = {"1": "Ada", "2": "Grace", "3": "Linus"}


OrderId = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]


class Status(enum.StrEnum):
    """The progress of an order."""

    NEW = "new"
    PACKED = "packed"
    SHIPPED = "shipped"
    DELIVERED = "delivered"


class OrderSaved(Event, ShouldBroadcast, name="order.saved", channel="orders.live"):
    """An order after a change."""

    id: OrderId
    customer: str
    item: str
    status: Status


class Moving(Event, ClientEvent, channel="presence.orders", name="moving"):
    """A user has asked to move an order; the service has not answered yet."""

    order_id: OrderId
    status: Status


class NewOrder(BaseModel):
    """What the page sends to place an order."""

    customer: str
    item: str


class Move(BaseModel):
    """What the page sends to move an order."""

    status: Status


ORDERS: dict[int, OrderSaved] = {}
"""Stands for your database."""
_ids = itertools.count(1001)

for customer, item, status in (
    ("Borealis Coffee", "Espresso beans, 12 kg", Status.SHIPPED),
    ("Studio Mira", "Desk lamp, brass", Status.PACKED),
    ("J. Okafor", "Trail shoes, size 43", Status.NEW),
):
    first = OrderSaved(id=next(_ids), customer=customer, item=item, status=status)
    ORDERS[first.id] = first


def current_user(person: Annotated[str | None, Cookie()] = None) -> TokenUser | None:
    """Your own sign-in goes here. This example believes what the page says."""
    if person not in PEOPLE:
        return None
    return TokenUser(user_id=person, name=PEOPLE[person], channels=(CHANNEL,))


async def save(order: OrderSaved) -> None:
    """Store an order, then notify all pages."""
    ORDERS[order.id] = order
    try:
        await order.dispatch()
    except DriverError as exc:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE, f"The order was saved, but nobody was notified: {exc}"
        ) from exc


app = FastAPI()
setup(app)
app.include_router(token_route(current_user, "/api/token"))


@app.get("/api/people")
async def people() -> dict[str, str]:
    """Who can sign in."""
    return PEOPLE


@app.get("/api/orders")
async def orders(bus: Bus) -> dict[str, Any]:
    """All orders, and the position on the channel from before they were read."""
    position = await bus.position(CHANNEL)
    return {"data": msgspec.to_builtins(list(ORDERS.values())), **position.as_dict()}


@app.post("/api/orders", status_code=HTTPStatus.NO_CONTENT, response_class=Response)
async def place(new: NewOrder) -> None:
    """Place an order."""
    await save(OrderSaved(id=next(_ids), customer=new.customer, item=new.item, status=Status.NEW))


@app.post("/api/orders/{order_id}", status_code=HTTPStatus.NO_CONTENT, response_class=Response)
async def move(order_id: int, change: Move) -> None:
    """Move an order."""
    order = ORDERS.get(order_id)
    if order is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no order {order_id}.")
    await save(
        OrderSaved(id=order.id, customer=order.customer, item=order.item, status=change.status)
    )


if DIST.exists():  # made by `npm run build`; in development, Vite serves the page
    app.mount("/", StaticFiles(directory=DIST, html=True))

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
