"""TLS of a node: its own certificate, and the certificates that it requires of clients."""

import logging
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import (
    Handler,
    Middleware,
)

from eventbus.attempts import RateLimitedLog
from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings
from eventbus_edge.problem import Problem

__all__ = ["client_certificates", "tls_context"]


_log = logging.getLogger(__name__)

_OPEN: Final = frozenset({"/healthz", "/readyz"})
"""Paths that need no client certificate: Kubernetes probes cannot send one."""


def tls_context(
    settings: EdgeSettings, on_fault: Callable[[str], None] = lambda _reason: None
) -> ssl.SSLContext | None:
    """The context for TLS connections; None without a certificate. Raises ConfigError.

    `on_fault` gets OpenSSL's reason of each handshake that fails.
    """
    if not settings.tls_cert:
        for variable, value in (
            ("BROADCAST_TLS_KEY", settings.tls_key),
            ("BROADCAST_TLS_CLIENT_CA", settings.tls_client_ca),
        ):
            if value:
                raise ConfigError(
                    f"{variable} is set without BROADCAST_TLS_CERT: TLS needs a certificate",
                    variable="BROADCAST_TLS_CERT",
                )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.sslobject_class = _reporting(on_fault)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"BROADCAST_TLS_CERT={settings.tls_cert!r}, BROADCAST_TLS_KEY={settings.tls_key!r}: "
            f"{exc.strerror or exc}; allowed: a PEM file with the certificate and its chain, "
            "and one with its private key",
            variable="BROADCAST_TLS_CERT",
        ) from None
    if settings.tls_client_ca:
        # A wrong certificate ends the handshake. A missing one is left to `client_certificates`,
        # whose response says what is missing, and which lets probes pass.
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"BROADCAST_TLS_CLIENT_CA={settings.tls_client_ca!r}: {exc.strerror or exc}; "
                "allowed: a PEM file with the CA certificates that sign client certificates",
                variable="BROADCAST_TLS_CLIENT_CA",
            ) from None
    return context


def client_certificates() -> Middleware:
    """A middleware that requires a client certificate, except for /healthz and /readyz."""
    refusals = RateLimitedLog(_log)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN or request.get_extra_info("peercert"):
            return await handler(request)
        refusals.warning(
            "refused a request without a client certificate signed by BROADCAST_TLS_CLIENT_CA, "
            "from %s",
            request.remote or "unknown",
        )
        raise Problem("certificate_required", "this node requires a client certificate")

    return check


def _reporting(on_fault: Callable[[str], None]) -> type[ssl.SSLObject]:
    """TLS connections that report failed handshakes, which asyncio does not."""

    class Reporting(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # the handshake is in progress
            except ssl.SSLError as exc:
                on_fault(getattr(exc, "verify_message", None) or exc.reason or str(exc))
                raise

    return Reporting
