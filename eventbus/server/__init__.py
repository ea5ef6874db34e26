"""The embedded nats-server: a real one, as a child process."""

from eventbus.server.advisories import Advisory, advisories_of
from eventbus.server.folder import LOCAL, make_local_folder
from eventbus.server.lock import lock_folder, running_server, write_holder
from eventbus.server.server import MIN_FREE, SYNC_TAG, NatsServer, find_binary, syncs_always

__all__ = [
    "LOCAL",
    "MIN_FREE",
    "SYNC_TAG",
    "Advisory",
    "NatsServer",
    "advisories_of",
    "find_binary",
    "lock_folder",
    "make_local_folder",
    "running_server",
    "syncs_always",
    "write_holder",
]
