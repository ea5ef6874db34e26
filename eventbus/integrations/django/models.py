"""The table of the outbox."""

from django.db import models

from eventbus.events import Event
from eventbus.outbox import rows_of

__all__ = ["OutboxRow", "add_to_outbox"]


class OutboxRow(models.Model):
    """A message or job of an event that a transaction added; the relay publishes and deletes it."""

    id = models.BigAutoField(primary_key=True)
    position = models.BigIntegerField(null=True, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)
    message_id = models.TextField()
    kind = models.TextField()
    channel = models.TextField()
    event = models.TextField()
    payload = models.BinaryField()
    headers = models.BinaryField()
    volatile = models.BooleanField()
    error = models.TextField(null=True)  # noqa: DJ001 - a row without an error waits

    class Meta:
        db_table = "eventbus_outbox"
        verbose_name = "row of the outbox"
        verbose_name_plural = "rows of the outbox"

    def __str__(self) -> str:
        return f"{self.event} on {self.channel}"


def add_to_outbox(*events: Event, using: str | None = None) -> None:
    """Add events to the current transaction: they are published if and only if it commits.

    `using` is the name of a database. Listeners of this process do not run. Raises
    EventFieldError, EventDefinitionError, EncodingError, InvalidChannel, InvalidEventName.
    """
    rows = [row for event in events for row in rows_of(event)]
    OutboxRow.objects.using(using).bulk_create(
        OutboxRow(**{name: getattr(row, name) for name in row.__struct_fields__}) for row in rows
    )
