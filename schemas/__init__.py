"""The events of this repository's demo and documentation."""

from eventbus.broadcasting import AlertLevel
from eventbus.notifications import Notification, SystemAlert
from schemas.chat import ChatMessage
from schemas.metrics import DashboardMetrics, LoadAverage
from schemas.users import UserRegistered

__all__ = [
    "AlertLevel",
    "ChatMessage",
    "DashboardMetrics",
    "LoadAverage",
    "Notification",
    "SystemAlert",
    "UserRegistered",
]
