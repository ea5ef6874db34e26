"""The addresses that webhooks may be posted to, whatever a host name resolves to.

The address is checked each time a socket is opened, after the name was resolved, and also if the
URL contains an address. So a DNS answer that changes between check and use gains nothing.
"""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from eventbus.errors import ConfigError

__all__ = ["PUBLIC", "Networks"]


PUBLIC: Final = "public"
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052, 2.1


class Networks:
    """The networks that sockets may connect to."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """`allowed` lists networks, addresses and `public`, which means all public addresses.

        If it is empty, every address is allowed except those that no receiver can have: link-local
        addresses, where clouds hand out credentials, multicast, and 0.0.0.0. Raises ConfigError.
        """
        self._has_public = PUBLIC in allowed
        self._networks = [_network(text) for text in allowed if text != PUBLIC]

    def allows(self, text: str) -> bool:
        """Whether a socket may connect to an address.

        An IPv6 address that stands for an IPv4 address is treated like that address.
        """
        address = _meant(ipaddress.ip_address(text))
        if any(address in network for network in self._networks):
            return True
        if self._has_public:
            return address.is_global and not address.is_multicast
        return not self._networks and not (
            address.is_link_local or address.is_multicast or address.is_unspecified
        )

    def open_socket(self, resolved: tuple[Any, ...]) -> socket.socket:
        """Make the socket for a result of getaddrinfo(3). Raises PermissionError."""
        family, kind, protocol, _, peer = resolved
        if not self.allows(peer[0]):
            raise PermissionError(
                errno.EACCES, f"BROADCAST_WEBHOOK_NETWORKS does not allow {peer[0]}"
            )
        return socket.socket(family, kind, protocol)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (RFC 4291, 3056, 4380 and 6052)."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ConfigError(
            f"BROADCAST_WEBHOOK_NETWORKS has {text!r}: {exc}; allowed: networks and addresses, "
            f"such as 10.20.0.0/16, or {PUBLIC}, separated by commas",
            variable="BROADCAST_WEBHOOK_NETWORKS",
        ) from None
