"""Whether a page's origin may ask; what is refused is logged once in a while."""

import logging
import time
from collections.abc import Sequence
from typing import Final

from edge.handshake import check_origin
from edge.hosts import Hosts
from edge.problem import Problem

__all__ = ["Origins"]

_log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 10.0
_SHOWN: Final = 100
"""How many characters of an origin are logged: it is what a client sends."""


class Origins:
    """The origins that a node allows."""

    def __init__(self, allowed: Sequence[str], hosts: Hosts) -> None:
        self._allowed = allowed
        self._hosts = hosts
        self._logged_at: float | None = None
        self._unlogged = 0

    def allows(self, origin: str | None, host: str) -> bool:
        """Whether a page of `origin`, a request's Origin header, may ask with that Host header.

        The origin of a Host that is not the node's own is a stranger's, and not the same host.
        """
        return check_origin(origin, host if self._hosts.is_own(host) else "", self._allowed)

    def require_host(self, host: str) -> None:
        """Raises Problem for a Host header by which a page of a stranger may have asked.

        For requests without an Origin: browsers send none with a GET for the page's own host.
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
        if self.allows(origin, host):
            return
        self._unlogged += 1
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY_S:
            _log.warning(
                "requests refused for their origin: %d; the last from %a: "
                "CORS_ALLOWED_ORIGINS names those that are allowed, and BROADCAST_ALLOWED_HOSTS "
                "the node's own names",
                self._unlogged,
                (origin or "")[:_SHOWN],
            )
            self._logged_at, self._unlogged = now, 0
        raise Problem("forbidden", "the request's origin is not allowed")
