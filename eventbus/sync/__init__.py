"""The bus for code without an event loop: Django and Flask views, Celery tasks, scripts.

    from eventbus.sync import EventBus

    with EventBus.from_env() as bus:
        bus.dispatch(OrderShipped(order_id=42, carrier="DHL"))
        bus.publish("general", "announcement", {"text": "hello"})

    OrderShipped(order_id=42, carrier="DHL").dispatch_sync()  # through the default bus

One background thread per process runs an event loop, in which async buses do the work. All calls
are safe from any thread, and block until the async call would have returned. They run in a copy of
the caller's context, so that fakes, transactions and traces apply.

A forked child (gunicorn's --preload, Celery's prefork pool, uWSGI, multiprocessing) inherits
neither the thread nor a usable connection: it starts its own at its first call, and leaves those of
its parent alone.
"""

from eventbus.sync.bus import EventBus, Using
from eventbus.sync.commit import send_committed
from eventbus.sync.default import (
    close,
    configure,
    connect,
    rescued,
    run,
    serve_event_loops,
    shared,
)
from eventbus.sync.thread import leave_behind

__all__ = [
    "EventBus",
    "Using",
    "close",
    "configure",
    "connect",
    "leave_behind",
    "rescued",
    "run",
    "send_committed",
    "serve_event_loops",
    "shared",
]
