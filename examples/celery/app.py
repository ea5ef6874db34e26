"""A Celery worker that tells browsers about its orders.

eventbus dev                 # in another terminal, in the same folder
celery --app app worker      # with CELERY_BROKER_URL=redis://127.0.0.1:6379
python -c 'import app; app.ship.delay(42)'
"""

import os

from celery import Celery

from eventbus import Event, ShouldBroadcast
from eventbus.integrations.celery import setup


class OrderShipped(Event, ShouldBroadcast, name="order.shipped", channel="orders.{order_id}"):
    """An order has left the warehouse."""

    order_id: int
    carrier: str = "DHL"


app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379"))
setup(app)


@app.task
def ship(order_id: int, number: int = 0) -> None:
    """Ship an order."""
    OrderShipped(order_id=order_id, carrier=f"DHL {number}").dispatch_sync()
