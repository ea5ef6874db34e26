"""Running a node as a process: it listens, over TLS or not, until a signal asks it to drain."""

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import Callable
from typing import Final

from aiohttp import web

from edge.app import create_app, make_runner
from edge.config import EdgeSettings
from edge.keys import NODE
from edge.production import require_production
from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConfigError

__all__ = ["serve", "tls_context"]

_log = logging.getLogger(__name__)

_ANY: Final = ("0.0.0.0", "[::]")


async def serve(
    settings: EdgeSettings,
    bus: EventBus | Settings,
    *,
    on_ready: Callable[[str], None] | None = None,
    extend: Callable[[web.Application], None] | None = None,
) -> None:
    """Run a node until SIGTERM or SIGINT, then drain it. A second signal ends it at once.

    SIGHUP reads the TLS certificate again. `on_ready` is called with the node's address once it
    listens; `extend` may add routes. Raises ConfigError, also for what production refuses, and what
    opening the bus raises.
    """
    warnings = require_production(settings)
    tls = tls_context(settings)
    app = create_app(settings, bus)
    if extend is not None:
        extend(app)
    runner = make_runner(app, settings.request_timeout)
    stop = _stop_event(supervised=settings.supervised)
    await runner.setup()
    try:
        if app[NODE].verifies_no_tokens:
            _log.warning("neither JWT_SECRET nor JWT_PUBLIC_KEY is set: all tokens are refused")
        if not settings.supervised:  # the supervisor says it once
            for warning in warnings:
                _log.warning("%s", warning)
        _reload_on_hangup(settings, tls)
        app[NODE].address = await _listen(runner, settings, tls)
        address = _local(app[NODE].address)
        _log.info("node %s listens on %s", app[NODE].id, address)
        if on_ready is not None:
            on_ready(address)
        await stop.wait()
        drain = asyncio.create_task(app[NODE].drain())
        await _either(drain, _stop_event(supervised=False))
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: EdgeSettings, tls: ssl.SSLContext | None) -> str:
    """Begin to listen; gives the address as a URL, that of all interfaces included."""
    site = web.TCPSite(
        runner,
        settings.host,
        settings.port,
        ssl_context=tls,
        reuse_port=settings.supervised or None,
    )
    try:
        await site.start()
    except OSError as exc:
        raise ConfigError(
            f"BROADCAST_WEBSOCKET_PORT={settings.port}: cannot listen on {settings.host}: "
            f"{exc.strerror or exc}; allowed: a free port, or 0 to take one",
            variable="BROADCAST_WEBSOCKET_PORT",
        ) from None
    host, port = runner.addresses[0][:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _local(address: str) -> str:
    """An address by which this machine reaches one that listens on all interfaces."""
    for host in _ANY:
        address = address.replace(f"://{host}:", "://127.0.0.1:")
    return address


def tls_context(settings: EdgeSettings) -> ssl.SSLContext | None:
    """What TLS connections are made with; None without a certificate. Raises ConfigError."""
    if not settings.tls_cert:
        if settings.tls_key:
            raise ConfigError(
                "BROADCAST_TLS_KEY is set without BROADCAST_TLS_CERT: TLS needs both",
                variable="BROADCAST_TLS_CERT",
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_certificate(settings, context)
    return context


def _load_certificate(settings: EdgeSettings, context: ssl.SSLContext) -> None:
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"BROADCAST_TLS_CERT={settings.tls_cert!r}, BROADCAST_TLS_KEY={settings.tls_key!r}: "
            f"{exc.strerror or exc}; allowed: a PEM file with the certificate and those that sign "
            "it, and one with its private key",
            variable="BROADCAST_TLS_CERT",
        ) from None


def _reload_on_hangup(settings: EdgeSettings, context: ssl.SSLContext | None) -> None:
    """Take a renewed certificate for connections to come; those that stand keep theirs.

    Without TLS too: a signal that is not handled would end the node.
    """

    def reload() -> None:
        if context is None:
            _log.info("SIGHUP: there is no certificate to read, since BROADCAST_TLS_CERT is empty")
            return
        try:
            _load_certificate(settings, context)
        except ConfigError as exc:
            _log.error("the certificate stays as it was: %s", exc)
        else:
            _log.info("the certificate was read again from %s", settings.tls_cert)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _stop_event(*, supervised: bool) -> asyncio.Event:
    """An event that the next SIGTERM or SIGINT sets, or the death of the supervisor."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, event.set)
        except NotImplementedError:  # Windows has no loop handlers: Ctrl-C ends the process
            break
    if supervised:
        # The supervisor holds the other end of stdin, which closes when it dies in whatever way.
        loop.add_reader(sys.stdin.fileno(), event.set)
    return event


async def _either(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until a task has ended, or an event is set, in which case the task is cancelled."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    await asyncio.wait({task, waiting})
    if not task.cancelled():
        task.result()  # raises what it raised
