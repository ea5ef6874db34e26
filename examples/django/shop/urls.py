"""The routes."""

from django.urls import path

from eventbus.integrations.django.views import token_view
from shop import views

urlpatterns = [
    path("token", token_view(views.current_user)),
    path("orders/<int:order_id>/ship", views.ship),
    path("async/orders/<int:order_id>/ship", views.ship_async),
    path("outbox/orders/<int:order_id>/ship", views.ship_for_sure),
]
