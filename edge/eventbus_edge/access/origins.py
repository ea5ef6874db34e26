"""Web origins (RFC 6454), and whether one is allowed. Pure."""

import re
from collections.abc import Sequence
from typing import (
    Final,
    NamedTuple,
)

__all__ = ["Origin", "check_origin", "is_origin", "parse_host", "parse_origin"]

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


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


def is_origin(entry: str) -> bool:
    """Whether `check_origin` could ever match an entry of the allowed origins."""
    if entry in ("*", "null"):
        return True
    return (parse_origin(entry) if "://" in entry else parse_host(entry, None)) is not None


def check_origin(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Whether a request may come from `origin`, its Origin header (None: it has none).

    `host` is the request's Host header. An origin with the same name and port is allowed. A missing
    port is the default of the origin's scheme, because behind a proxy that terminates TLS the node
    does not know its own scheme. `allowed` has origins, bare hosts (`app.example.com:3000`, for
    http and https), `*` for every origin except `null`, and `null`.
    """
    if origin is None:
        return True
    if origin == "null":
        return "null" in allowed
    given = parse_origin(origin)
    if given is None:
        return False
    if "*" in allowed or _is_host(given, host):
        return True
    return any(
        parse_origin(entry) == given if "://" in entry else _is_host(given, entry)
        for entry in allowed
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
