"""Revocations in the HTTP API: the list of them, and how one is lifted."""

import datetime
import heapq
import time
from typing import Annotated

import msgspec

from eventbus.errors import InvalidChannel
from eventbus_edge.access.revocation import (
    Revocation,
    Revocations,
)
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.cluster.answers import MAX_LISTED
from eventbus_edge.problem import Problem

__all__ = [
    "LiftQuery",
    "Lifted",
    "RevocationList",
    "RevocationsQuery",
    "entry_of",
    "lift",
    "revocation_list",
]


Id = Annotated[str, msgspec.Meta(min_length=1)]


class RevocationsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many revocations to list."""

    limit: Annotated[
        int,
        msgspec.Meta(ge=1, le=MAX_LISTED, description="How many at most, the newest first."),
    ] = 1000


class LiftQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to lift: the same names by which it was revoked."""

    user_id: Id | None = None
    jti: Id | None = None
    channel: Id | None = None


class RevocationEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A revoked user, token (by its id) or channel; a channel for all, or for a user or token."""

    user_id: str | None
    jti: str | None
    channel: str | None
    revoked_at: datetime.datetime
    until: datetime.datetime


class RevocationList(msgspec.Struct, frozen=True, kw_only=True):
    """The revocations that hold, the newest first."""

    revocations: list[RevocationEntry]
    count: Annotated[int, msgspec.Meta(description="How many there are in all.")]


class Lifted(msgspec.Struct, frozen=True, kw_only=True):
    """The names whose revocation was lifted."""

    user_id: str | None
    jti: str | None
    channel: str | None


def entry_of(revocation: Revocation) -> RevocationEntry:
    """A revocation as the API shows it."""
    at, until = (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        for seconds in (revocation.at, revocation.until)
    )
    return RevocationEntry(
        user_id=revocation.user_id,
        jti=revocation.jti,
        channel=revocation.channel,
        revoked_at=at,
        until=until,
    )


def revocation_list(known: Revocations, limit: int) -> RevocationList:
    """The revocations that hold, at most `limit` of them, the newest first."""
    now = time.time()
    holding = [revocation for revocation in known.all() if revocation.holds(now)]
    newest = heapq.nlargest(limit, holding, key=lambda revocation: revocation.at)
    return RevocationList(revocations=[entry_of(each) for each in newest], count=len(holding))


async def lift(revoker: Revoker, asked: LiftQuery) -> Lifted:
    """Lift a revocation. Raises Problem for invalid names, and if nothing of them is revoked."""
    names = msgspec.structs.asdict(asked)
    try:
        was_revoked = await revoker.lift(**names)
    except InvalidChannel:
        raise
    except ValueError as exc:
        raise Problem("bad_request", str(exc)) from None
    if not was_revoked:
        raise Problem("not_found", "nothing of that is revoked")
    return Lifted(**names)
