"""Messages from the bus to connections: interest, fan-out and outboxes."""

from eventbus_edge.delivery.bus_health import BusHealth, fault_for_client
from eventbus_edge.delivery.history import CaughtUp, Stored
from eventbus_edge.delivery.hub import Backlog, Hub, Passed
from eventbus_edge.delivery.outbox import Outbox, Sink, Unsent
from eventbus_edge.delivery.quarantine import Quarantine
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.delivery.wire import Wire, Wires

__all__ = [
    "Backlog",
    "BusHealth",
    "CaughtUp",
    "Hub",
    "Outbox",
    "Passed",
    "Quarantine",
    "Sink",
    "Stored",
    "Traffic",
    "Unsent",
    "Wire",
    "Wires",
    "fault_for_client",
]
