"""User accounts."""

import datetime

import msgspec

from eventbus.events import Event, ShouldBroadcast
from eventbus.messages import utc_now

__all__ = ["UserRegistered"]


class UserRegistered(Event, ShouldBroadcast, channel="user.registered", kw_only=True):
    """A user has created an account."""

    user_id: str
    name: str
    email: str | None = None
    registered_at: datetime.datetime = msgspec.field(default_factory=utc_now)
