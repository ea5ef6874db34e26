"""Accepts connections, and renews the TLS certificate while listening."""

import asyncio
import logging
import signal
from typing import Final

from aiohttp import web

from eventbus.attempts import RateLimitedLog
from eventbus.errors import ConfigError
from eventbus.tasks import Tasks
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http import tls_context
from eventbus_edge.keys import NODE
from eventbus_edge.process.handshakes import TlsServer

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
        self._server: asyncio.Server | None = None
        self._tls_server: TlsServer | None = None
        self._renewing = asyncio.Lock()
        self._renewals = Tasks()

    async def open(self, server: web.Server | None) -> str:
        """Start listening; returns the address as a URL, possibly that of all interfaces."""
        assert server is not None, "set up the runner first"
        async with self._renewing:
            return await self._open(server)

    async def _open(self, server: web.Server) -> str:
        settings = self._settings
        try:
            made = await asyncio.get_running_loop().create_server(
                server,
                settings.host,
                settings.port,
                backlog=BACKLOG,
                reuse_port=settings.supervised or None,
                start_serving=self._tls is None,
            )
        except OSError as exc:
            raise ConfigError(
                f"BROADCAST_WEBSOCKET_PORT={settings.port}: cannot listen on {settings.host}: "
                f"{exc.strerror or exc}; allowed: a free port, or 0 to take one",
                variable="BROADCAST_WEBSOCKET_PORT",
            ) from None
        host, port = made.sockets[0].getsockname()[:2]
        if self._tls is None:
            self._server = made
        else:
            self._tls_server = TlsServer(server, self._tls, self._app[NODE].access.admission)
            for each in made.sockets:
                copy = each.dup()
                copy.setblocking(False)
                copy.listen(BACKLOG)
                self._tls_server.listen(copy)
            made.close()
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
        if self._server is not None:
            self._server.close()
        if self._tls_server is not None:
            await self._tls_server.aclose()

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
            except (ConfigError, OSError) as exc:
                _log.error("the certificate was not reloaded, the old one stays in use: %s", exc)
                return
            # The old context is not modified, because it would still trust a CA that has been
            # removed, and resume the sessions of its clients.
            assert tls is not None, "the settings name a certificate"
            self._tls = tls
            if self._tls_server is not None:
                self._tls_server.renew(tls)
            _log.info("reloaded the certificate from %s", self._settings.tls_cert)
