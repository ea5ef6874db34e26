"""One client's connection: a pure state machine, and what carries out its effects."""

from eventbus_edge.sessions.client_events import ClientEvents
from eventbus_edge.sessions.clock import Clock
from eventbus_edge.sessions.connection import Connection, Parts, Work, fileno_of, is_gone
from eventbus_edge.sessions.connections import Acceptor, Connections
from eventbus_edge.sessions.joining import Channels
from eventbus_edge.sessions.pauses import Pauses
from eventbus_edge.sessions.ports import PresenceRefused
from eventbus_edge.sessions.queries import Queries

__all__ = [
    "Acceptor",
    "Channels",
    "ClientEvents",
    "Clock",
    "Connection",
    "Connections",
    "Parts",
    "Pauses",
    "PresenceRefused",
    "Queries",
    "Work",
    "fileno_of",
    "is_gone",
]
