"""The address and options of Redis, from settings and URLs, checked before connecting."""

import re
import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from redis.asyncio.connection import Connection, SSLConnection

from eventbus.config import Settings
from eventbus.errors import ConfigError
from eventbus.urls import BrokerAddress, parse_broker_address, parse_host

__all__ = ["Address", "Target", "read_address"]


CLIENT_NAME: Final = "eventbus"
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}


class Address(NamedTuple):
    """The address of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Target(NamedTuple):
    """Everything needed to connect. Its repr has no secret."""

    kind: str
    """Empty for one server, `cluster` or `sentinel`."""
    addresses: tuple[Address, ...]
    """The server, some nodes of the cluster, or the sentinels."""
    database: int
    service: str
    timeout: float
    """Seconds for each step of opening a connection."""
    login: dict[str, Any]
    sentinel_login: dict[str, Any]
    tls: dict[str, Any] | None
    wait_replicas: int
    """How many replicas must have a message before it counts as stored."""

    def __repr__(self) -> str:
        return f"Target({self.kind or 'server'}, {', '.join(map(str, self.addresses))})"

    @classmethod
    def of(cls, settings: Settings) -> "Target":
        """The target of the settings. Raises ConfigError naming the variable."""
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
            url = _parse(settings.redis_url)
            kind = url.scheme.partition("+")[2]
            secure = url.scheme.startswith("rediss")
            login = {"username": url.user or "", "password": url.password or ""}
            addresses = tuple(Address(host, port or _PORTS[kind]) for host, port in url.hosts)
            service, database = _path(url, kind, service)
        elif kind == "sentinel":
            addresses = tuple(
                read_address(text, "SENTINELS", _PORTS[kind]) for text in settings.redis_sentinels
            )
        else:
            if not settings.redis_host or set(settings.redis_host) & set("/@?#"):
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
        """A connection to one of its servers, not yet open."""
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
        host, given = parse_host(text)
    except ValueError:
        shown = "***" if "@" in text else repr(text)
        raise _error(
            variable,
            f"BROADCAST_REDIS_{variable}: {shown} is not host:port with a port of 1 to 65535",
        ) from None
    return Address(host, given or port)


def _error(variable: str, message: str) -> ConfigError:
    return ConfigError(message, variable=f"BROADCAST_REDIS_{variable}")


def _parse(text: str) -> BrokerAddress:
    schemes = [f"{base}{kind and '+'}{kind}" for base in ("redis", "rediss") for kind in _PORTS]
    try:
        url = parse_broker_address(text, schemes)
    except ValueError as exc:
        raise _bad_url(str(exc)) from None
    if url.query:
        raise _bad_url("it has a query")
    if len(url.hosts) > 1 and not url.scheme.partition("+")[2]:
        raise _bad_url("several hosts need redis+cluster:// or redis+sentinel://")
    return url


def _bad_url(problem: str) -> ConfigError:
    return _error(
        "URL",
        f"BROADCAST_REDIS_URL=***: {problem}; allowed: redis://, rediss://, redis+cluster://, "
        "redis+sentinel://, rediss+cluster:// or rediss+sentinel:// with user:password@ where "
        "needed, host:port and /database",
    )


def _path(url: BrokerAddress, kind: str, service: str) -> tuple[str, int]:
    """Service and database."""
    parts = [unquote(part) for part in url.path.split("/") if part]
    if kind == "sentinel" and parts:
        service = parts.pop(0)
    number = parts.pop(0) if parts else "0"
    if parts or not _NUMBER.fullmatch(number):
        raise _bad_url("its path is not a database number, after a service's name for sentinels")
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
