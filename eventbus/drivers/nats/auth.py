"""The servers that NATS_URL names, and the credentials for each."""

import asyncio
import base64
import datetime
import re
import ssl
import time
from collections.abc import (
    Callable,
    Mapping,
)
from functools import partial
from pathlib import Path
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec
import nkeys  # type: ignore[import-untyped]
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from eventbus.config import Settings
from eventbus.drivers.nats.errors import (
    DRIVER,
    CredentialsError,
)
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
)
from eventbus.messages import json_decoder
from eventbus.urls import (
    BrokerAddress,
    parse_broker_address,
)

__all__ = [
    "Credentials",
    "Login",
    "SecureClient",
    "Servers",
    "check_seed",
    "make_login",
]


_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_PORT: Final = 4222
_OVER_HTTP: Final = ("ws", "wss")
"""Their default ports are HTTP's, and a path and query mean something."""


class Servers(NamedTuple):
    """The addresses of one cluster. Its repr has no secret."""

    addresses: tuple[BrokerAddress, ...]

    @classmethod
    def of(cls, nats_url: str) -> "Servers":
        """Read NATS_URL, addresses separated by commas; none if it is empty.

        Raises ConfigError, which does not quote it.
        """
        addresses: list[BrokerAddress] = []
        for entry in filter(None, map(str.strip, nats_url.split(","))):
            if addresses and "://" not in entry and "@" in entry:
                # A part of the address before it, whose password has a comma?
                raise _wrong(
                    "after a comma, an address with credentials needs its scheme; a comma in a "
                    "password is written %2C"
                )
            try:
                addresses.append(_address(entry))
            except ValueError as exc:
                raise _wrong(str(exc)) from None
        if nats_url and not addresses:  # such as "${A},${B}" of variables that are not set
            raise _wrong("it has no address")
        return cls(tuple(addresses))

    @property
    def schemes(self) -> frozenset[str]:
        """The schemes of their URLs."""
        return frozenset(address.scheme for address in self.addresses)

    @property
    def urls(self) -> list[str]:
        """The addresses without credentials."""
        return [address.url for address in self.addresses]

    @property
    def shown(self) -> str:
        """The addresses for logs and errors."""
        return ", ".join(address.shown for address in self.addresses)

    def credentials(self, netloc: str = "") -> Mapping[str, Any]:
        """User, password and token for the server at `host:port`, as nats-py's options.

        A server that is not named, or has no credentials, gets those of the first one that has
        some: servers of a cluster announce others, which share their users.
        """
        own = [a for a in self.addresses if a.url.partition("://")[2].partition("/")[0] == netloc]
        for address in (*own, *self.addresses):
            if address.user is not None:
                if address.password is None:
                    return {"user": None, "password": None, "token": address.user}
                return {"user": address.user, "password": address.password, "token": None}
        return {"user": None, "password": None, "token": None}


def _address(text: str) -> BrokerAddress:
    address = parse_broker_address(text, _SCHEMES, "nats")
    if address.scheme in _OVER_HTTP:
        return address
    if address.path not in ("", "/") or address.query:
        raise ValueError("it has a path or a query")
    [(host, port)] = address.hosts
    return address._replace(hosts=((host, port or _PORT),), path="")


def _wrong(problem: str) -> ConfigError:
    return ConfigError(
        f"NATS_URL=***: {problem}; allowed: nats://, tls://, ws:// or wss:// addresses, separated "
        "by commas, each host:port with user:password@ or token@ before it where needed",
        variable="NATS_URL",
    )


_MAX_BYTES: Final = 64 * 1024
# https://docs.nats.io/using-nats/developer/connecting/creds: each block between two lines of dashes
_BLOCK: Final = r"-{3,}[ \t]*BEGIN %s[ \t]*-{3,}\s+(\S+)\s+-{3,}[ \t]*END %s[ \t]*-{3,}"
_JWT: Final = re.compile(_BLOCK.replace("%s", "NATS USER JWT"))
_SEED: Final = re.compile(_BLOCK.replace("%s", "USER NKEY SEED"))


class _Nats(msgspec.Struct):
    type: str = ""


class _Claims(msgspec.Struct):
    """What a user's JWT says: `exp` in seconds since 1970, 0 for never."""

    sub: str = ""
    name: str = ""
    exp: int = 0
    nats: _Nats = msgspec.field(default_factory=_Nats)


_decode_claims: Final = json_decoder(_Claims)


class Credentials:
    """The file that NATS_CREDS names. Messages show only the user's name from it."""

    def __init__(self, path: str) -> None:
        """Nothing is read yet."""
        self._path = path
        self._jwt = b""
        self._key: Any = None
        self._claims = _Claims()

    def load(self) -> None:
        """Read the file for the next login. Raises CredentialsError, naming what is wrong."""
        text = _read("NATS_CREDS", self._path)
        found, seed = _JWT.search(text), _SEED.search(text)
        if found is None or seed is None:
            missing = "JWT" if found is None else "seed"
            raise self._error(
                f"holds no user's {missing}; it has to be a .creds file, as nsc makes"
            )
        claims = self._read_claims(found[1])
        try:
            key = nkeys.from_seed(bytearray(seed[1].encode()))
            public_key = key.public_key.decode()
        except (nkeys.NkeysError, ValueError) as exc:
            raise self._error("has an invalid seed") from exc
        if claims.sub != public_key:
            raise self._error("has the seed of another user than its JWT is for")
        self._jwt, self._key, self._claims = found[1].encode(), key, claims

    def sign(self, nonce: str) -> bytes:
        """The server's nonce, signed by the user's key: what nats-py asks for first."""
        signature: bytes = self._key.sign(nonce.encode())
        return base64.b64encode(signature)

    def jwt(self) -> bytes:
        """The user's JWT."""
        return self._jwt

    def explain(self) -> str:
        """Why a server may refuse these credentials."""
        claims = self._claims
        user = f"user {claims.name!r}" if claims.name else "its user"
        if 0 < claims.exp <= time.time():
            moment = datetime.datetime.fromtimestamp(claims.exp, datetime.UTC)
            why = f"{user} expired at {moment:%Y-%m-%dT%H:%M:%SZ}; put a new file in its place"
        else:
            why = (
                f"{user} or the account has been revoked or has expired, or is not of this "
                "server's operator"
            )
        return f"the server refuses the credentials of NATS_CREDS={self._path!r}: {why}"

    def _read_claims(self, token: str) -> _Claims:
        try:
            _, body, _ = token.split(".")  # header, claims, signature: RFC 7519 §3
            decoded = base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
            claims = _decode_claims(decoded)
        except (ValueError, msgspec.DecodeError) as exc:
            raise self._error("has a JWT that cannot be read") from exc
        if claims.nats.type != "user":
            raise self._error(f"has a JWT of type {claims.nats.type[:20]!r}, not of a user")
        return claims

    def _error(self, what: str) -> CredentialsError:
        return CredentialsError(f"NATS_CREDS={self._path!r} {what}")


def check_seed(path: str) -> None:
    """Raises CredentialsError where the file that NATS_NKEY names does not hold a seed."""
    try:
        nkeys.from_seed(bytearray(_read("NATS_NKEY", path).strip().encode())).wipe()
    except (nkeys.NkeysError, ValueError) as exc:
        raise CredentialsError(f"NATS_NKEY={path!r} does not hold the seed of an nkey") from exc


def _read(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise CredentialsError(
            f"{variable}={path!r} is not a file that can be read: {exc.strerror}"
        ) from exc
    if len(content) > _MAX_BYTES:
        raise CredentialsError(f"{variable}={path!r} is larger than {_MAX_BYTES:,} bytes")
    return content.decode("utf-8", "replace")


_OWN_TLS: Final = ("ws", "wss")
"""Schemes whose TLS is that of the transport, not of NATS's own protocol."""


class Login(NamedTuple):
    """The arguments for nats-py's `connect`, made once from the settings."""

    options: dict[str, Any]
    requires_tls: bool
    inbox_prefix: str
    """The prefix of reply subjects: each user has its own, so that no other can read its
    replies."""
    load: Callable[[], None]
    """Reads the user's file again before each login. Raises CredentialsError."""
    refusal: Callable[[], str]
    """The hint for a login that the server refuses."""


def _load_nothing() -> None:
    """A login with the credentials in the address, if any."""


def _refusal() -> str:
    return "the server refuses the credentials (in NATS_URL, NATS_CREDS or NATS_NKEY)"


_PLAIN: Final = Login(
    {}, requires_tls=False, inbox_prefix="_INBOX", load=_load_nothing, refusal=_refusal
)


class _SafeTransport(TcpTransport):
    """TCP whose loss is an OSError on any Python, which nats-py expects.

    On Python 3.12.1 and 3.13.0, asyncio raises a TypeError for `writelines` on a lost connection
    (https://github.com/python/cpython/issues/136234).
    """

    def __init__(self, connected: TcpTransport) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.__dict__.update(connected.__dict__)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more."""
        return self._io_writer is None or self._io_writer.is_closing()

    def writelines(self, payload: list[bytes]) -> None:
        """Write, or drop it when the connection is lost: `drain`, which follows, raises that.

        Joined, since asyncio takes three times as long for many small buffers.
        """
        if not self.is_lost:
            super().write(b"".join(payload))  # type: ignore[no-untyped-call]


class SecureClient(Client):
    """A client that does not log in over plain TCP if TLS is required.

    nats-py 2.16 turns to TLS only when the server says that it must, also for a tls:// address:
    an attacker in between could have the password sent in the clear.
    """

    def __init__(self, login: Login = _PLAIN, servers: Servers = Servers(())) -> None:  # noqa: B008 - immutable
        """`login` has its credentials; `servers` are those of NATS_URL with theirs."""
        super().__init__()
        self._login = login
        self._named_servers = servers

    async def _connect_to_server(self, s: Any) -> None:
        self._login.load()
        self.close_transport()
        await super()._connect_to_server(s)
        if type(self._transport) is TcpTransport:
            self._transport = _SafeTransport(self._transport)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except ConnectionError as exc:
            # The server's reason is lost when it has closed the connection before all was written.
            raise nats_errors.Error(
                f"the server closed the connection before the login ({exc}): it may accept no more "
                "(max_connections, or the limit of the account)"
            ) from exc

    def _connect_command(self) -> bytes:
        server = self._current_server
        is_plain = server is not None and server.uri.scheme not in _OWN_TLS
        if self._login.requires_tls and is_plain and not self._server_info.get("tls_required"):
            self.close_transport()
            raise nats_errors.SecureConnRequiredError
        # nats-py gets addresses without credentials, so that its errors cannot quote them.
        self.options.update(self._named_servers.credentials(server.uri.netloc if server else ""))
        _mark_tls(getattr(self._transport, "_io_writer", None))
        command: bytes = super()._connect_command()
        return command

    async def close(self) -> None:
        """Close; what waits to be written is dropped when there is no connection for it."""
        transport = self._transport
        if not self.is_connected or (isinstance(transport, _SafeTransport) and transport.is_lost):
            self._pending, self._pending_data_size = [], 0
        await super().close()

    def close_transport(self) -> None:
        """Release an attempt that was refused: nats-py leaves its socket open."""
        if isinstance(self._transport, TcpTransport):
            self._transport.close()  # type: ignore[no-untyped-call]


def _mark_tls(writer: asyncio.StreamWriter | None) -> None:
    """Let asyncio's protocol know that there is TLS under it, which nats-py does not report to it.

    Otherwise it asks to stay half open at the end of each connection, and asyncio warns on stderr
    that TLS cannot do that.
    """
    if writer is not None and writer.get_extra_info("sslcontext") is not None:
        protocol: Any = writer.transport.get_protocol()
        if protocol is not None:  # the server has not hung up yet
            protocol._over_ssl = True  # noqa: SLF001 - asyncio has no public way


def make_login(settings: Settings) -> Login:
    """Read what the settings name.

    Raises ConnectionFailed for files that cannot be used, and ConfigError for settings that
    contradict each other.
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
            "offers no TLS",
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
                f"NATS_CERT={cert!r} and NATS_KEY={key!r} are not a certificate and its key: {exc}",
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
