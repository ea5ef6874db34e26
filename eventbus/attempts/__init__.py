"""Attempts that may fail: the pauses between them, sharing them, and their log lines."""

from eventbus.attempts.backoff import Backoff, SharedAttempt
from eventbus.attempts.ratelimit import LOG_INTERVAL_S, OutageLog, RateLimitedLog, is_power_of_two

__all__ = [
    "LOG_INTERVAL_S",
    "Backoff",
    "OutageLog",
    "RateLimitedLog",
    "SharedAttempt",
    "is_power_of_two",
]
