"""The application: its routes, and the parts that start and end with it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from eventbus.application import import_modules
from eventbus.bus import EventBus
from eventbus.channels import DEFAULT_NAMESPACE
from eventbus.config import Settings
from eventbus.events import current
from eventbus_edge.access import (
    AllowedOrigins,
    ChannelRules,
    Jwks,
    TokenVerifier,
    channels,
    fetched_keys,
    make_verifier,
    read_rules,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http import (
    STATIC,
    ContractDocument,
    Runner,
    add_api,
    add_endpoints,
    add_middleware,
    add_pages,
    checked_events,
    client_certificates,
)
from eventbus_edge.keys import METRICS, NODE, PATHS, WORKERS_METRICS, all_nodes
from eventbus_edge.metrics import NodesMetrics, WorkersMetrics
from eventbus_edge.node import Extension, Node, Tenant
from eventbus_edge.protocols import NATIVE, WireProtocol
from eventbus_edge.pusher import add_pusher
from eventbus_edge.sessions import ClientEvents
from eventbus_edge.transports import MAX_CLOSE_S, add_sse, add_websocket

__all__ = ["STATIC", "WEBSOCKETS", "create_app", "make_runner"]


_log = logging.getLogger(__name__)

WEBSOCKETS: Final[Mapping[str, WireProtocol]] = {
    "/ws": NATIVE,
    "/ws/{channel:(?s:.*)}": NATIVE,
}
"""Which protocol WebSockets speak, by path. This is the place to register another one."""


def create_app(
    settings: EdgeSettings,
    bus: EventBus | Settings,
    *,
    rules: ChannelRules | None = None,
    websockets: Mapping[str, WireProtocol] = WEBSOCKETS,
) -> web.Application:
    """The edge as an aiohttp application.

    `bus` is an open bus, which stays the caller's, or the settings of one that the application
    opens and closes. Without `rules`, the module named by EDGE_APP is imported, and the rules in
    `eventbus_edge.channels` apply. `websockets` are the protocols by path. Raises ConfigError.
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
    AllowedOrigins(settings.cors_allowed_origins)  # refuses the start before the bus is opened
    app = web.Application()
    add_middleware(app)
    if settings.tls_client_ca:
        app.middlewares.append(client_certificates())
    extension, tenants = add_pusher(app, settings, rules)
    app[PATHS] = {path: tenant.name for tenant in tenants for path in tenant.paths}
    app.cleanup_ctx.append(
        _node(settings, bus, rules, verifier, client_events, extension=extension)
    )
    if tenants:
        app.cleanup_ctx.append(_tenants(tenants, bus, rules, keys, client_events))
    if settings.worker_socket:
        app.cleanup_ctx.append(_sharing_metrics)
    if keys is not None:
        app.cleanup_ctx.append(_fetching(keys))
    app.on_shutdown.append(_drain)
    app.on_response_prepare.append(_hide_versions)
    add_endpoints(app)
    add_api(app)
    add_pages(app, contract)
    add_sse(app, "/sse", NATIVE)
    by_path = dict(websockets)
    for each in (*(tenant.extension for tenant in tenants), extension):
        by_path |= each.websockets
    if settings.websocket_enabled:
        for path, protocol in by_path.items():
            add_websocket(app, path, protocol)
    return app


async def _sharing_metrics(app: web.Application) -> AsyncIterator[None]:
    node = app[NODE]
    workers = app[WORKERS_METRICS] = WorkersMetrics(
        app[METRICS], Path(node.settings.worker_socket), node.metrics.workers_missing
    )
    try:
        await workers.open()
        yield
    finally:
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
    *,
    extension: Extension,
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        own = EventBus(bus) if isinstance(bus, Settings) else None
        open_bus = own or bus
        assert isinstance(open_bus, EventBus)
        if own is not None:
            await own.open()
        try:
            node = Node(
                open_bus,
                settings,
                rules,
                verifier,
                client_events,
                extension=extension,
            )
            try:
                await node.start()
                app[NODE] = node
                app[METRICS] = NodesMetrics(
                    node.metrics,
                    lambda: {name: each.metrics for name, each in node.tenants.items()},
                )
                yield
            finally:
                await node.aclose()
        finally:
            if own is not None:
                await own.aclose()

    return lifetime


def _tenants(
    tenants: Sequence[Tenant],
    bus: EventBus | Settings,
    rules: ChannelRules,
    keys: Jwks | None,
    client_events: ClientEvents | None,
) -> Callable[[web.Application], AsyncIterator[None]]:
    """The tenants' nodes, each on a bus with a namespace of its own."""
    settings = bus if isinstance(bus, Settings) else bus.settings
    namespaces = [f"{settings.namespace}_{tenant.name}" for tenant in tenants]
    # In development, a bus uses the embedded server of the process, if there is one.
    shared = msgspec.structs.replace(settings, environment="development")
    buses = [EventBus(msgspec.structs.replace(shared, namespace=each)) for each in namespaces]
    verifiers = [
        make_verifier(tenant.settings, keys if tenant.settings.jwt_jwks_url else None)
        for tenant in tenants
    ]

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as parts:
            for tenant, own, verifier in zip(tenants, buses, verifiers, strict=True):
                await parts.enter_async_context(own)
                current.leave(own)  # the application's code dispatches on its own bus
                node = Node(
                    own,
                    tenant.settings,
                    rules,
                    verifier,
                    client_events,
                    extension=tenant.extension,
                    host=app[NODE],
                )
                parts.push_async_callback(node.aclose)
                await node.start()
                app[NODE].add_tenant(tenant.name, node)
                _log.info("app %s has the namespace %s", tenant.name, own.subjects.namespace)
            yield

    return lifetime


async def _hide_versions(_request: web.Request, response: web.StreamResponse) -> None:
    """Versions in the header Server help attackers only (RFC 9110, 10.2.4)."""
    response.headers["Server"] = "eventbus"


async def _drain(app: web.Application) -> None:
    await asyncio.gather(*(_drain_node(node) for node in all_nodes(app)))


async def _drain_node(node: Node) -> None:
    connections = node.connections
    await connections.drain()
    # Some remain after a second signal, or after a handshake that was under way.
    connections.close_remaining()
    await connections.sockets_ended(MAX_CLOSE_S)


def make_runner(app: web.Application, request_timeout: float = 75.0) -> web.AppRunner:
    """A runner of the application; see Runner for requests that it refuses itself."""
    return Runner(app, request_timeout)
