"""Timeouts of one connection: heartbeats and the expiry of its token. Pure, without a clock.

Times are monotonic seconds, except a token's `exp`.
"""

from typing import Final

from eventbus_edge.access import Claims
from eventbus_edge.protocols import CloseReason, TokenExpiring
from eventbus_edge.sessions.effects import (
    Close,
    Effect,
    Heartbeat,
    Send,
)
from eventbus_edge.sessions.limits import SessionLimits

__all__ = ["SessionTime"]


EXPIRY_NOTICE_S: Final = 60.0


class SessionTime:
    """What a connection has to do next, and when."""

    __slots__ = (
        "_asked_at", "_claims", "_exp", "_expires", "_has_proof", "_last_seen", "_limits",
        "_notice", "_opened",
    )  # fmt: skip

    def __init__(self, limits: SessionLimits, now: float) -> None:
        self._limits = limits
        self._opened = now
        self._last_seen = now
        self._asked_at: float | None = None
        self._claims: Claims | None = None
        self._has_proof = False
        self._exp: float | None = None
        self._expires: float | None = None
        self._notice: float | None = None

    def received(self, now: float) -> None:
        """A frame of any kind came from the client."""
        self._last_seen = now
        self._asked_at = None

    def resumed(self, now: float) -> None:
        """The node was stopped: an answer to its heartbeat may wait in the socket."""
        if self._asked_at is not None:
            self._asked_at = now

    def authenticate(self, claims: Claims, expires_in: float, now: float) -> None:
        """The connection has a token, which expires in `expires_in` seconds."""
        self._claims = claims
        self._exp = now + expires_in
        # Commands are served for as long as the token would be accepted.
        self._expires = self._exp + self._limits.token_leeway_s
        self._notice = self._exp - min(EXPIRY_NOTICE_S, max(expires_in, 0.0) / 2)

    def proved(self) -> None:
        """The client has shown who it is, or its right to a channel: it needs no token."""
        self._has_proof = True

    def has_expired(self, now: float) -> bool:
        """Whether the connection has a token that has expired."""
        return self._expires is not None and now >= self._expires

    def deadline(self) -> float:
        """When to call `tick` next, unless something happens before."""
        since = self._last_seen if self._asked_at is None else self._asked_at
        due = since + self._limits.heartbeat_s
        if self._notice is not None:
            due = min(due, self._notice)
        elif self._expires is not None:
            due = min(due, self._expires + self._limits.token_grace_s)
        if (late_at := self._token_is_late_at) is not None:
            due = min(due, late_at)
        return due

    def tick(self, now: float) -> list[Effect]:
        """What is due at this time."""
        if self._token_is_late_at is not None and now >= self._token_is_late_at:
            return [
                Close(CloseReason.NO_TOKEN, f"no token within {self._limits.token_timeout_s:g} s")
            ]
        if self._expires is not None and now >= self._expires + self._limits.token_grace_s:
            return [Close(CloseReason.TOKEN_EXPIRED, "the token has expired and was not refreshed")]
        effects: list[Effect] = []
        if self._notice is not None and now >= self._notice:
            self._notice = None
            if self._claims is not None and self._exp is not None and now < self._exp:
                left = round(self._exp - now, 1)
                effects.append(Send(TokenExpiring(self._claims.exp, left)))
        if self._asked_at is not None:
            if now >= self._asked_at + self._limits.heartbeat_s:
                return [*effects, Close(CloseReason.NO_HEARTBEAT, "no answer to the heartbeat")]
        elif now >= self._last_seen + self._limits.heartbeat_s:
            self._asked_at = now
            effects.append(Heartbeat())
        return effects

    @property
    def _token_is_late_at(self) -> float | None:
        if self._limits.token_required and self._claims is None and not self._has_proof:
            return self._opened + self._limits.token_timeout_s
        return None
