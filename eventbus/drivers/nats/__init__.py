"""The NATS driver."""

from eventbus.drivers.nats.auth import Servers, make_login
from eventbus.drivers.nats.driver import NatsDriver, embedded_server, needs_server
from eventbus.drivers.nats.errors import OldServerError
from eventbus.drivers.nats.jetstream import STREAM_NOT_FOUND, request_api, server_tags
from eventbus.drivers.nats.publish import WriteMonitor
from eventbus.drivers.nats.state import bucket_stream, durability_warning
from eventbus.drivers.nats.stream import EventStream, event_stream

__all__ = [
    "STREAM_NOT_FOUND",
    "EventStream",
    "NatsDriver",
    "OldServerError",
    "Servers",
    "WriteMonitor",
    "bucket_stream",
    "durability_warning",
    "embedded_server",
    "event_stream",
    "make_login",
    "needs_server",
    "request_api",
    "server_tags",
]
