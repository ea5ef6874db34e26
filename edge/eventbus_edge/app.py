"""The application: routes, and what starts and ends with it."""

import logging
from collections.abc import (
    AsyncIterator,
    Callable,
)
from pathlib import Path

from aiohttp import web

from eventbus.application import import_modules
from eventbus.bus import EventBus
from eventbus.channels import DEFAULT_NAMESPACE
from eventbus.config import Settings
from eventbus_edge.access.jwks import Jwks
from eventbus_edge.access.rules import (
    ChannelRules,
    channels,
)
from eventbus_edge.access.rules_file import read_rules
from eventbus_edge.access.tokens import TokenVerifier
from eventbus_edge.access.verifiers import (
    fetched_keys,
    make_verifier,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.api import add_api
from eventbus_edge.http.contract import (
    ContractDocument,
    checked_events,
)
from eventbus_edge.http.endpoints import (
    healthz,
    metrics,
    problems,
    rate_limited,
    readyz,
)
from eventbus_edge.http.pages import (
    STATIC,
    add_dashboard,
    add_docs,
    add_static,
)
from eventbus_edge.http.server import Runner
from eventbus_edge.http.tls import client_certificates
from eventbus_edge.http.traces import traces
from eventbus_edge.keys import (
    NODE,
    WORKERS_METRICS,
)
from eventbus_edge.metrics.workers import WorkersMetrics
from eventbus_edge.node import Node
from eventbus_edge.sessions.client_events import ClientEvents
from eventbus_edge.transports.sse import (
    preflight,
    server_sent_events,
    streamed_commands,
)
from eventbus_edge.transports.websocket import (
    answer_extensions,
    native_websocket,
)

__all__ = ["STATIC", "create_app", "make_runner"]


_log = logging.getLogger(__name__)


def create_app(
    settings: EdgeSettings,
    bus: EventBus | Settings,
    *,
    rules: ChannelRules | None = None,
) -> web.Application:
    """The edge as an aiohttp application.

    `bus` is an open bus, which stays the caller's, or the settings of one that the application
    opens and closes. Without `rules`, the module named by EDGE_APP is imported, and the rules that
    it has put into `eventbus_edge.channels` hold. Raises ConfigError.
    """
    keys = fetched_keys(settings)
    verifier = make_verifier(settings, keys)
    if rules is None:
        if settings.app:
            import_modules([settings.app], Path.cwd(), "EDGE_APP=")
        rules = channels
    if settings.rules_file:
        rules = rules.preceded_by(read_rules(settings.rules_file))
    namespace = bus.namespace if isinstance(bus, Settings) else bus.subjects.namespace
    contract = ContractDocument(settings, namespace or DEFAULT_NAMESPACE)
    client_events = checked_events(settings, contract)
    app = web.Application(middlewares=[traces, problems, rate_limited])
    if settings.tls_client_ca:
        app.middlewares.append(client_certificates())
    app.cleanup_ctx.append(_node(settings, bus, rules, verifier, client_events))
    if settings.worker_socket:
        app.cleanup_ctx.append(_sharing_metrics)
    if keys is not None:
        app.cleanup_ctx.append(_fetching(keys))
    app.on_shutdown.append(_drain)
    app.on_response_prepare.append(_name_no_versions)
    app.on_response_prepare.append(answer_extensions)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    add_api(app)
    add_docs(app, contract)
    add_dashboard(app)
    app.router.add_get("/sse", server_sent_events, allow_head=False)
    app.router.add_post("/sse", streamed_commands)
    app.router.add_options("/sse", preflight)
    if settings.websocket_enabled:
        # No HEAD: it cannot be upgraded (RFC 6455, 4.1).
        app.router.add_get("/ws", native_websocket, allow_head=False)
        app.router.add_get("/ws/{channel:(?s:.*)}", native_websocket, allow_head=False)
    add_static(app)
    return app


async def _sharing_metrics(app: web.Application) -> AsyncIterator[None]:
    node = app[NODE]
    workers = app[WORKERS_METRICS] = WorkersMetrics(
        node.metrics.registry, Path(node.settings.worker_socket), node.metrics.workers_missing
    )
    await workers.open()
    yield
    await workers.aclose()


def _fetching(keys: Jwks) -> Callable[[web.Application], AsyncIterator[None]]:
    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        fetches = app[NODE].metrics.jwks_fetches
        try:
            await keys.open(lambda result: fetches.labels(result).inc())
            yield
        finally:
            await keys.aclose()

    return lifetime


def _node(
    settings: EdgeSettings,
    bus: EventBus | Settings,
    rules: ChannelRules,
    verifier: TokenVerifier | None,
    client_events: ClientEvents | None,
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        own = EventBus(bus) if isinstance(bus, Settings) else None
        open_bus = own or bus
        assert isinstance(open_bus, EventBus)
        if own is not None:
            await own.open()
        try:
            node = Node(open_bus, settings, rules, verifier, client_events)
            await node.start()
            app[NODE] = node
            yield
            await node.aclose()
        finally:
            if own is not None:
                await own.aclose()

    return lifetime


async def _name_no_versions(_request: web.Request, response: web.StreamResponse) -> None:
    """Versions in the header Server are of use to attackers only (RFC 9110, 10.2.4)."""
    response.headers["Server"] = "eventbus"


async def _drain(app: web.Application) -> None:
    connections = app[NODE].connections
    await connections.drain()
    # Some remain after a second signal, or after a handshake that was under way.
    connections.close_remaining()


def make_runner(app: web.Application, request_timeout: float = 75.0) -> web.AppRunner:
    """A runner of the application; see Runner for what it refuses by itself."""
    return Runner(app, request_timeout)
