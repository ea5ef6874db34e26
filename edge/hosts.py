"""By which Host a node may be asked, and who may use its HTTP API without a key. Pure.

A page can make a browser send requests for a name of its own to any address, this machine's
included, by changing what the name resolves to (DNS rebinding). Such a request comes from loopback,
and its Origin is its Host's own: only the name tells that it is a stranger's. An IP address has not
been resolved by anybody's name server, and nobody can register a name without a dot, such as
`localhost` or a container's `edge`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from edge.addresses import parse_address
from edge.handshake import check_origin, parse_host

__all__ = ["Hosts", "is_loopback_host"]

_PROXIED: Final = frozenset({
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-ip",
    "true-client-ip", "cf-connecting-ip", "fastly-client-ip", "fly-client-ip", "x-azure-clientip",
    "x-original-host", "x-original-forwarded-for", "proxy-connection",
})  # fmt: skip
"""Headers that proxies add; and every one that begins with `_PROXIED_PREFIXES`."""
_PROXIED_PREFIXES: Final = ("x-forwarded", "x-envoy-", "x-proxy")


class Hosts:
    """The hosts of one node."""

    def __init__(
        self,
        named: Sequence[str] = (),
        *,
        any_name: bool = False,
        without_key: bool = True,
        behind_proxies: bool = False,
    ) -> None:
        """`named` are the node's own names; `any_name` takes every other name for its own too.

        `without_key` says whether anybody may use the HTTP API without a key, `behind_proxies`
        whether the node is known to stand behind proxies.
        """
        self._named = frozenset(name.lower().removesuffix(".") for name in named)
        self._any_name = any_name
        self._without_key = without_key
        self._behind_proxies = behind_proxies

    def is_own(self, host: str) -> bool:
        """Whether a Host header is one that no page of a stranger can have made a browser send."""
        parsed = parse_host(host)
        if parsed is None:
            return False
        name = parsed[0].removesuffix(".")
        return (
            self._any_name
            or name in self._named
            or "." not in name
            or parse_address(name) is not None
        )

    def why_a_key_is_needed(
        self,
        peer: str | None,
        http_version: tuple[int, int],
        target: str,
        headers: Mapping[str, str],
    ) -> str:
        """Why a request may not use the HTTP API without a key; empty when it may.

        `peer` is the other end of the socket, `target` the request's target as it came. A proxy on
        this machine makes everybody's address a loopback one: each trace of one counts. A `headers`
        with several values of a name must give each of them in its `items()`.
        """
        if not self._without_key:
            return "in production there is no access without a key"
        address = parse_address(peer or "")
        if address is None or not address.is_loopback:
            return "its address is not a loopback address"
        if self._behind_proxies:
            return "the node is behind proxies, for BROADCAST_TRUSTED_PROXIES is set"
        given: dict[str, list[str]] = {}
        for name, value in headers.items():
            given.setdefault(name.lower(), []).append(value)
        if trace := _trace_of_a_proxy(http_version, target, given):
            return f"it came through a proxy ({trace})"
        hosts = given.get("host", [])
        if len(hosts) != 1 or not self._is_local(hosts[0]):
            return "its Host is not localhost, a loopback address or one of BROADCAST_ALLOWED_HOSTS"
        if any(not check_origin(origin, hosts[0], ()) for origin in given.get("origin", ())):
            return "its Origin is another host's"
        return ""

    def _is_local(self, host: str) -> bool:
        parsed = parse_host(host)
        if parsed is None:
            return False
        return is_loopback_host(parsed[0]) or parsed[0].removesuffix(".") in self._named


def is_loopback_host(host: str) -> bool:
    """Whether a host, without a port, is this machine: `localhost` or a loopback address."""
    address = parse_address(host)
    return host.lower() in ("localhost", "localhost.") if address is None else address.is_loopback


def _trace_of_a_proxy(
    http_version: tuple[int, int], target: str, headers: Mapping[str, Sequence[str]]
) -> str:
    """What tells that a request has come through a proxy; empty when nothing does."""
    for name in headers:
        if name in _PROXIED or name.startswith(_PROXIED_PREFIXES):
            return f"header {name}"
    if http_version < (1, 1):
        return "HTTP/1.0, which nginx speaks by default"
    if not target.startswith("/"):
        return "an absolute request target"
    connection = ",".join(headers.get("connection", ())).lower()
    if "upgrade" in connection and "upgrade" not in headers:
        return "header Connection: upgrade without Upgrade"
    return ""
