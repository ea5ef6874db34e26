"""A live page that shows where an order is. The README describes how to start it.

An application adds four things to an edge: a page, what it shows, tokens for its users, and events.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from eventbus import DriverError, Event, EventBus, ShouldBroadcast, issue_token

BUS = web.AppKey("BUS", EventBus)
PLACES: list[str] = []
"""Stands for your database."""
EDGE_URL = os.environ.get("EDGE_URL", "http://127.0.0.1:8080")


class OrderMoved(Event, ShouldBroadcast, channel="orders.{order_id}"):
    """An order has moved to another place."""

    order_id: int
    step: int
    """Which move it is: a page that has it already shows it once."""
    place: str


async def page(_: web.Request) -> web.Response:
    html = Path(__file__).with_name("page.html").read_text("utf-8")
    return web.Response(text=html.replace("EDGE_URL", EDGE_URL), content_type="text/html")


async def token(_: web.Request) -> web.Response:
    """Your session determines the user. Here, it is always Ada, who has access to order 42."""
    secret = os.environ["JWT_SECRET"]
    ada = issue_token("7", secret=secret, name="Ada", channels=["orders.42"], lifetime=600)
    return web.Response(text=ada)


async def order(request: web.Request) -> web.Response:
    """What the page shows, with its position on the channel, which is read first."""
    position = await request.app[BUS].position("orders.42")
    return web.json_response({"data": PLACES, **position.as_dict()})


async def move(request: web.Request) -> web.Response:
    form = await request.post()
    place = str(form["place"])
    PLACES.append(place)
    try:
        await OrderMoved(order_id=42, step=len(PLACES), place=place).dispatch()
    except DriverError as exc:
        return web.Response(status=503, text=f"The order was moved, but nobody was notified: {exc}")
    return web.Response(status=204)


async def bus(app: web.Application) -> AsyncIterator[None]:
    async with EventBus.from_env() as app[BUS]:
        yield


app = web.Application()
app.cleanup_ctx.append(bus)
app.add_routes([web.get("/", page), web.get("/token", token)])
app.add_routes([web.get("/order", order), web.post("/move", move)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
