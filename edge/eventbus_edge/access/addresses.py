"""The address of a request's client, behind trusted proxies that report it. Pure.

Only one header is read, the one that the proxies are known to set: a proxy that sets
X-Forwarded-For passes on a client's own Forwarded header unchanged.
"""

import functools
import ipaddress
import re
from collections.abc import (
    Mapping,
    Sequence,
)
from typing import (
    Final,
    TypeAlias,
)

from eventbus.errors import ConfigError

__all__ = ["ClientAddresses", "group", "parse_address"]


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_HOPS: Final = 32
_MAX_CACHED: Final = 64
"""Characters of an address; anybody may send longer ones."""
_IPV6_SITE_BITS: Final = 64
_WITH_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}", re.ASCII)
# RFC 7239 §4: pairs of a token and a token or quoted string, separated by semicolons.
_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=(?:"([^"\\]*)"|([^";,\s]*))\s*(?:;|$)', re.ASCII)


class ClientAddresses:
    """Finds the addresses of clients behind trusted proxies."""

    def __init__(self, trusted: Sequence[str] = (), header: str = "X-Forwarded-For") -> None:
        """`trusted` has the proxies' addresses and networks (10.0.0.0/8). Raises ConfigError."""
        self._trusted = [_network(text) for text in trusted]
        self._header = header
        self._is_rfc7239 = header.lower() == "forwarded"

    def of(self, peer: str | None, headers: Mapping[str, str]) -> str:
        """The address of the client itself.

        `peer` is the other end of the socket. Each trusted proxy appends the address of its peer.
        So the list is read from its end, up to the first address that is not a trusted proxy's, or
        is not an address; anybody may have written what comes before. `headers` with several values
        of a name must return each of them from `items()`.
        """
        if not self._trusted:
            return peer or "unknown"
        client = parse_address(peer or "")
        if client is None or not self._is_trusted(client):
            return peer or "unknown"
        for hop in reversed(self._hops(headers)):
            address = parse_address(hop)
            if address is None:
                break
            client = address
            if not self._is_trusted(address):
                break
        return str(client)

    def _hops(self, headers: Mapping[str, str]) -> list[str]:
        name = self._header.lower()
        values = [value for key, value in headers.items() if key.lower() == name]
        # Only the last hops can matter, at most one per proxy.
        hops = ",".join(values).split(",")[-_MAX_HOPS:]
        return [_forwarded_for(hop) for hop in hops] if self._is_rfc7239 else hops

    def is_proxy(self, peer: str) -> bool:
        """Whether the other end of a socket is a trusted proxy."""
        if not self._trusted:
            return False
        address = parse_address(peer)
        return address is not None and self._is_trusted(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def group(address: str) -> str:
    """The key of an address for limits: of IPv6 its /64, the share of one site (RFC 6177)."""
    return _group(address) if len(address) <= _MAX_CACHED else _group.__wrapped__(address)


@functools.lru_cache(maxsize=4096)  # several times for each request
def _group(address: str) -> str:
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, _IPV6_SITE_BITS), strict=False))
    return address if parsed is None else str(parsed)


def _forwarded_for(element: str) -> str:
    """The `for` parameter of one element of a Forwarded header; empty if it cannot be parsed."""
    position = 0
    found = ""
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return ""
        if pair[1].lower() == "for":
            found = pair[2] if pair[2] is not None else pair[3]
        position = pair.end()
    return found


def parse_address(text: str) -> Address | None:
    """An IP address, with or without brackets and port; None for anything else."""
    return _parse(text) if len(text) <= _MAX_CACHED else _parse.__wrapped__(text)


@functools.lru_cache(maxsize=4096)  # several times for each request
def _parse(text: str) -> Address | None:
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:  # how a dual-stack socket shows IPv4
            return address.ipv4_mapped
        if address.scope_id is not None:
            return ipaddress.IPv6Address(int(address))
    return address


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ConfigError(
            f"BROADCAST_TRUSTED_PROXIES has {text!r}: {exc}; allowed: addresses and networks, "
            "such as 10.0.0.7 or 10.0.0.0/8, separated by commas",
            variable="BROADCAST_TRUSTED_PROXIES",
        ) from None
