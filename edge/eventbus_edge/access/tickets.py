"""Tickets: short-lived tokens with which the dashboard subscribes as an administrator.

A browser cannot open a WebSocket with the API key, nor from loopback without a token. So a client
that may use the HTTP API gets a ticket there, and uses it like any token. It is signed with a key
derived from a secret that all nodes of a cluster share (one HMAC, like HKDF: RFC 5869 §2.2).
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

from eventbus.messages import json_decoder
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
    check_times,
)

__all__ = ["LIFE_S", "Tickets", "is_ticket"]


LIFE_S: Final = 300.0
OPERATOR: Final = "operator"
"""The user id of clients without a token: those with the API key, or on loopback."""
_PREFIX: Final = "ebticket-"
"""No JWT begins like this. With only one dot, the HTTP API does not accept it: no ticket renews
itself."""
_CONTEXT: Final = b"eventbus ticket 1"
_decode: Final = json_decoder(Claims)


def is_ticket(token: str) -> bool:
    """Whether a token is a ticket."""
    return token.startswith(_PREFIX)


class Tickets:
    """Issues and reads tickets."""

    def __init__(
        self, secret: str, clock: Callable[[], float] = time.time, *, leeway_s: float = 0.0
    ) -> None:
        """`secret` is shared by all nodes; if empty, tickets are valid in this process only.

        The clocks of nodes may differ by `leeway_s`.
        """
        given = secret.encode() or secrets.token_bytes(32)
        self._key = hmac.digest(given, _CONTEXT, hashlib.sha256)
        self._clock = clock
        self._leeway_s = leeway_s

    def issue(self, bearer: Claims | None) -> str:
        """A ticket for a client of the HTTP API; `bearer` has the claims of its token, if any.

        It expires no later than that token, and revoking the user or the token revokes it.
        """
        now = self._clock()
        exp = now + LIFE_S
        if bearer is None:
            claims = Claims(
                sub=OPERATOR, iat=now, exp=exp, roles=frozenset({"admin"}), channels=(">",)
            )
        else:
            claims = Claims(
                sub=bearer.sub,
                jti=bearer.jti,
                iat=bearer.iat,
                exp=min(exp, bearer.exp),
                roles=bearer.roles | {"admin"},
                permissions=bearer.permissions,
                channels=(">",),
            )
        payload = _encode(msgspec.json.encode(claims))
        return f"{_PREFIX}{payload}.{_encode(self._sign(payload))}"

    def read(self, ticket: str) -> Claims:
        """The claims of a ticket. Raises TokenRejected."""
        payload, _, signature = ticket.removeprefix(_PREFIX).partition(".")
        try:
            signed = base64.urlsafe_b64decode(_padded(signature))
        except (binascii.Error, ValueError):
            raise TokenRejected("unauthorized", "the ticket is malformed", "malformed") from None
        if not hmac.compare_digest(signed, self._sign(payload)):
            message = "the ticket's signature does not verify"
            raise TokenRejected("unauthorized", message, "signature")
        claims = _decode(base64.urlsafe_b64decode(_padded(payload)))
        check_times(claims, self._clock(), self._leeway_s)
        return claims

    def _sign(self, payload: str) -> bytes:
        return hmac.digest(self._key, payload.encode(errors="replace"), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)
