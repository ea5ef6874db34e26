"""What concerns the system as a whole."""

import datetime

import msgspec

from eventbus.broadcasting import AlertLevel
from eventbus.events import Event, ShouldBroadcast
from eventbus.message import utc_now

__all__ = ["AlertLevel", "SystemAlert"]


class SystemAlert(Event, ShouldBroadcast, channel="system", name="alert", kw_only=True):
    """An alert to every authenticated user."""

    level: AlertLevel
    message: str
    action_required: bool = False
    """Whether someone has to do something."""
    timestamp: datetime.datetime = msgspec.field(default_factory=utc_now)
