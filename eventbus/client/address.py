"""The address of an edge, as users write it and as a WebSocket and a log line take it. Pure."""

import urllib.parse
from typing import NamedTuple

from eventbus.urls import is_web_address, mask_url

__all__ = ["Address", "parse_address"]


class Address(NamedTuple):
    """Where an edge is."""

    url: str
    """What the WebSocket connects to."""
    shown: str
    """What messages and logs say: without the query and credentials, which may be secrets."""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse_address(url: str) -> Address:
    """The address in `ws://host:port/ws`, `wss://`, `http://` or `https://`; no path means `/ws`.

    Raises ValueError for anything else.
    """
    if not is_web_address(url, ("ws", "wss", "http", "https")):
        allowed = "ws://host:port/ws, wss://, http:// and https://"
        raise ValueError(f"{mask_url(url)!r} is no address of an edge; allowed: {allowed}")
    parts = urllib.parse.urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path not in ("", "/") else "/ws"
    host = parts.netloc.rpartition("@")[2]
    return Address(
        urllib.parse.urlunsplit((scheme, parts.netloc, path, parts.query, "")),
        f"{scheme}://{host}{path}",
    )
