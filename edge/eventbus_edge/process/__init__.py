"""Running nodes as processes: signals, listening sockets, and several workers on one port."""

from eventbus_edge.process.production import production_problems
from eventbus_edge.process.serving import serve
from eventbus_edge.process.supervisor import READY, Supervisor

__all__ = [
    "READY",
    "Supervisor",
    "production_problems",
    "serve",
]
