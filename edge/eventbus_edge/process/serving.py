"""Runs a node as a process: it listens, with or without TLS, and drains on a signal."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import Final

from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE, all_nodes
from eventbus_edge.process.listening import Listener
from eventbus_edge.process.production import require_production

__all__ = ["serve"]


_log = logging.getLogger(__name__)

_ANY: Final = ("0.0.0.0", "[::]")


async def serve(
    settings: EdgeSettings,
    bus: EventBus | Settings,
    *,
    on_ready: Callable[[str], None] | None = None,
    extend: Callable[[web.Application], None] | None = None,
) -> None:
    """Run a node until SIGTERM or SIGINT, then drain it.

    A second signal, or one while the node is starting, stops it at once. SIGHUP reloads the TLS
    certificates. `on_ready` is called with the node's address once it listens; `extend` may add
    routes. Raises ConfigError, also for settings not allowed in production, and the errors of
    opening the bus.
    """
    warnings = require_production(settings)
    app = create_app(settings, bus)
    listener = Listener(settings, app)
    if extend is not None:
        extend(app)
    runner = make_runner(app, settings.request_timeout)
    stop = _stop_event(supervised=settings.supervised)
    listener.renew_on_hangup()
    try:
        # It may wait for the bus for up to BROADCAST_CONNECT_TIMEOUT.
        await _wait_for_first(asyncio.create_task(runner.setup()), stop)
        if stop.is_set():
            _log.info("stopped before it was ready")
            return
        if not app[NODE].access.authenticator.has_keys:
            _log.warning(
                "none of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL is set: all tokens are refused"
            )
        if not settings.supervised:  # the supervisor logs them once
            for warning in warnings:
                _log.warning("%s", warning)
        address = await listener.open(runner.server)
        for node in all_nodes(app):
            node.listens_at(address)
        address = _local(address)
        _log.info("node %s listens on %s", app[NODE].id, address)
        if on_ready is not None:
            on_ready(address)
        await stop.wait()
        drain = asyncio.create_task(_drain(app))
        await _wait_for_first(drain, _stop_event(supervised=False))
    finally:
        await listener.aclose()
        await runner.cleanup()


async def _drain(app: web.Application) -> None:
    await asyncio.gather(*(node.connections.drain() for node in all_nodes(app)))


def _local(address: str) -> str:
    """The address for this machine of a node that listens on all interfaces."""
    for host in _ANY:
        address = address.replace(f"://{host}:", "://127.0.0.1:")
    return address


def _stop_event(*, supervised: bool) -> asyncio.Event:
    """An event that the next SIGTERM or SIGINT sets, or the death of the supervisor."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, event.set)
        except NotImplementedError:  # Windows has no loop handlers: Ctrl-C stops the process
            break
    if supervised:
        # The supervisor holds the other end of stdin, which closes whenever it dies.
        loop.add_reader(sys.stdin.fileno(), event.set)
    return event


async def _wait_for_first(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until a task ends or an event is set; in the latter case the task is cancelled."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    await asyncio.wait({task, waiting})
    if not task.cancelled():
        task.result()  # raises what it raised
