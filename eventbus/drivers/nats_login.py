"""How a client proves who it is to NATS, and how it knows the server: TLS, certificates, keys."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from eventbus.config import Settings
from eventbus.drivers.nats_creds import Credentials, CredentialsError, check_seed
from eventbus.drivers.nats_errors import DRIVER
from eventbus.drivers.nats_servers import Servers
from eventbus.errors import ConfigError, ConnectionFailed

__all__ = ["Login", "SecureClient", "make_login"]

_OWN_TLS: Final = ("ws", "wss")
"""Where TLS is of the transport, not of NATS's own protocol."""


class Login(NamedTuple):
    """What nats-py's `connect` is given, made once from the settings."""

    options: dict[str, Any]
    requires_tls: bool
    inbox_prefix: str
    """What reply subjects begin with: a user's own, so that no other may read its answers."""
    load: Callable[[], None]
    """Reads the user's file again before each login. Raises CredentialsError."""
    refusal: Callable[[], str]
    """What to say when the server refuses the login."""


def _load_nothing() -> None:
    """A login by what the address says, or none."""


def _refusal() -> str:
    return "the server refuses the credentials (in NATS_URL, NATS_CREDS or NATS_NKEY)"


_PLAIN: Final = Login(
    {}, requires_tls=False, inbox_prefix="_INBOX", load=_load_nothing, refusal=_refusal
)


class SecureClient(Client):
    """A client that does not log in over plain TCP where TLS is asked for.

    nats-py 2.16 turns to TLS only when the server says that it must, also for a tls:// address:
    whoever sits between could have the password sent in the clear.
    """

    login = _PLAIN
    """What it logs in by; set before `connect` is called."""
    known_servers = Servers(())
    """The servers that were named to it, with their credentials; set with it."""

    async def _connect_to_server(self, s: Any) -> None:
        self.login.load()
        self.close_transport()
        await super()._connect_to_server(s)

    def _connect_command(self) -> bytes:
        server = self._current_server
        is_plain = server is not None and server.uri.scheme not in _OWN_TLS
        if self.login.requires_tls and is_plain and not self._server_info.get("tls_required"):
            self.close_transport()
            raise nats_errors.SecureConnRequiredError
        # nats-py gets addresses without credentials, so that no error of its can quote them.
        self.options.update(self.known_servers.credentials(server.uri.netloc if server else ""))
        _tell_protocol(getattr(self._transport, "_io_writer", None))
        command: bytes = super()._connect_command()
        return command

    def close_transport(self) -> None:
        """Let go of an attempt that was refused: nats-py leaves its socket open, one for each."""
        if isinstance(self._transport, TcpTransport):
            self._transport.close()  # type: ignore[no-untyped-call]


def _tell_protocol(writer: asyncio.StreamWriter | None) -> None:
    """Let asyncio's protocol know that there is TLS under it, of which nats-py does not tell it.

    At the end of each connection it would ask to stay half open, and asyncio warn on stderr that
    TLS has no such thing.
    """
    if writer is not None and writer.get_extra_info("sslcontext") is not None:
        protocol: Any = writer.transport.get_protocol()
        if protocol is not None:  # the server has not hung up yet
            protocol._over_ssl = True  # noqa: SLF001 - asyncio has no public way


def make_login(settings: Settings) -> Login:
    """Read what the settings name.

    Raises ConnectionFailed for files that cannot be used, and ConfigError for settings that do not
    go together.
    """
    options: dict[str, Any] = {"inbox_prefix": settings.nats_inbox_prefix}
    if settings.nats_creds and settings.nats_nkey:
        raise ConfigError(
            "NATS_CREDS and NATS_NKEY are both set; allowed: one of them", variable="NATS_NKEY"
        )
    load: Callable[[], None] = _load_nothing
    refusal: Callable[[], str] = _refusal
    if settings.nats_creds:
        credentials = Credentials(settings.nats_creds)
        load, refusal = credentials.load, credentials.explain
        options["signature_cb"], options["user_jwt_cb"] = credentials.sign, credentials.jwt
    if settings.nats_nkey:
        load = partial(check_seed, settings.nats_nkey)
        options["nkeys_seed"] = settings.nats_nkey
    try:
        load()
    except CredentialsError as exc:
        raise ConnectionFailed(str(exc), driver=DRIVER) from exc
    schemes = Servers.of(settings.nats_url).schemes
    has_files = bool(settings.nats_ca or settings.nats_cert or settings.nats_key)
    requires_tls = has_files or "tls" in schemes
    if requires_tls and not schemes:
        raise ConfigError(
            "NATS_CA, NATS_CERT or NATS_KEY is set, but NATS_URL is empty: the embedded server "
            "speaks no TLS",
            variable="NATS_URL",
        )
    if requires_tls or "wss" in schemes:
        options["tls"] = _context(settings)
    return Login(options, requires_tls, settings.nats_inbox_prefix, load, refusal)


def _context(settings: Settings) -> ssl.SSLContext:
    if bool(settings.nats_cert) != bool(settings.nats_key):
        missing = "NATS_KEY" if settings.nats_cert else "NATS_CERT"
        raise ConfigError(
            f"{missing} is missing: a client certificate and its key are set together",
            variable=missing,
        )
    authority = _file("NATS_CA", settings.nats_ca) if settings.nats_ca else None
    try:
        context = ssl.create_default_context(cafile=authority)
    except (ssl.SSLError, OSError) as exc:
        raise ConnectionFailed(
            f"NATS_CA={settings.nats_ca!r} holds no certificate: {exc}", driver=DRIVER
        ) from exc
    if settings.nats_cert:
        cert, key = _file("NATS_CERT", settings.nats_cert), _file("NATS_KEY", settings.nats_key)
        try:
            context.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as exc:
            raise ConnectionFailed(
                f"NATS_CERT={cert!r} and NATS_KEY={key!r} are no certificate with its key: {exc}",
                driver=DRIVER,
            ) from exc
    return context


def _file(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb"):
            return path
    except OSError as exc:
        raise ConnectionFailed(
            f"{variable}={path!r} is not a file that can be read: {exc.strerror}", driver=DRIVER
        ) from exc
