"""User accounts."""

import datetime
from typing import Annotated

import msgspec

from eventbus.events import Event, ShouldBroadcast
from eventbus.messages import utc_now

__all__ = ["UserRegistered"]


class UserRegistered(Event, ShouldBroadcast, channel="user.registered", kw_only=True):
    """A user has created an account."""

    user_id: str
    name: str
    email: str | None = None
    registered_at: Annotated[datetime.datetime, msgspec.Meta(tz=True)] = msgspec.field(
        default_factory=utc_now
    )
