"""The views."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from eventbus.integrations.django.models import add_to_outbox
from shop.events import OrderShipped
from shop.models import Order


def current_user(request: HttpRequest) -> str | None:
    """The user of a request: with django.contrib.auth, token_view() needs no such function."""
    session: str | None = request.COOKIES.get("session")
    return session


@require_POST
def ship(request: HttpRequest, order_id: int) -> HttpResponse:
    """Ship an order; the tab that asked for it does not hear about it again.

    `?fail` rolls back, and drops the event.
    """
    with transaction.atomic():
        OrderShipped(order_id=order_id).to_others().dispatch_sync()
        if "fail" in request.GET:
            transaction.set_rollback(True)
    return HttpResponse(status=204)


@require_POST
async def ship_async(_request: HttpRequest, order_id: int) -> HttpResponse:
    """The same in an async view."""
    await OrderShipped(order_id=order_id).to_others().dispatch()
    return HttpResponse(status=204)


@require_POST
def ship_for_sure(request: HttpRequest, order_id: int) -> HttpResponse:
    """Ship an order by way of the outbox; `?fail` rolls everything back."""
    with transaction.atomic():
        order, _ = Order.objects.get_or_create(pk=order_id)
        order.status = "shipped"
        order.save()
        add_to_outbox(OrderShipped(order_id=order_id, carrier="outbox"))
        if "fail" in request.GET:
            transaction.set_rollback(True)
    return HttpResponse(status=204)
