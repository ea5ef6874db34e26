"""Orders, whose changes are broadcast."""

from django.db import models

from eventbus.integrations.django import broadcasts


@broadcasts("orders.{pk}", fields=["status"])
class Order(models.Model):
    """Dispatches OrderCreated, OrderUpdated and OrderDeleted after the commit."""

    status = models.CharField(max_length=20, default="new")

    def __str__(self) -> str:
        return f"order {self.pk}"
