"""Two events that most applications have: a notification to one user, an alert to all.

`eventbus broadcast notify:user` and `system:alert` publish them. They are in your application's
catalogue where it imports this module.
"""

import datetime
from typing import Annotated

import msgspec

from eventbus.broadcasting import AlertLevel, NotificationData
from eventbus.events import Event, ShouldBroadcast
from eventbus.messages import utc_now

__all__ = ["Notification", "SystemAlert"]


class Notification(
    Event, ShouldBroadcast, channel="user.{user_id}", name="notification", kw_only=True
):
    """Something that one user should know, on the user's private channel.

    `user_id` says whose channel it is and is not part of the data.
    """

    user_id: str
    title: Annotated[str, msgspec.Meta(min_length=1)]
    message: str
    action_url: str | None = None
    """Where the user goes from here."""
    timestamp: datetime.datetime = msgspec.field(default_factory=utc_now)

    def broadcast_with(self) -> NotificationData:
        """The fields without the one that only routes the event."""
        return NotificationData(
            title=self.title,
            message=self.message,
            action_url=self.action_url,
            timestamp=self.timestamp,
        )


class SystemAlert(Event, ShouldBroadcast, channel="system", name="alert", kw_only=True):
    """An alert to every authenticated user."""

    level: AlertLevel
    message: str
    action_required: bool = False
    """Whether someone has to do something."""
    timestamp: datetime.datetime = msgspec.field(default_factory=utc_now)
