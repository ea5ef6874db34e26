"""Web origins (RFC 6454), and whether one is allowed. Pure."""

import ipaddress
import re
from collections.abc import Sequence
from typing import (
    Final,
    NamedTuple,
)

from eventbus.errors import ConfigError

__all__ = [
    "ALLOWED_ENTRIES",
    "AllowedOrigins",
    "Origin",
    "instead_of",
    "is_allowed_entry",
    "parse_host",
    "parse_origin",
]

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
"""The last label of a host that can only be an IPv4 address (https://url.spec.whatwg.org, 3.5)."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ANY_SUBDOMAIN: Final = "*."
_ANY_PORT: Final = ":*"

ALLOWED_ENTRIES: Final = (
    "scheme://host[:port] without quotes, path or trailing slash; https://*.example.com for all "
    "subdomains; http://localhost:* for all ports; a bare host; * for any origin; null. Several "
    "are separated by commas"
)
"""What an entry of CORS_ALLOWED_ORIGINS may be."""


class Origin(NamedTuple):
    """A web origin (RFC 6454). `port` is the scheme's default where it has one, else None."""

    scheme: str
    host: str
    port: int | None


def parse_origin(text: str) -> Origin | None:
    """Parse `scheme://host[:port]`; None for anything else."""
    scheme, separator, authority = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return None
    scheme = scheme.lower()
    parsed = parse_host(authority, _DEFAULT_PORTS.get(scheme))
    return None if parsed is None else Origin(scheme, *parsed)


class _Entry(NamedTuple):
    """What an entry of the allowed origins stands for."""

    schemes: tuple[str, ...]
    host: str
    port: int | None
    """None: the default port of the origin's scheme."""
    subdomains: bool
    """Whether it stands for all subdomains of `host`, at any depth, and not for `host` itself."""
    any_port: bool

    def matches(self, origin: Origin) -> bool:
        if origin.scheme not in self.schemes:
            return False
        port = _DEFAULT_PORTS.get(origin.scheme) if self.port is None else self.port
        if port != origin.port and not self.any_port:
            return False
        if self.subdomains:
            return origin.host.endswith(f".{self.host}") and origin.host[0] != "."
        return origin.host == self.host


def _parse_entry(text: str) -> _Entry | None:
    """An origin or a bare host, which stands for http and https; None for anything else."""
    scheme, separator, authority = text.partition("://")
    if not separator:
        schemes, authority = tuple(_DEFAULT_PORTS), text
    elif _SCHEME.fullmatch(scheme):
        schemes = (scheme.lower(),)
    else:
        return None
    subdomains, any_port = authority.startswith(_ANY_SUBDOMAIN), authority.endswith(_ANY_PORT)
    parsed = parse_host(authority.removeprefix(_ANY_SUBDOMAIN).removesuffix(_ANY_PORT))
    if parsed is None:
        return None
    host, port = parsed
    if not _is_sent(host) or (subdomains and _is_address(host)) or (any_port and port is not None):
        return None
    return _Entry(schemes, host, port, subdomains, any_port)


def _is_sent(host: str) -> bool:
    """Whether browsers send this host, in lower case: they know no other spelling of it."""
    if _is_address(host):
        return _is_usual_address(host)
    labels = host.removesuffix(".").split(".")
    return all(labels) and any(map(str.isalnum, host))


def _is_address(host: str) -> bool:
    """Whether a host can only be an IP address, valid or not."""
    last = host.removesuffix(".").rpartition(".")[2]
    return host[0] == "[" or _NUMBER.fullmatch(last) is not None


def _is_usual_address(host: str) -> bool:
    """Whether an IP address is valid, and written as browsers write it."""
    try:
        if host[0] != "[":
            return str(ipaddress.IPv4Address(host)) == host
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    # Versions of Python differ in the form of mapped addresses; browsers never write a dot.
    return "." not in host and (address.ipv4_mapped is not None or f"[{address}]" == host)


def is_allowed_entry(entry: str) -> bool:
    """Whether an entry of the allowed origins could ever match an origin."""
    return entry in ("*", "null") or _parse_entry(entry) is not None


def instead_of(entry: str) -> str:
    """What to write instead of an entry that is not allowed."""
    scheme, separator, authority = entry.rpartition("://")
    meant = f"{scheme}{separator}*{authority}"
    if authority.startswith(".") and is_allowed_entry(meant):  # as in Django's ALLOWED_HOSTS
        return f"write {meant!r} for all subdomains; allowed: {ALLOWED_ENTRIES}"
    return f"allowed: {ALLOWED_ENTRIES}"


class AllowedOrigins:
    """The origins that a node allows, in addition to its own."""

    def __init__(self, entries: Sequence[str]) -> None:
        """`entries` are described by ALLOWED_ENTRIES. Raises ConfigError for any other entry."""
        for entry in entries:
            if not is_allowed_entry(entry):
                raise ConfigError(
                    f"CORS_ALLOWED_ORIGINS has {entry!r}, which is not an origin that a browser "
                    f"sends; {instead_of(entry)}",
                    variable="CORS_ALLOWED_ORIGINS",
                )
        self._is_any = "*" in entries
        self._has_null = "null" in entries
        self._entries = [parsed for entry in entries if (parsed := _parse_entry(entry))]

    def allows(self, origin: str | None, host: str) -> bool:
        """Whether a request may come from `origin`, its Origin header (None: it has none).

        `host` is the request's Host header. An origin with the same name and port is allowed. A
        missing port is the default of the origin's scheme, because behind a proxy that terminates
        TLS the node does not know its own scheme. `*` stands for every origin except `null`, which
        needs an entry of its own.
        """
        if origin is None:
            return True
        if origin == "null":
            return self._has_null
        given = parse_origin(origin)
        if given is None:
            return False
        return (
            self._is_any
            or _is_host(given, host)
            or any(entry.matches(given) for entry in self._entries)
        )


def _is_host(origin: Origin, host: str) -> bool:
    if origin.scheme not in _DEFAULT_PORTS:  # an app's own scheme, such as capacitor://localhost
        return False
    return parse_host(host, _DEFAULT_PORTS.get(origin.scheme)) == (origin.host, origin.port)


def parse_host(text: str, default_port: int | None = None) -> tuple[str, int | None] | None:
    """The name, in lower case, and the port of a Host header; None if it is not valid."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    host, digits = match.groups()
    port = int(digits) if digits else default_port
    if port is not None and not 0 < port <= 65535:
        return None
    return host.lower(), port
