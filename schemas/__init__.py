"""The catalogue of events that ships with eventbus; one module for each domain."""

from schemas.chat import ChatMessage
from schemas.metrics import DashboardMetrics, LoadAverage
from schemas.notifications import Notification
from schemas.system import AlertLevel, SystemAlert
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
