"""What has been taken back before its time: users, tokens, their way into a channel. Pure.

A revocation concerns the tokens that were issued until it was made (`iat`; a token without one is
always meant), so that who logs in again later is let in again. One by `jti` concerns that token,
whenever it was issued. It is kept until such tokens have expired by themselves.

What was taken back is given back by a revocation that is lifted: it stays in the place of the one
before it, for as long as that would have held, so that nobody who still has that one says it again.
Of the two, the one that was made later counts.
"""

import hashlib
import heapq
import itertools
from typing import Annotated, Final, TypeAlias

import msgspec

from edge.auth import Claims
from eventbus.channels import Pattern, validate_channel

__all__ = ["MAX_REVOCATIONS", "Revocation", "Revocations"]

MAX_REVOCATIONS: Final = 100_000
"""Beyond these, the one that would end first goes; some 50 MB."""

Key: TypeAlias = tuple[str | None, str | None, str | None]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
"""Since 1970, until the year 9999."""


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
    lifted: bool = False
    """Whether it refuses nothing, and ends those about the same that were made before it."""

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
        if self.lifted and self.connection_id is not None:
            raise ValueError("a connection that was ended stays so: there is nothing to give back")

    @property
    def is_kept(self) -> bool:
        """Whether there is something to refuse later on."""
        return self.connection_id is None

    def holds(self, now: float) -> bool:
        """Whether it refuses something at that time."""
        return self.is_kept and not self.lifted and self.until > now

    def lift(self, now: float) -> "Revocation":
        """What gives back what it has taken; made later, also where the clocks of two differ."""
        return msgspec.structs.replace(self, at=max(self.at, now), lifted=True)

    @property
    def key(self) -> str:
        """A name of one token of the channel grammar for what it is about."""
        return hashlib.sha256(msgspec.json.encode(self._about)).hexdigest()[:40]

    @property
    def _about(self) -> Key:
        return self.user_id, self.jti, self.channel

    def concerns(self, connection_id: str | None, claims: Claims | None) -> bool:
        """Whether it ends this connection, or refuses the bearer of these claims."""
        if self.lifted:
            return False
        if self.connection_id is not None:
            return self.connection_id == connection_id
        if claims is None:
            return self.user_id is None and self.jti is None
        if self.jti is not None:
            return self.jti == claims.jti
        if self.user_id is not None and self.user_id != claims.user_id:
            return False
        return claims.iat is None or claims.iat <= self.at


def joined(one: Revocation, other: Revocation) -> Revocation:
    """What holds of two about the same, whichever came first."""
    until = max(one.until, other.until)
    if one.lifted == other.lifted:
        return msgspec.structs.replace(one, at=max(one.at, other.at), until=until)
    lift, revocation = (one, other) if one.lifted else (other, one)
    if lift.at >= revocation.at:
        return msgspec.structs.replace(lift, until=until)
    return revocation


class Revocations:
    """The revocations that a node knows of. Times are in seconds since 1970."""

    def __init__(self, limit: int = MAX_REVOCATIONS) -> None:
        self._limit = limit
        self._held: dict[Key, Revocation] = {}
        self._ends: list[tuple[float, int, Key]] = []
        self._number = itertools.count()  # of two ends at the same time, the earlier made first
        self._lifted = 0

    def __len__(self) -> int:
        """How many refuse something."""
        return len(self._held) - self._lifted

    def all(self) -> list[Revocation]:
        """What is held, those that are lifted among them."""
        return list(self._held.values())

    def find(self, like: Revocation, now: float) -> Revocation | None:
        """What is refused of what another is about, if anything is."""
        held = self._held.get(like._about)  # noqa: SLF001 - of this module
        return held if held is not None and held.holds(now) else None

    def add(self, revocation: Revocation, now: float) -> bool:
        """Hold a revocation; False when it says nothing new. Of two about the same, both hold.

        One that is lifted ends those that were made before it.
        """
        self.sweep(now)
        about = revocation._about  # noqa: SLF001 - of this module
        held = self._held.get(about)
        if held is not None:
            revocation = joined(held, revocation)
        if not revocation.is_kept or revocation.until <= now or revocation == held:
            return False
        self._held[about] = revocation
        self._lifted += revocation.lifted - (held is not None and held.lifted)
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
            self._lifted -= held.lifted

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
