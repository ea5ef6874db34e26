"""Where a node takes connections, and how its TLS is renewed while it does."""

import asyncio
import logging
import signal
import ssl
from typing import Final

from aiohttp import web

from eventbus.errors import ConfigError
from eventbus.tasks import Tasks
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.tls import (
    log_seldom,
    tls_context,
)
from eventbus_edge.keys import NODE

__all__ = ["Listener"]


_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that may wait to be taken: the clients of a node that has ended come at once.

Who finds no room tries again after a second, then two, then four. The system has a bound of its
own, net.core.somaxconn, 4096 since Linux 5.4.
"""


class Listener:
    """The listening sockets of one node."""

    def __init__(self, settings: EdgeSettings, app: web.Application) -> None:
        """Raises ConfigError for certificates that cannot be used."""
        self._settings = settings
        self._app = app
        self._log_fault = log_seldom("%d TLS handshakes have failed; the last: %s")
        self._tls = tls_context(settings, self._tell)
        self._servers: list[asyncio.Server] = []
        self._renewing = asyncio.Lock()
        self._renewals = Tasks()

    async def open(self, server: web.Server | None) -> str:
        """Begin to listen; gives the address as a URL, that of all interfaces included."""
        assert server is not None, "the runner is set up"
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
        """Take renewed certificates for connections to come; those that stand keep theirs.

        Without TLS, and before it listens, too: a signal that is not handled would end the node.
        """
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)

    async def aclose(self) -> None:
        """Listen no longer; connections that stand are not touched."""
        async with self._renewing:  # one that is under way ends first
            await self._renewals.aclose()
        for server in self._servers:
            server.close()

    def _tell(self, reason: str) -> None:
        self._app[NODE].metrics.tls_faults.inc()
        self._log_fault(reason)

    def _hang_up(self) -> None:
        self._renewals.start(self._renew(), "reading the certificate again")

    async def _renew(self) -> None:
        if self._tls is None:
            _log.info("SIGHUP: there is no certificate to read, since BROADCAST_TLS_CERT is empty")
            return
        async with self._renewing:
            try:
                tls = tls_context(self._settings, self._tell)
                assert tls is not None, "the settings name a certificate"
                await self._listen_anew(tls)
                self._tls = tls
            except (ConfigError, OSError) as exc:
                _log.error("the certificate stays as it was: %s", exc)
            else:
                _log.info("the certificate was read again from %s", self._settings.tls_cert)

    async def _listen_anew(self, tls: ssl.SSLContext) -> None:
        """Put other TLS before the same sockets: connections that wait there are taken by it.

        The context in use is not changed: an authority that is no longer in the file would be
        trusted on, and the sessions of its clients be resumed. Raises OSError.
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
