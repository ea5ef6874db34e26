"""Django: an app with settings, events after the commit, an outbox, model broadcasting, a token
view and commands.

    INSTALLED_APPS = [..., "eventbus.integrations.django"]
    MIDDLEWARE = [..., "eventbus.integrations.django.middleware.connection"]
    EVENTBUS = {"NATS_URL": "nats://127.0.0.1:4222"}  # over the environment

Views dispatch with `event.dispatch_sync()`, async views with `await event.dispatch()`. Both use the
default bus of the process.
"""

from eventbus.integrations.django.models_events import broadcasts

__all__ = ["broadcasts"]
