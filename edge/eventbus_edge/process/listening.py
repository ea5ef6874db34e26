"""Accepts connections, and renews the TLS certificate while listening."""

import asyncio
import logging
import signal
import ssl
from typing import Final

from aiohttp import web

from eventbus.errors import ConfigError
from eventbus.ratelimit import RateLimitedLog
from eventbus.tasks import Tasks
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.tls import tls_context
from eventbus_edge.keys import NODE

__all__ = ["Listener"]


_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that may wait to be accepted: all clients of a stopped node reconnect at once.

A client that finds the backlog full retries after one second, then two, then four. The system has
a limit of its own, net.core.somaxconn, which is 4096 since Linux 5.4.
"""


class Listener:
    """The listening sockets of one node."""

    def __init__(self, settings: EdgeSettings, app: web.Application) -> None:
        """Raises ConfigError for certificates that cannot be used."""
        self._settings = settings
        self._app = app
        self._tls_faults = RateLimitedLog(_log)
        self._tls = tls_context(settings, self._on_tls_fault)
        self._servers: list[asyncio.Server] = []
        self._renewing = asyncio.Lock()
        self._renewals = Tasks()

    async def open(self, server: web.Server | None) -> str:
        """Start listening; returns the address as a URL, possibly that of all interfaces."""
        assert server is not None, "set up the runner first"
        self._factory = server
        async with self._renewing:
            return await self._open(server)

    async def _open(self, server: web.Server) -> str:
        settings = self._settings
        try:
            made = await asyncio.get_running_loop().create_server(
                server,
                settings.host,
                settings.port,
                ssl=self._tls,
                backlog=BACKLOG,
                reuse_port=settings.supervised or None,
            )
        except OSError as exc:
            raise ConfigError(
                f"BROADCAST_WEBSOCKET_PORT={settings.port}: cannot listen on {settings.host}: "
                f"{exc.strerror or exc}; allowed: a free port, or 0 to take one",
                variable="BROADCAST_WEBSOCKET_PORT",
            ) from None
        self._servers = [made]
        host, port = made.sockets[0].getsockname()[:2]
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def renew_on_hangup(self) -> None:
        """At SIGHUP, use the renewed certificate for new connections; open ones keep theirs.

        Call it even without TLS, and before listening: an unhandled signal would end the node.
        """
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)

    async def aclose(self) -> None:
        """Stop listening; open connections are not affected."""
        async with self._renewing:  # a renewal in progress ends first
            await self._renewals.aclose()
        for server in self._servers:
            server.close()

    def _on_tls_fault(self, reason: str) -> None:
        self._app[NODE].metrics.tls_faults.inc()
        self._tls_faults.warning("a TLS handshake failed: %s", reason)

    def _hang_up(self) -> None:
        self._renewals.start(self._renew(), "reloading the certificate")

    async def _renew(self) -> None:
        if self._tls is None:
            _log.info("SIGHUP: no certificate to reload, because BROADCAST_TLS_CERT is empty")
            return
        async with self._renewing:
            try:
                tls = tls_context(self._settings, self._on_tls_fault)
                assert tls is not None, "the settings name a certificate"
                await self._replace_servers(tls)
                self._tls = tls
            except (ConfigError, OSError) as exc:
                _log.error("the certificate was not reloaded, the old one stays in use: %s", exc)
            else:
                _log.info("reloaded the certificate from %s", self._settings.tls_cert)

    async def _replace_servers(self, tls: ssl.SSLContext) -> None:
        """Listen on the same sockets with a new TLS context. Raises OSError.

        Connections that wait in the backlog are kept. The old context is not modified, because it
        would still trust a CA that has been removed, and resume the sessions of its clients.
        """
        loop = asyncio.get_running_loop()
        replaced, made = self._servers, list[asyncio.Server]()
        try:
            for sock in (each for server in replaced for each in server.sockets):
                copy = sock.dup()
                made.append(
                    await loop.create_server(self._factory, sock=copy, ssl=tls, backlog=BACKLOG)
                )
        except OSError:
            replaced, made = made, replaced
            raise
        finally:
            self._servers = made
            for server in replaced:
                server.close()
