"""A Starlette service that tells browsers about its orders.

eventbus dev                 # in another terminal, in the same folder
uvicorn app:app --port 8000
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus import Event, ShouldBroadcast
from eventbus.integrations.starlette import setup, token_route


class OrderShipped(Event, ShouldBroadcast, name="order.shipped", channel="orders.{order_id}"):
    """An order has left the warehouse."""

    order_id: int
    carrier: str = "DHL"


def current_user(request: Request) -> str | None:
    """The user of a request: your own sign-in goes here."""
    return request.cookies.get("session")


async def ship(request: Request) -> Response:
    """Ship an order; the tab that asked for it does not hear about it again."""
    await OrderShipped(order_id=request.path_params["order_id"]).to_others().dispatch()
    return Response(status_code=204)


def ship_in_a_thread(request: Request) -> Response:
    """The same in a plain function, which Starlette runs in a thread."""
    OrderShipped(order_id=request.path_params["order_id"]).to_others().dispatch_sync()
    return Response(status_code=204)


app = Starlette(
    routes=[
        token_route(current_user),
        Route("/orders/{order_id:int}/ship", ship, methods=["POST"]),
        Route("/sync/orders/{order_id:int}/ship", ship_in_a_thread, methods=["POST"]),
    ]
)
setup(app)
