"""The address of an edge, as users write it and as a WebSocket and a log line take it. Pure."""

import urllib.parse
from typing import NamedTuple

__all__ = ["Address", "parse_address"]


class Address(NamedTuple):
    """Where an edge is."""

    url: str
    """What the WebSocket connects to."""
    shown: str
    """What messages and logs say: without the query and credentials, which may be secrets."""


def parse_address(url: str) -> Address:
    """The address in `ws://host:port/ws`, `wss://`, `http://` or `https://`; no path means `/ws`.

    Raises ValueError for anything else.
    """
    parts = urllib.parse.urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        allowed = "ws://host:port/ws, wss://, http:// and https://"
        raise ValueError(f"{url.partition('?')[0]!r} is no address of an edge; allowed: {allowed}")
    path = parts.path if parts.path not in ("", "/") else "/ws"
    host = parts.netloc.rpartition("@")[2]
    return Address(
        urllib.parse.urlunsplit((scheme, parts.netloc, path, parts.query, "")),
        f"{scheme}://{host}{path}",
    )
