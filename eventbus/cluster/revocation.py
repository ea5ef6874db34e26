"""Revocations of users, tokens, and their access to channels before they expire. Pure.

A revocation applies to tokens that were issued before it was made (by `iat`; it always applies to
tokens without one), so that a user who logs in again later gets in again. A revocation by `jti`
applies to that token, whenever it was issued. Revocations are kept until such tokens have expired.

The clocks of issuers, nodes and revokers differ by at most a leeway. So a revocation also applies
to tokens issued up to the leeway after it: the issuer's clock may have been ahead. And it is in
force for twice the leeway longer than tokens live: once for such a token, and once because a token
is accepted for the leeway after its `exp`. A caller who knows the time by the issuer's own clock
can pass it as `issued_before`, which is compared exactly.

A revocation is undone by a lifted one, which replaces it for as long as it would have been in
force. So a node that still has the original cannot bring it back. Of the two, the later one counts.
"""

import hashlib
from typing import Annotated, Final, Protocol, TypeAlias

import msgspec

from eventbus.channels import validate_channel

__all__ = ["Bearer", "Revocation", "RevocationKey", "combined"]


_LATER_S: Final = 0.001
"""More than the rounding error of a float of this size."""

RevocationKey: TypeAlias = tuple[str | None, str | None, str | None]
"""The user, the token and the channel that a revocation is about."""
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
"""Since 1970, until the year 9999."""


class Bearer(Protocol):
    """Whom a revocation may concern: the claims of a token, for example."""

    @property
    def user_id(self) -> str:
        """The user."""

    @property
    def jti(self) -> str | None:
        """The token's id."""

    @property
    def iat(self) -> float | None:
        """When the token was issued, in seconds since 1970."""


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who or what is refused: exactly one of `user_id`, `jti`, `connection_id` and `channel`.

    A `channel` together with a `user_id` or `jti` revokes access to that channel only. A connection
    is only closed, and its client may connect again. So may clients without a token subscribe to a
    revoked channel again.
    """

    at: Seconds
    """When it was made, in seconds since 1970."""
    until: Seconds
    user_id: Name | None = None
    jti: Name | None = None
    connection_id: Name | None = None
    channel: str | None = None
    issued_before: Seconds | None = None
    """By the issuer's clock: tokens with this `iat` or a later one are not revoked."""
    lifted: bool = False
    """Whether it undoes earlier revocations of the same user, token or channel."""

    def __post_init__(self) -> None:
        """Raises ValueError, InvalidChannel included."""
        given = [name for name in (self.user_id, self.jti, self.connection_id) if name is not None]
        if len(given) > 1 or (not given and self.channel is None):
            raise ValueError(
                "a revocation needs exactly one of user_id, jti, connection_id and channel; "
                "a channel may be combined with a user_id or a jti"
            )
        if self.channel is not None:
            if self.connection_id is not None:
                raise ValueError("a revocation of a connection has no channel")
            validate_channel(self.channel)
        if self.lifted and self.connection_id is not None:
            raise ValueError("a closed connection cannot be restored: there is nothing to lift")
        if self.issued_before is not None and (self.jti is not None or self.connection_id):
            raise ValueError(
                "issued_before needs a user_id or a channel: a jti is refused whenever it was "
                "issued, and a connection is only closed"
            )

    @property
    def is_kept(self) -> bool:
        """Whether it must be stored, because it refuses something later on."""
        return self.connection_id is None

    def holds(self, now: float) -> bool:
        """Whether it is in force at that time."""
        return self.is_kept and not self.lifted and self.until > now

    def lift(self, now: float) -> "Revocation":
        """A revocation that undoes this one, and is later than it even if clocks differ."""
        at = max(self.at, now)
        return msgspec.structs.replace(self, at=at, lifted=True, issued_before=None)

    def after(self, held: "Revocation | None") -> "Revocation":
        """A copy that is later than the lifted revocation that it follows, even if clocks differ.

        Otherwise a lift by a clock that is ahead would undo a revocation made after it.
        """
        if held is None or not held.lifted or self.lifted or self.at > held.at:
            return self
        return msgspec.structs.replace(self, at=held.at + _LATER_S)

    @property
    def key(self) -> str:
        """A token for state keys: equal for revocations of the same user, token and channel."""
        return hashlib.sha256(msgspec.json.encode(self.about)).hexdigest()[:40]

    @property
    def about(self) -> RevocationKey:
        """What it is about, for comparison."""
        return self.user_id, self.jti, self.channel

    def concerns(self, connection_id: str | None, claims: Bearer | None, leeway_s: float) -> bool:
        """Whether it applies to this connection, or to the bearer of these claims.

        The clocks of the issuer and the revoker may differ by `leeway_s`.
        """
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
        if claims.iat is None:
            return True
        if self.issued_before is not None:
            return claims.iat < self.issued_before
        return claims.iat <= self.at + leeway_s


def combined(one: Revocation, other: Revocation) -> Revocation:
    """The combined effect of two revocations with the same key, in any order."""
    until = max(one.until, other.until)
    if one.lifted == other.lifted:
        at, before = max(one.at, other.at), None
        if one.issued_before is not None and other.issued_before is not None:
            before = max(one.issued_before, other.issued_before)
        elif not one.lifted:
            # The two times are not comparable: the later one covers all tokens of both.
            at = max(at, one.issued_before or 0.0, other.issued_before or 0.0)
        return msgspec.structs.replace(one, at=at, until=until, issued_before=before)
    lift, revocation = (one, other) if one.lifted else (other, one)
    if lift.at >= revocation.at:
        return msgspec.structs.replace(lift, until=until)
    return revocation
