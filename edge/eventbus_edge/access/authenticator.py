"""Who a client is: the claims of its token or ticket, unless it is refused or revoked."""

import logging
from collections.abc import Callable

from eventbus.errors import EventBusError
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.tickets import (
    Tickets,
    is_ticket,
)
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
    TokenVerifier,
)

__all__ = ["Authenticator"]


_log = logging.getLogger(__name__)


class Authenticator:
    """Verifies the tokens of clients and of users of the HTTP API."""

    def __init__(
        self,
        verifier: TokenVerifier | None,
        tickets: Tickets,
        revoker: Revoker,
        *,
        on_rejected: Callable[[str], object],
        before_verify: Callable[[], object] = lambda: None,
    ) -> None:
        """Without `verifier`, all tokens but tickets are refused.

        `before_verify` is called before each token; `on_rejected` gets the reason of each refusal.
        """
        self.tickets = tickets
        self._verifier = verifier
        self._revoker = revoker
        self._on_rejected = on_rejected
        self._before_verify = before_verify

    @property
    def has_keys(self) -> bool:
        """Whether a key is configured to verify tokens with; without one, all are refused."""
        return self._verifier is not None

    async def verify(self, token: str, *, is_new: bool = True) -> Claims:
        """The claims of a token. Raises TokenRejected.

        A new client is accepted only when all revocations of the other nodes are known.
        """
        self._before_verify()
        try:
            claims = await self._claims(token)
            if is_new:
                await self._require_revocations()
            self._require_not_revoked(claims)
        except TokenRejected as exc:
            self._on_rejected(exc.reason)
            raise
        return claims

    async def _claims(self, token: str) -> Claims:
        if is_ticket(token):
            return self.tickets.read(token)
        if self._verifier is None:
            message = "this node has no key to check tokens with"
            raise TokenRejected("unauthorized", message, "no_key")
        return await self._verifier.verify(token)

    def _require_not_revoked(self, claims: Claims) -> None:
        if self._revoker.forbids_token(claims):
            raise TokenRejected("unauthorized", "the token has been revoked", "revoked")

    async def _require_revocations(self) -> None:
        try:
            await self._revoker.confirm()
        except EventBusError as exc:
            _log.warning("a token cannot be accepted before revocations are read: %s", exc)
            message = "revocations cannot be read at the moment: try again"
            raise TokenRejected("unavailable", message, "revocations_unavailable") from None
