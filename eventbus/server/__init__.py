"""The embedded nats-server: a real one, as a child process."""

from eventbus.server.lock import lock_folder, running_server
from eventbus.server.server import MIN_FREE, NatsServer, find_binary

__all__ = [
    "MIN_FREE",
    "NatsServer",
    "find_binary",
    "lock_folder",
    "running_server",
]
