"""Whether a page's origin may ask; what is refused is logged once in a while."""

import logging
import time
from collections.abc import Sequence
from typing import Final

from edge.handshake import check_origin
from edge.problem import Problem

__all__ = ["Origins"]

_log = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 10.0
_SHOWN: Final = 100
"""How many characters of an origin are logged: it is what a client sends."""


class Origins:
    """The origins that a node allows."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed
        self._logged_at: float | None = None
        self._unlogged = 0

    def require(self, origin: str | None, host: str) -> None:
        """Raises Problem for an Origin header that `check_origin` refuses."""
        if check_origin(origin, host, self._allowed):
            return
        self._unlogged += 1
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY_S:
            _log.warning(
                "requests refused for their origin: %d; the last from %a: "
                "CORS_ALLOWED_ORIGINS names those that are allowed",
                self._unlogged,
                (origin or "")[:_SHOWN],
            )
            self._logged_at, self._unlogged = now, 0
        raise Problem("forbidden", "the request's origin is not allowed")
