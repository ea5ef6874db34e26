"""WebSockets and Server-Sent Events."""

from eventbus_edge.transports.sse import add_sse
from eventbus_edge.transports.upgrade import add_websocket
from eventbus_edge.transports.websocket import MAX_CLOSE_S

__all__ = [
    "MAX_CLOSE_S",
    "add_sse",
    "add_websocket",
]
