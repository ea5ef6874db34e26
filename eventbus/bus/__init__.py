"""The bus: publishes events and plain messages through a driver, from its opening to its close."""

from eventbus.bus.bus import BusState, EventBus, Using
from eventbus.bus.unreachable import UnreachableBus

__all__ = ["BusState", "EventBus", "UnreachableBus", "Using"]
