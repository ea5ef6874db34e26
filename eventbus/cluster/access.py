"""What a service orders the nodes to do: revoke access and undo that, or disconnect clients."""

import datetime
import time
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from eventbus.channels import Subjects, validate_channel
from eventbus.cluster.announcing import announce_revocation, stored_revocations
from eventbus.cluster.answers import Disconnect
from eventbus.cluster.revocation import Revocation
from eventbus.drivers import Driver

__all__ = ["LASTING_S", "Duration", "Moment", "disconnection", "revoke", "unrevoke"]

T = TypeVar("T")

LASTING_S: Final = 86_400.0
"""How long a revocation lasts by default: a day."""
_MAX_S: Final = 10 * 366 * 86_400.0

Moment: TypeAlias = datetime.datetime | float
"""An aware datetime, or seconds since 1970."""
Duration: TypeAlias = datetime.timedelta | float
"""A timedelta, or seconds."""


async def revoke(
    driver: Driver,
    subjects: Subjects,
    *,
    user: str | None,
    jti: str | None,
    channel: str | None,
    lasting: Duration,
    issued_before: Moment | None,
) -> None:
    """See `EventBus.revoke`."""
    seconds = lasting.total_seconds() if isinstance(lasting, datetime.timedelta) else lasting
    if not 0 < seconds <= _MAX_S:
        raise ValueError(f"lasting is {seconds:g} s; allowed: above 0, at most ten years")
    before = None if issued_before is None else _seconds(issued_before)
    now = time.time()
    revocation = _about(user, jti, channel, at=now, until=now + seconds, issued_before=before)
    await announce_revocation(driver, subjects, revocation)


async def unrevoke(
    driver: Driver, subjects: Subjects, *, user: str | None, jti: str | None, channel: str | None
) -> bool:
    """See `EventBus.unrevoke`."""
    like = _about(user, jti, channel, at=0, until=0)
    current = (await stored_revocations(driver)).get(like.key)
    if current is None:
        return False
    await announce_revocation(driver, subjects, current.lift(time.time()))
    return True


def disconnection(
    *,
    user: str | None,
    jti: str | None,
    connection: str | None,
    channel: str | None,
    reconnect: bool,
) -> Disconnect:
    """See `EventBus.disconnect`. Raises ValueError."""
    if sum(name is not None for name in (user, jti, connection, channel)) != 1:
        raise ValueError("name exactly one of user, jti, connection and channel")
    if channel is not None:
        validate_channel(channel)
        if reconnect:
            raise ValueError("reconnect cannot be combined with channel: connections stay open")
    given = {"user_id": user, "jti": jti, "connection_id": connection, "channel": channel}
    return _checked({**given, "reconnect": reconnect}, Disconnect)


def _about(
    user: str | None,
    jti: str | None,
    channel: str | None,
    *,
    at: float,
    until: float,
    issued_before: float | None = None,
) -> Revocation:
    if user is None and jti is None and channel is None:
        raise ValueError("name a user, a jti or a channel, or a channel together with one of them")
    if user is not None and jti is not None:
        raise ValueError("user and jti cannot be combined: a jti names the token of one user")
    if channel is not None:
        validate_channel(channel)
    return _checked(
        {
            "at": at, "until": until, "user_id": user, "jti": jti, "channel": channel,
            "issued_before": issued_before,
        },
        Revocation,
    )  # fmt: skip


def _checked(fields: dict[str, Any], type_: type[T]) -> T:
    """The struct, with types and bounds checked: nodes would drop an order that they cannot read.

    Raises ValueError.
    """
    try:
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None


def _seconds(moment: Moment) -> float:
    if not isinstance(moment, datetime.datetime):
        return moment
    if moment.tzinfo is None:
        raise ValueError("issued_before has no time zone: use an aware datetime")
    return moment.timestamp()
