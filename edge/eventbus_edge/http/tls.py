"""TLS of a node: its certificate, and the certificates that it demands of clients."""

import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import (
    Handler,
    Middleware,
)

from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings
from eventbus_edge.problem import Problem

__all__ = ["client_certificates", "log_seldom", "tls_context"]


_log = logging.getLogger(__name__)

_OPEN: Final = frozenset({"/healthz", "/readyz"})
"""What answers without a client's certificate: Kubernetes' probes cannot show one."""
_LOG_EVERY_S: Final = 10.0


def tls_context(
    settings: EdgeSettings, on_fault: Callable[[str], None] = lambda _reason: None
) -> ssl.SSLContext | None:
    """What TLS connections are made with; None without a certificate. Raises ConfigError.

    `on_fault` is told, in OpenSSL's words, why a handshake has failed.
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
    context.sslobject_class = _telling(on_fault)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"BROADCAST_TLS_CERT={settings.tls_cert!r}, BROADCAST_TLS_KEY={settings.tls_key!r}: "
            f"{exc.strerror or exc}; allowed: a PEM file with the certificate and those that sign "
            "it, and one with its private key",
            variable="BROADCAST_TLS_CERT",
        ) from None
    if settings.tls_client_ca:
        # A wrong certificate ends the handshake. Without one `client_certificates` answers, which
        # can tell the client what is missing, and leaves the addresses of probes open.
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"BROADCAST_TLS_CLIENT_CA={settings.tls_client_ca!r}: {exc.strerror or exc}; "
                "allowed: a PEM file with the certificates of who signs those of clients",
                variable="BROADCAST_TLS_CLIENT_CA",
            ) from None
    return context


def log_seldom(message: str) -> Callable[[str], None]:
    """A function that logs a warning of (how many, the last of them), at most every 10 seconds."""
    logged_at, unlogged = float("-inf"), 0

    def tell(last: str) -> None:
        nonlocal logged_at, unlogged
        unlogged += 1
        now = time.monotonic()
        if now - logged_at >= _LOG_EVERY_S:
            _log.warning(message, unlogged, last)
            logged_at, unlogged = now, 0

    return tell


def client_certificates() -> Middleware:
    """A middleware that refuses whoever has shown no certificate, /healthz and /readyz excepted."""
    tell = log_seldom(
        "%d requests refused for want of a client certificate that BROADCAST_TLS_CLIENT_CA has "
        "signed; the last from %s"
    )

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN or request.get_extra_info("peercert"):
            return await handler(request)
        tell(request.remote or "unknown")
        raise Problem("certificate_required", "this node wants a client certificate")

    return check


def _telling(on_fault: Callable[[str], None]) -> type[ssl.SSLObject]:
    """TLS connections that tell of handshakes that fail: event loops keep that to themselves."""

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # it is under way
            except ssl.SSLError as exc:
                on_fault(getattr(exc, "verify_message", None) or exc.reason or str(exc))
                raise

    return Telling
