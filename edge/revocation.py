"""What has been taken back before its time: users, tokens, their way into a channel. Pure.

A revocation concerns the tokens that were issued until it was made (`iat`; a token without one is
always meant), so that who logs in again later is let in again. One by `jti` concerns that token,
whenever it was issued. It is kept until such tokens have expired by themselves.
"""

import hashlib
import heapq
import itertools
from typing import Annotated, Final, TypeAlias

import msgspec

from edge.auth import Claims, Seconds
from eventbus.channels import Pattern, validate_channel

__all__ = ["MAX_REVOCATIONS", "Revocation", "Revocations"]

MAX_REVOCATIONS: Final = 100_000
"""Beyond these, the one that would end first goes; some 50 MB."""

Key: TypeAlias = tuple[str | None, str | None, str | None]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who or what is refused. Exactly one of `user_id`, `jti` and `connection_id` is given, or none
    of them and a `channel`; a `channel` beside a user or a jti takes only that channel away.

    A connection is only ended, there being nothing that could come back; so are the subscriptions
    to a channel of those without a token.
    """

    at: Seconds
    """When it was made, in seconds since 1970."""
    until: Seconds
    user_id: Name | None = None
    jti: Name | None = None
    connection_id: Name | None = None
    channel: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, InvalidChannel included."""
        given = [name for name in (self.user_id, self.jti, self.connection_id) if name is not None]
        if len(given) > 1 or (not given and self.channel is None):
            raise ValueError(
                "a revocation needs one of user_id, jti, connection_id and channel; "
                "only a channel may stand beside a user_id or a jti"
            )
        if self.channel is not None:
            if self.connection_id is not None:
                raise ValueError("a revocation of a connection has no channel")
            validate_channel(self.channel)

    @property
    def is_kept(self) -> bool:
        """Whether there is something to refuse later on."""
        return self.connection_id is None

    @property
    def key(self) -> str:
        """A name of one token of the channel grammar for what it is about."""
        return hashlib.sha256(msgspec.json.encode(self._about)).hexdigest()[:40]

    @property
    def _about(self) -> Key:
        return self.user_id, self.jti, self.channel

    def concerns(self, connection_id: str | None, claims: Claims | None) -> bool:
        """Whether it is about this connection, or the bearer of these claims."""
        if self.connection_id is not None:
            return self.connection_id == connection_id
        if claims is None:
            return self.user_id is None and self.jti is None
        if self.jti is not None:
            return self.jti == claims.jti
        if self.user_id is not None and self.user_id != claims.user_id:
            return False
        return claims.iat is None or claims.iat <= self.at


class Revocations:
    """The revocations that a node knows of. Times are in seconds since 1970."""

    def __init__(self, limit: int = MAX_REVOCATIONS) -> None:
        self._limit = limit
        self._held: dict[Key, Revocation] = {}
        self._ends: list[tuple[float, int, Key]] = []
        self._number = itertools.count()  # of two ends at the same time, the earlier made first

    def __len__(self) -> int:
        return len(self._held)

    def all(self) -> list[Revocation]:
        """What is held."""
        return list(self._held.values())

    def add(self, revocation: Revocation, now: float) -> bool:
        """Hold a revocation; False when it says nothing new. Of two about the same, both hold."""
        self.sweep(now)
        about = revocation._about  # noqa: SLF001 - of this module
        held = self._held.get(about)
        if held is not None:
            revocation = msgspec.structs.replace(
                revocation, at=max(held.at, revocation.at), until=max(held.until, revocation.until)
            )
        if not revocation.is_kept or revocation.until <= now or revocation == held:
            return False
        self._held[about] = revocation
        heapq.heappush(self._ends, (revocation.until, next(self._number), about))
        while len(self._held) > self._limit:
            self._pop()
        if len(self._ends) > 2 * len(self._held) + 16:  # ends that were put off
            self._ends = [
                (held.until, next(self._number), about) for about, held in self._held.items()
            ]
            heapq.heapify(self._ends)
        return True

    def sweep(self, now: float) -> None:
        """Forget those that are over."""
        while self._ends and self._ends[0][0] <= now:
            self._pop()

    def _pop(self) -> None:
        until, _, about = heapq.heappop(self._ends)
        held = self._held.get(about)
        if held is not None and held.until == until:
            del self._held[about]

    def forbids_token(self, claims: Claims, now: float) -> bool:
        """Whether a token is refused altogether."""
        return self._meets([(claims.user_id, None, None), (None, claims.jti, None)], claims, now)

    def forbids(self, channel: str, claims: Claims | None, now: float) -> bool:
        """Whether the bearer of `claims` is refused the channel."""
        if claims is None or not self._held:
            return False
        user_id, jti = claims.user_id, claims.jti
        about: list[Key] = [(None, None, channel), (user_id, None, channel), (None, jti, channel)]
        return self._meets(about, claims, now)

    def forbids_any(self, pattern: Pattern, claims: Claims, now: float) -> bool:
        """Whether the bearer of `claims` is refused one of the channels of a pattern."""
        return any(
            revocation.channel is not None
            and pattern.match(revocation.channel) is not None
            and revocation.until > now
            and revocation.concerns(None, claims)
            for revocation in self._held.values()
        )

    def _meets(self, about: list[Key], claims: Claims, now: float) -> bool:
        found = (self._held.get(key) for key in about)
        return any(r is not None and r.until > now and r.concerns(None, claims) for r in found)
