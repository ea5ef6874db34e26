"""Celery: tasks dispatch with `event.dispatch_sync()`.

app = Celery("shop", broker="redis://")
setup(app)

@app.task
def ship(order_id):
    OrderShipped(order_id=order_id).dispatch_sync()
"""

import logging
import threading
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutdown

from eventbus import sync
from eventbus.config import Settings

__all__ = ["setup"]

_log = logging.getLogger(__name__)


def setup(_app: Celery, settings: Settings | None = None) -> None:
    """Open a bus in each process of a worker, after its fork, and close it with the process.

    An unavailable broker does not keep a worker from starting: the first event waits for it.
    `settings` replace those of the environment. In processes that only enqueue tasks, and in
    workers without processes (the pools solo and threads), the bus opens at the first event too.
    """
    if settings is not None:
        sync.configure(settings)
    worker_process_init.connect(_open, weak=False, dispatch_uid="eventbus.open")
    worker_process_shutdown.connect(_close, weak=False, dispatch_uid="eventbus.close")
    worker_shutdown.connect(_close, weak=False, dispatch_uid="eventbus.close_main")


def _open(**_signal: Any) -> None:
    # Celery kills a process that is not ready after 4 seconds; connecting may take longer.
    threading.Thread(target=_connect, name="opening eventbus", daemon=True).start()


def _connect() -> None:
    try:
        sync.connect()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the first event raises it again
        _log.warning("the bus cannot be opened yet, and will be tried again: %s", exc)


def _close(**_signal: Any) -> None:
    sync.close()
