"""A Flask service that tells browsers about its orders.

eventbus dev                 # in another terminal, in the same folder
gunicorn app:app --bind 127.0.0.1:8000 --preload --workers 2
"""

from flask import Flask, Response, request

from eventbus import Event, ShouldBroadcast
from eventbus.integrations.flask import setup, token_route


class OrderShipped(Event, ShouldBroadcast, name="order.shipped", channel="orders.{order_id}"):
    """An order has left the warehouse."""

    order_id: int
    carrier: str = "DHL"


def current_user() -> str | None:
    """The user of the request: your own sign-in goes here."""
    return request.cookies.get("session")


app = Flask(__name__)
setup(app)
app.register_blueprint(token_route(current_user))


@app.post("/orders/<int:order_id>/ship")
def ship(order_id: int) -> Response:
    """Ship an order; the tab that asked for it does not hear about it again."""
    OrderShipped(order_id=order_id).to_others().dispatch_sync()
    return Response(status=204)
