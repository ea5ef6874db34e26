"""The source of a client's token."""

import asyncio
from collections.abc import Awaitable, Callable

from eventbus.client.link import FAILED, Lost
from eventbus.user_code import call_apart, cause_of, check_callable

__all__ = ["Token", "TokenSource"]

Token = str | Callable[[], Awaitable[str | None]] | None
"""A JWT, an async function that returns one (or None), or nothing."""


class TokenSource:
    """Gets a token when there is none, and keeps it while it is valid."""

    def __init__(self, token: Token, timeout_s: float) -> None:
        """Raises TypeError for anything but a Token."""
        if token is not None and not isinstance(token, str) and not callable(token):
            raise TypeError("a token is a string, or an async function that returns one")
        if callable(token):
            check_callable(token, "a token function", 0)
        self.expiring = asyncio.Event()
        """Set when the edge reports that the token expires soon."""
        self._ask = token if callable(token) else None
        self._token = token if isinstance(token, str) else None
        self._timeout_s = timeout_s
        self._refusals = 0

    @property
    def is_fixed(self) -> bool:
        """Whether it cannot be renewed."""
        return self._ask is None

    async def get(self) -> str | None:
        """The current token, or a new one. Raises Lost if the token function fails."""
        if self._token is None and self._ask is not None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._token = await call_apart(self._ask)
            except Exception as exc:
                # Its text may contain credentials.
                raise Lost(
                    FAILED, f"the token function failed: {type(cause_of(exc)).__name__}"
                ) from exc
        return self._token

    def renew(self) -> None:
        """Drop the current token, so that the next `get` gets a new one."""
        if self._ask is not None:
            self._token = None

    def accepted(self) -> None:
        """The edge has accepted the token."""
        self._refusals = 0
        self.expiring.clear()

    def refused(self) -> bool:
        """The edge has refused the token; whether a new one would not help either."""
        self._refusals += 1
        self.renew()
        return self.is_fixed or self._refusals > 1
