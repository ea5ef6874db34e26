"""The app's configuration."""

from asgiref.sync import SyncToAsync
from django.apps import AppConfig

from eventbus import sync
from eventbus.events import provide_holders
from eventbus.integrations.django.commit import atomic_blocks
from eventbus.integrations.django.conf import bus_settings

__all__ = ["EventBusConfig"]


class EventBusConfig(AppConfig):
    """Gives the default bus of the process the settings of Django, and events its transactions."""

    name = "eventbus.integrations.django"
    label = "eventbus"
    verbose_name = "eventbus"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Called by Django. Nothing connects before the first event."""
        sync.configure(bus_settings())
        sync.serve_event_loops()
        provide_holders(atomic_blocks)
        # The thread of a request under ASGI, in which a sync view waits for its listeners.
        sync.leave_behind(SyncToAsync.thread_sensitive_context)
