"""Two events that most applications need: a notification to one user, and an alert to all.

`eventbus broadcast notify:user` and `system:alert` publish them. To have them in your application's
catalogue, import this module.
"""

from typing import Annotated

import msgspec

from eventbus.broadcasting import AlertLevel, Moment, NotificationData
from eventbus.events import Event, ShouldBroadcast
from eventbus.messages import utc_now

__all__ = ["Notification", "SystemAlert"]


class Notification(
    Event, ShouldBroadcast, channel="user.{user_id}", name="notification", kw_only=True
):
    """A notification to one user, on the user's private channel.

    `user_id` chooses the channel and is not part of the data.
    """

    user_id: str
    title: Annotated[str, msgspec.Meta(min_length=1)]
    message: str
    action_url: str | None = None
    """The link of the notification."""
    timestamp: Moment = msgspec.field(default_factory=utc_now)

    def broadcast_with(self) -> NotificationData:
        """The fields except `user_id`."""
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
    """Whether users have to act."""
    timestamp: Moment = msgspec.field(default_factory=utc_now)
