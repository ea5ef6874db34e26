"""URLs that may contain credentials: errors never quote them, and logs show them masked.

And the proxies of outgoing HTTP connections: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
"""

import contextlib
import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from eventbus.errors import ConfigError

__all__ = [
    "BrokerAddress",
    "fault_text",
    "is_web_address",
    "mask_url",
    "parse_broker_address",
    "parse_host",
    "proxy_for",
]

MASK: Final = "***"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_COMMON_SCHEMES: Final = {
    "http", "https", "nats", "tls", "tcp", "ws", "wss", "redis", "rediss", "amqp", "kafka", "mqtt",
}  # fmt: skip
_HOSTS: Final = re.compile(r"((\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?(,(?!$)|$))+")
_SEPARATED: Final = re.compile(r"[;\s][a-z]+://", re.IGNORECASE)
"""Another address, after something that is not a comma."""
_COMMAS: Final = "it has a semicolon or white space: addresses are separated by commas"
_NO_HOST: Final = "it does not name a host, with or without a port of 1 to 65535"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class BrokerAddress(NamedTuple):
    """A parsed address of a broker. Its repr has no secret."""

    scheme: str
    user: str | None
    """Decoded; None without credentials. Without a password it may be a token."""
    password: str | None
    hosts: tuple[tuple[str, int | None], ...]
    """One or more hosts with their ports."""
    path: str
    query: str

    def __repr__(self) -> str:
        return f"BrokerAddress({self.shown!r})"

    @property
    def url(self) -> str:
        """The address without credentials."""
        return self._joined("", self.query)

    @property
    def shown(self) -> str:
        """The address for logs and errors."""
        return self._joined("" if self.user is None else f"{MASK}@", self.query and MASK)

    def _joined(self, credentials: str, query: str) -> str:
        hosts = ",".join(map(_netloc, self.hosts))
        return f"{self.scheme}://{credentials}{hosts}{self.path}{query and '?'}{query}"


def parse_broker_address(
    text: str, schemes: Collection[str], default_scheme: str = ""
) -> BrokerAddress:
    """Parse `scheme://user:password@host:port,host:port/path?query`.

    Everything before the last `@` is credentials, percent-encoded or not. So a password may contain
    `#`, `/`, `?`, `@` and `:`, and nothing that parses the rest sees it. `default_scheme` replaces
    a missing scheme. Raises ValueError, whose text does not quote the address.
    """
    if _CONTROL.search(text):
        raise ValueError("it has a control character, or is not UTF-8")
    if text[:1] in {'"', "'"}:
        raise ValueError("it is in quotes: remove them")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = default_scheme, text
    scheme = scheme.lower()
    if scheme not in schemes:
        # Anything else could be a part of a password.
        named = f"is {scheme}://," if scheme in _COMMON_SCHEMES else "is"
        raise ValueError(f"its scheme {named} not one of {', '.join(schemes)}")
    if _SEPARATED.search(rest):
        raise ValueError(_COMMAS)
    credentials, at, rest = rest.rpartition("@")
    user = password = None
    if credentials:
        name, colon, secret = credentials.partition(":")
        user, password = _decoded(name), _decoded(secret) if colon else None
    elif at:
        raise ValueError("it has an @ and nothing before it")
    if re.search(r"[;\s]", re.split(r"[/?#]", rest, maxsplit=1)[0]):
        raise ValueError(_COMMAS)
    parts = _split(f"{scheme}://{rest}")
    if parts.fragment or rest.endswith("#"):
        raise ValueError("it has a fragment (#)")
    hosts = tuple(map(parse_host, parts.netloc.split(",")))
    return BrokerAddress(scheme, user, password, hosts, parts.path, parts.query)


def parse_host(text: str) -> tuple[str, int | None]:
    """Parse `host`, `host:port` or `[host]:port`. Raises ValueError, which does not quote it."""
    parts = _split(f"//{text}")
    host, port = parts.hostname, parts.port
    is_whole = parts.netloc == text and parts.username is None
    if not host or not is_whole or _CONTROL.search(text) or re.search(r"\s", text):
        raise ValueError(_NO_HOST)
    return host, port


def is_web_address(url: str, schemes: Collection[str] = ("http", "https")) -> bool:
    """Whether a URL has one of the schemes, a host, and no invalid port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def mask_url(url: str) -> str:
    """A URL for logs and errors: without user, password, query and fragment.

    A URL in which the end of a password is uncertain is masked entirely.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if _HOSTS.fullmatch(url) else MASK
    if not _SCHEME.fullmatch(scheme):
        return MASK
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    _, at, hosts = authority.rpartition("@")
    if "@" in after or not _HOSTS.fullmatch(hosts):
        return MASK
    path, question, _ = after.partition("#")[0].partition("?")
    return f"{scheme}://{at and f'{MASK}@'}{hosts}{path}{question and f'?{MASK}'}"


def fault_text(exc: BaseException) -> str:
    """The text of a client library's error, or only its type if the text may quote a URL.

    With the type comes the HTTP status, if there is one, such as that of a proxy.
    """
    text = str(exc)
    if text and not set(text) & set("/@?#"):
        return text
    status = getattr(exc, "status", None)
    return type(exc).__name__ + (f" (HTTP {status})" if isinstance(status, int) else "")


def _netloc(server: tuple[str, int | None]) -> str:
    host, port = server
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _split(url: str) -> SplitResult:
    # urllib's error quotes the URL, and would stay the context of an error raised in `except`.
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if "," in parts.netloc or parts.port is None or parts.port > 0:
            return parts
    raise ValueError(_NO_HOST)


def _decoded(text: str) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        return unquote(text, errors="strict")
    raise ValueError("its percent-encoded credentials are not UTF-8")


# Proxies. aiohttp's own `trust_env` ignores HTTPS_PROXY for wss:// and networks in NO_PROXY, and
# would send credentials of ~/.netrc to any host.

_PORTS: Final = {"http": 80, "https": 443}


def proxy_for(url: str) -> str | None:
    """The proxy for a connection to `url`; None for a direct one. Raises ConfigError.

    HTTPS_PROXY is also for wss://. Hosts in NO_PROXY, this machine, and ws:// have no proxy: most
    proxies pass WebSockets only through a tunnel, which is for TLS.
    """
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - slow to import

    parts = urlsplit(url)
    scheme, host = parts.scheme.replace("wss", "https"), parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if scheme not in _PORTS or not proxy:
        return None
    port = parts.port or _PORTS[scheme]
    address = _address(host)
    if address is None:
        is_direct = host.removesuffix(".") == "localhost" or bool(proxy_bypass(f"{host}:{port}"))
    else:
        is_direct = address.is_loopback or _has(proxies.get("no", "").split(","), address, port)
    return None if is_direct else _checked(proxy, f"{scheme.upper()}_PROXY")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _has(entries: Iterable[str], address: _Address, port: int) -> bool:
    """Whether entries of NO_PROXY cover an address: `*`, addresses or networks; not names."""
    for entry in map(str.strip, entries):
        if entry == "*":
            return True
        bare = entry.removesuffix(f":{port}") if entry.count(":") == 1 or "]" in entry else entry
        try:
            if address in ipaddress.ip_network(bare.strip("[]"), strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def _checked(proxy: str, variable: str) -> str:
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        is_valid = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(
            f"{variable} (or ALL_PROXY) is not a proxy that can be used; allowed: an address such "
            "as http://user:password@proxy.example.com:3128, with http:// or https://",
            variable=variable,
        )
    return proxy
