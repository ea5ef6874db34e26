"""The revocations that a node knows of, and the users that they may concern. Pure."""

import heapq
import itertools
from typing import Final, NamedTuple

from eventbus.channels import Pattern
from eventbus.cluster import Bearer, Revocation, RevocationKey, combined

__all__ = ["MAX_REVOCATIONS", "ProvenUser", "Revocations"]


MAX_REVOCATIONS: Final = 100_000
"""How many are kept in memory, about 50 MB; beyond that, the one that ends first is dropped."""

_MAX_SWEPT: Final = 1000
"""How many revocations a sweep removes at most: that takes about a millisecond."""


class ProvenUser(NamedTuple):
    """The user of one subscription, named by its proof.

    A proof is made for a connection that exists. So it counts as issued when that was opened: a
    user who connects again after a revocation, and gets a new proof, gets in again.
    """

    user_id: str
    iat: float | None
    jti: str | None = None


class Revocations:
    """The revocations that a node knows of. Times are in seconds since 1970."""

    def __init__(self, limit: int = MAX_REVOCATIONS, *, leeway_s: float = 0.0) -> None:
        self.forgotten = 0
        """How many were dropped too early because of the limit."""
        self._limit = limit
        self._leeway_s = leeway_s
        self._longer_s = 2 * leeway_s
        self._known: dict[RevocationKey, Revocation] = {}
        self._channels: dict[tuple[str | None, str | None], set[str]] = {}
        """The channels of revocations that concern one, by user and token."""
        self._ends: list[tuple[float, int, RevocationKey]] = []
        """One entry per revocation; it may be too early, after the end was postponed."""
        self._number = itertools.count()  # breaks ties: the one added first ends first
        self._lifted = 0

    def __len__(self) -> int:
        """The number of revocations that are not lifted."""
        return len(self._known) - self._lifted

    def all(self) -> list[Revocation]:
        """All known revocations, including lifted ones."""
        return list(self._known.values())

    def find(self, like: Revocation, now: float) -> Revocation | None:
        """The revocation in force with the same key as another, if any."""
        known = self.get(like)
        return known if known is not None and known.holds(now - self._longer_s) else None

    def get(self, like: Revocation) -> Revocation | None:
        """The known revocation with the same key as another, lifted or not."""
        return self._known.get(like.about)

    def add(self, revocation: Revocation, now: float) -> bool:
        """Add a revocation, merged with a known one of the same key; False if nothing changed.

        A lifted one undoes those that were made before it.
        """
        self.sweep(now)
        about = revocation.about
        known = self._known.get(about)
        if known is not None:
            revocation = combined(known, revocation)
        is_over = revocation.until + self._longer_s <= now
        if not revocation.is_kept or is_over or revocation == known:
            return False
        self._known[about] = revocation
        self._lifted += revocation.lifted - (known is not None and known.lifted)
        if known is None:
            user_id, jti, channel = about
            if channel is not None:
                self._channels.setdefault((user_id, jti), set()).add(channel)
            heapq.heappush(self._ends, (revocation.until, next(self._number), about))
        while len(self._known) > self._limit:
            self.forgotten += self._pop()
        return True

    def sweep(self, now: float) -> bool:
        """Remove some expired revocations; returns whether there are more.

        Those that remain refuse nothing.
        """
        for _ in range(_MAX_SWEPT):
            if not self._ends or self._ends[0][0] + self._longer_s > now:
                return False
            self._pop()
        return True

    def _pop(self) -> bool:
        """Remove the revocation that ends first; False if its end turns out to be later."""
        until, number, about = heapq.heappop(self._ends)
        known = self._known[about]
        if known.until > until:
            heapq.heappush(self._ends, (known.until, number, about))
            return False
        del self._known[about]
        self._lifted -= known.lifted
        user_id, jti, channel = about
        if channel is not None:
            channels = self._channels[user_id, jti]
            channels.discard(channel)
            if not channels:
                del self._channels[user_id, jti]
        return True

    def forbids_token(self, claims: Bearer, now: float) -> bool:
        """Whether a token is revoked."""
        if not self._known:
            return False
        return self._meets([(claims.user_id, None, None), (None, claims.jti, None)], claims, now)

    def forbids(self, channel: str, claims: Bearer | None, now: float) -> bool:
        """Whether the bearer's access to the channel is revoked."""
        if claims is None or not self._known:
            return False
        user_id, jti = claims.user_id, claims.jti
        about: list[RevocationKey] = [
            (None, None, channel),
            (user_id, None, channel),
            (None, jti, channel),
        ]
        return self._meets(about, claims, now)

    def forbids_any(self, pattern: Pattern, claims: Bearer, now: float) -> bool:
        """Whether the bearer's access to any channel that the pattern matches is revoked."""
        return any(
            pattern.match(channel) is not None and self._meets([(*who, channel)], claims, now)
            for who in {(None, None), (claims.user_id, None), (None, claims.jti)}
            for channel in self._channels.get(who, ())
        )

    def _meets(self, about: list[RevocationKey], claims: Bearer, now: float) -> bool:
        found = (self._known.get(key) for key in about)
        return any(r is not None and self._refuses(r, claims, now) for r in found)

    def _refuses(self, revocation: Revocation, claims: Bearer, now: float) -> bool:
        is_over = revocation.until + self._longer_s <= now
        return not is_over and revocation.concerns(None, claims, self._leeway_s)
