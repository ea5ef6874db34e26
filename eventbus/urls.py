"""URLs that may contain credentials: errors never quote them, and logs show them masked."""

import contextlib
import re
from collections.abc import Collection
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = [
    "BrokerAddress",
    "fault_text",
    "is_web_address",
    "mask_url",
    "parse_broker_address",
    "parse_host",
]

MASK: Final = "***"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_HOSTS: Final = re.compile(r"((\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?(,(?!$)|$))+")
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
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = default_scheme, text
    scheme = scheme.lower()
    if scheme not in schemes:
        raise ValueError(f"its scheme is not one of {', '.join(schemes)}")
    credentials, at, rest = rest.rpartition("@")
    user = password = None
    if credentials:
        name, colon, secret = credentials.partition(":")
        user, password = _decoded(name), _decoded(secret) if colon else None
    elif at:
        raise ValueError("it has an @ and nothing before it")
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
    """The text of a client library's error, or only its type if the text may quote a URL."""
    text = str(exc)
    return text if text and not set(text) & set("/@?#") else type(exc).__name__


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
