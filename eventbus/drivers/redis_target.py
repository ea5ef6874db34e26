"""Where Redis is and how to speak to it: settings and URLs, checked before anything connects."""

import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection

from eventbus.config import Settings
from eventbus.errors import ConfigError

__all__ = ["Address", "Target", "read_address"]

CLIENT_NAME: Final = "eventbus"
_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}


class Address(NamedTuple):
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Target(NamedTuple):
    """All that is needed to connect. Its repr has no secret."""

    kind: str
    """Empty for one server, `cluster` or `sentinel`."""
    addresses: tuple[Address, ...]
    """The server, some nodes of the cluster, or the sentinels."""
    database: int
    service: str
    timeout: float
    """Seconds for each step of one connection's opening."""
    login: dict[str, Any]
    sentinel_login: dict[str, Any]
    tls: dict[str, Any] | None
    wait_replicas: int
    """How many replicas must have a message before it counts as stored."""

    def __repr__(self) -> str:
        return f"Target({self.kind or 'server'}, {', '.join(map(str, self.addresses))})"

    @classmethod
    def of(cls, settings: Settings) -> "Target":
        """Raises ConfigError naming the variable."""
        if not settings.redis_enabled:
            raise _error("ENABLED", "BROADCAST_DRIVER=redis needs BROADCAST_REDIS_ENABLED=true")
        login = {"username": settings.redis_username, "password": settings.redis_password}
        sentinel_login = {"password": settings.redis_sentinel_password}
        database, service, secure = (
            settings.redis_database,
            settings.redis_sentinel_service,
            settings.redis_tls,
        )
        kind = (
            "cluster" if settings.redis_cluster else "sentinel" if settings.redis_sentinels else ""
        )
        if settings.redis_url:
            url = _split(settings.redis_url)
            kind = url.scheme.partition("+")[2]
            secure = url.scheme.startswith("rediss")
            login, addresses = _netloc(url, kind)
            service, database = _path(url, kind, service)
        elif kind == "sentinel":
            addresses = tuple(
                read_address(text, "SENTINELS", _PORTS[kind]) for text in settings.redis_sentinels
            )
        else:
            if "/" in settings.redis_host or not settings.redis_host:
                raise _error(
                    "HOST", "BROADCAST_REDIS_HOST is a name or address; a URL belongs in "
                    "BROADCAST_REDIS_URL"
                )  # fmt: skip
            addresses = (Address(settings.redis_host, settings.redis_port),)
        if kind == "cluster" and database:
            raise _error(
                "DATABASE", f"BROADCAST_REDIS_DATABASE={database}: a cluster has database 0 only"
            )
        if settings.redis_cluster and settings.redis_sentinels:
            raise _error(
                "CLUSTER",
                "BROADCAST_REDIS_CLUSTER and BROADCAST_REDIS_SENTINELS exclude each other",
            )
        return cls(
            kind, addresses, database, service, settings.connect_timeout,
            _given(login), _given(sentinel_login), _tls(settings) if secure else None,
            settings.redis_wait_replicas,
        )  # fmt: skip

    def connection(self, address: Address, *, sentinel: bool = False) -> Connection:
        """A connection to one server of it, not yet open."""
        options: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": 0 if sentinel else self.database,
            "protocol": 2,
            "client_name": CLIENT_NAME,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            **(self.sentinel_login if sentinel else self.login),
        }
        if self.tls is not None:
            return SSLConnection(**options, **self.tls)
        return Connection(**options)


def read_address(text: str, variable: str, port: int) -> Address:
    """`host`, `host:port` or `[host]:port`. Raises ConfigError for BROADCAST_REDIS_<variable>."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and not parts.path and parts.username is None:
            return Address(parts.hostname, parts.port or port)
    except ValueError:
        pass
    shown = "***" if variable == "URL" else repr(text)
    raise _error(
        variable, f"BROADCAST_REDIS_{variable}: {shown} is not host:port with a port of 1 to 65535"
    )


def _error(variable: str, message: str) -> ConfigError:
    return ConfigError(message, variable=f"BROADCAST_REDIS_{variable}")


def _split(text: str) -> SplitResult:
    schemes = [f"{base}{kind and '+'}{kind}" for base in ("redis", "rediss") for kind in _PORTS]
    url = urlsplit(text)
    if url.scheme not in schemes or url.query or url.fragment:
        raise _error(
            "URL", f"BROADCAST_REDIS_URL=***: allowed are {', '.join(f'{s}://' for s in schemes)} "
            "with hosts and a path, and no query"
        )  # fmt: skip
    return url


def _netloc(url: SplitResult, kind: str) -> tuple[dict[str, str], tuple[Address, ...]]:
    user, _, hosts = url.netloc.rpartition("@")
    name, _, password = user.partition(":")
    addresses = tuple(read_address(host, "URL", _PORTS[kind]) for host in hosts.split(","))
    if len(addresses) > 1 and not kind:
        raise _error(
            "URL", "BROADCAST_REDIS_URL=***: several hosts need redis+cluster:// or "
            "redis+sentinel://"
        )  # fmt: skip
    return {"username": unquote(name), "password": unquote(password)}, addresses


def _path(url: SplitResult, kind: str, service: str) -> tuple[str, int]:
    """Service and database."""
    parts = [unquote(part) for part in url.path.split("/") if part]
    if kind == "sentinel" and parts:
        service = parts.pop(0)
    number = parts.pop(0) if parts else "0"
    if parts or not (number.isascii() and number.isdecimal()):
        raise _error(
            "URL", "BROADCAST_REDIS_URL=***: its path is a database number, after a service's name "
            "for sentinels"
        )  # fmt: skip
    return service, int(number)


def _given(login: dict[str, str]) -> dict[str, Any]:
    return {name: value for name, value in login.items() if value}


def _tls(settings: Settings) -> dict[str, Any]:
    files = {
        "ssl_ca_certs": ("TLS_CA", settings.redis_tls_ca),
        "ssl_certfile": ("TLS_CERT", settings.redis_tls_cert),
        "ssl_keyfile": ("TLS_KEY", settings.redis_tls_key),
    }
    options: dict[str, Any] = {}
    for option, (variable, path) in files.items():
        if not path:
            continue
        try:
            Path(path).read_bytes()
        except OSError as exc:
            raise _error(
                variable, f"BROADCAST_REDIS_{variable}={path!r} cannot be read: {exc.strerror}"
            ) from exc
        options[option] = path
    options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    return options
