"""Where a client's token comes from."""

import asyncio
from collections.abc import Awaitable, Callable

from eventbus.client.link import FAILED, Lost
from eventbus.user_code import call_apart, cause_of

__all__ = ["Token", "TokenSource"]

Token = str | Callable[[], Awaitable[str | None]] | None
"""A JWT, an async function that gives one (or None), or nothing."""


class TokenSource:
    """Asks for a token when there is none, and keeps it while it is good."""

    def __init__(self, token: Token, timeout_s: float) -> None:
        """Raises TypeError for what is no token."""
        if token is not None and not isinstance(token, str) and not callable(token):
            raise TypeError("a token is a string, or an async function that gives one")
        self.expiring = asyncio.Event()
        """Set when the edge says that the token expires soon."""
        self._ask = token if callable(token) else None
        self._token = token if isinstance(token, str) else None
        self._timeout_s = timeout_s
        self._refusals = 0

    @property
    def is_fixed(self) -> bool:
        """Whether there cannot be another one."""
        return self._ask is None

    async def get(self) -> str | None:
        """The present token, or a new one. Raises Lost when it cannot be had."""
        if self._token is None and self._ask is not None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._token = await call_apart(self._ask)
            except Exception as exc:
                # Its text may hold what it was asked with.
                raise Lost(
                    FAILED, f"the token function failed: {type(cause_of(exc)).__name__}"
                ) from exc
        return self._token

    def renew(self) -> None:
        """The present token is of no more use."""
        if self._ask is not None:
            self._token = None

    def accepted(self) -> None:
        """The edge has taken it."""
        self._refusals = 0
        self.expiring.clear()

    def refused(self) -> bool:
        """The edge refuses it; whether a newer one is of no use either."""
        self._refusals += 1
        self.renew()
        return self.is_fixed or self._refusals > 1
