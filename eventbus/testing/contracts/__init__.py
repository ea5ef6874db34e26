"""The test suites that every driver must pass. Inherit from `DriverContract` to run them."""

from eventbus.testing.contracts.driver import DriverContract
from eventbus.testing.contracts.probes import Changes, Inbox, MakeDriver
from eventbus.testing.contracts.retention import RetentionContract

__all__ = [
    "Changes",
    "DriverContract",
    "Inbox",
    "MakeDriver",
    "RetentionContract",
]
