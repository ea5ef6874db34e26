"""The hosts and origins that a node accepts, and which clients need no key for its HTTP API."""

import logging
import time
from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from typing import Final

from eventbus.attempts import RateLimitedLog
from eventbus_edge.access.addresses import parse_address
from eventbus_edge.access.origins import (
    AllowedOrigins,
    parse_host,
)
from eventbus_edge.problem import Problem

__all__ = ["Hosts", "Origins", "is_loopback_host"]


_PROXIED: Final = frozenset({
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-ip",
    "true-client-ip", "cf-connecting-ip", "fastly-client-ip", "fly-client-ip", "x-azure-clientip",
    "x-original-host", "x-original-forwarded-for", "proxy-connection",
})  # fmt: skip
"""Headers that proxies add, in addition to those with a prefix of `_PROXIED_PREFIXES`."""
_PROXIED_PREFIXES: Final = ("x-forwarded", "x-envoy-", "x-proxy")
_NO_OTHERS: Final = AllowedOrigins(())


class Hosts:
    """The host names of one node."""

    def __init__(
        self,
        named: Sequence[str] = (),
        *,
        any_name: bool = False,
        without_key: bool = True,
        behind_proxies: bool = False,
    ) -> None:
        """`named` has the node's own names; with `any_name`, every other name is its own too.

        `without_key`: local clients may use the HTTP API without a key. `behind_proxies`: the node
        is known to be behind proxies.
        """
        self._named = frozenset(name.lower().removesuffix(".") for name in named)
        self._any_name = any_name
        self._without_key = without_key
        self._behind_proxies = behind_proxies

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this node, which no page of a foreign site can forge."""
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
        """Why a request needs a key for the HTTP API; empty if it needs none.

        `peer` is the other end of the socket, `target` the request's raw target. Behind a proxy on
        this machine, all clients have a loopback address, so any trace of a proxy counts. `headers`
        with several values of a name must return each of them from `items()`.
        """
        if not self._without_key:
            return "in production, a key is always needed"
        address = parse_address(peer or "")
        if address is None or not address.is_loopback:
            return "its address is not a loopback address"
        if self._behind_proxies:
            return "the node is behind proxies, since BROADCAST_TRUSTED_PROXIES is set"
        given: dict[str, list[str]] = {}
        for name, value in headers.items():
            given.setdefault(name.lower(), []).append(value)
        if trace := _trace_of_a_proxy(http_version, target, given):
            return f"it came through a proxy ({trace})"
        hosts = given.get("host", [])
        if len(hosts) != 1 or not self._is_local(hosts[0]):
            return "its Host is not localhost, a loopback address or one of BROADCAST_ALLOWED_HOSTS"
        if not all(_NO_OTHERS.allows(origin, hosts[0]) for origin in given.get("origin", ())):
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
    """The trace of a proxy in a request; empty if there is none."""
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


_log = logging.getLogger(__name__)

_SHOWN: Final = 100
"""How many characters of an origin are logged, since a client may send any."""


class Origins:
    """The origins that a node allows."""

    def __init__(
        self, allowed: Sequence[str], hosts: Hosts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigError for an entry of `allowed` that no origin can match."""
        self._allowed = AllowedOrigins(allowed)
        self._hosts = hosts
        self._refusals = RateLimitedLog(_log, clock=clock)

    def allows(self, origin: str | None, host: str) -> bool:
        """Whether a page of `origin`, the Origin header, may send requests with that Host header.

        If the Host is not the node's own, its origin does not count as the same host.
        """
        return self._allowed.allows(origin, host if self._hosts.is_own(host) else "")

    def require_host(self, host: str) -> None:
        """Raises Problem for a Host header that a page of a foreign site may have caused.

        This is for requests without an Origin: browsers send none with a GET to the page's host.
        """
        if self._hosts.is_own(host):
            return
        if not any(self.allows(f"{scheme}://{host}", host) for scheme in ("http", "https")):
            raise Problem(
                "forbidden",
                "the request's Host is not this node's; allowed: localhost and other names "
                "without a dot, IP addresses, and the names in BROADCAST_ALLOWED_HOSTS",
            )

    def require(self, origin: str | None, host: str) -> None:
        """Raises Problem for an Origin header that is not allowed."""
        if origin is None or self.allows(origin, host):
            return
        shown = origin[:_SHOWN]
        self._refusals.warning(
            "refused a request from origin %a: add it to CORS_ALLOWED_ORIGINS or, if it is a name "
            "of this node, to BROADCAST_ALLOWED_HOSTS",
            shown,
        )
        raise Problem(
            "forbidden",
            f"the request's origin {shown!a} is not allowed: add it to CORS_ALLOWED_ORIGINS of "
            "this node or, if it is a name of this node, to BROADCAST_ALLOWED_HOSTS",
        )
