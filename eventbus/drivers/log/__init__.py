"""The log driver: one line per message."""

from eventbus.drivers.log.driver import LogDriver

__all__ = [
    "LogDriver",
]
