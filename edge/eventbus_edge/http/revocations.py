"""Listing and lifting revocations over the HTTP API."""

import datetime
import heapq
import time
from typing import Annotated

import msgspec

from eventbus.cluster import MAX_LISTED, Revocation
from eventbus.errors import InvalidChannel
from eventbus_edge.access import Revocations, Revoker
from eventbus_edge.problem import Problem

__all__ = [
    "LiftQuery",
    "Lifted",
    "RevocationList",
    "RevocationsQuery",
    "active_revocation",
    "lift",
    "revocation_list",
]


Id = Annotated[str, msgspec.Meta(min_length=1)]


class RevocationsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a list of revocations."""

    limit: Annotated[
        int,
        msgspec.Meta(ge=1, le=MAX_LISTED, description="The maximum number, newest first."),
    ] = 1000


class LiftQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The revocation to lift, by the same ids that it was made with."""

    user_id: Id | None = None
    jti: Id | None = None
    channel: Id | None = None


class ActiveRevocation(msgspec.Struct, frozen=True, kw_only=True):
    """A revoked user, token, or channel; a channel may be revoked for one user or token only."""

    user_id: str | None
    jti: str | None
    channel: str | None
    revoked_at: datetime.datetime
    until: datetime.datetime


class RevocationList(msgspec.Struct, frozen=True, kw_only=True):
    """The revocations in force, newest first."""

    revocations: list[ActiveRevocation]
    count: Annotated[int, msgspec.Meta(description="The total number.")]


class Lifted(msgspec.Struct, frozen=True, kw_only=True):
    """The revocation that was lifted."""

    user_id: str | None
    jti: str | None
    channel: str | None


def active_revocation(revocation: Revocation) -> ActiveRevocation:
    """A revocation as the API shows it."""
    at, until = (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        for seconds in (revocation.at, revocation.until)
    )
    return ActiveRevocation(
        user_id=revocation.user_id,
        jti=revocation.jti,
        channel=revocation.channel,
        revoked_at=at,
        until=until,
    )


def revocation_list(known: Revocations, limit: int) -> RevocationList:
    """The newest revocations in force, at most `limit`."""
    now = time.time()
    holding = [revocation for revocation in known.all() if revocation.holds(now)]
    newest = heapq.nlargest(limit, holding, key=lambda revocation: revocation.at)
    return RevocationList(
        revocations=[active_revocation(each) for each in newest], count=len(holding)
    )


async def lift(revoker: Revoker, query: LiftQuery) -> Lifted:
    """Lift a revocation. Raises Problem for invalid ids, and if nothing is revoked."""
    names = msgspec.structs.asdict(query)
    try:
        was_revoked = await revoker.lift(**names)
    except InvalidChannel:
        raise
    except ValueError as exc:
        raise Problem("bad_request", str(exc)) from None
    if not was_revoked:
        raise Problem("not_found", "there is no such revocation")
    return Lifted(**names)
