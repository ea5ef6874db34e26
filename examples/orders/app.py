"""A live page that shows where an order is. The README describes how to start it.

An application adds three things to an edge: a page, tokens for its users, and events.
"""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
from aiohttp import web

from eventbus import Event, EventBus, ShouldBroadcast

EDGE_URL = os.environ.get("EDGE_URL", "http://127.0.0.1:8080")


class OrderMoved(Event, ShouldBroadcast, channel="orders.{order_id}"):
    """An order has moved to another place."""

    order_id: int
    place: str


async def page(_: web.Request) -> web.Response:
    html = Path(__file__).with_name("page.html").read_text("utf-8")
    return web.Response(text=html.replace("EDGE_URL", EDGE_URL), content_type="text/html")


async def token(_: web.Request) -> web.Response:
    """Your session determines the user. Here, it is always Ada, who has access to order 42."""
    claims = {
        "sub": "7",
        "name": "Ada",
        "channels": ["orders.42"],
        "aud": "websocket",
        "exp": int(time.time()) + 600,
    }
    return web.Response(text=jwt.encode(claims, os.environ["JWT_SECRET"], "HS256"))


async def move(request: web.Request) -> web.Response:
    form = await request.post()
    await OrderMoved(order_id=42, place=str(form["place"])).dispatch()
    return web.Response(status=204)


async def bus(_: web.Application) -> AsyncIterator[None]:
    async with EventBus.from_env():
        yield


app = web.Application()
app.cleanup_ctx.append(bus)
app.add_routes([web.get("/", page), web.get("/token", token), web.post("/move", move)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
