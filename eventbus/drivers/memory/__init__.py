"""The in-memory driver: the reference implementation, and a test double."""

from eventbus.drivers.memory.driver import MemoryBroker, MemoryDriver

__all__ = [
    "MemoryBroker",
    "MemoryDriver",
]
