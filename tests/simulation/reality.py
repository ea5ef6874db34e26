"""What the simulation replaces while it runs: time, randomness, nats-py and error logs."""

import contextlib
import functools
import gc
import importlib.metadata
import itertools
import logging
import random
import secrets
import sys
import time
import warnings

import uuid_utils

import eventbus.drivers.nats.connection.connection as nats_connection
import eventbus_edge.lifecycle.node as lifecycle_node
import eventbus_edge.sessions.clock as clock_module
import eventbus_edge.sessions.connection as edge_connection
import eventbus_edge.sessions.connections as edge_connections
from eventbus.drivers.nats.subscriptions import NatsSubscription
from eventbus.errors import EventBusError
from eventbus_edge.access import (
    admission,
)
from eventbus_edge.presence import keeper
from eventbus_edge.state import mirror
from tests.simulation.link import SimClient

TICK_S = 0.5
"""How often idle parts of a node check the time. Much of the work of a run is this."""
TICKS = (
    (clock_module, "_TURN_S"),
    (keeper, "_TICK_S"),
    (lifecycle_node, "_TICK_S"),
    (mirror, "_CHECK_S"),
)


_entry_points = functools.cache(importlib.metadata.entry_points)
"""Each new bus looks for drivers of installed packages, which reads files."""


class Faults(logging.Handler):
    """Collects unexpected errors, which are logged with their exception."""

    def __init__(self, errors):
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record):
        exc = record.exc_info[1] if record.exc_info else None
        if exc is not None and not isinstance(exc, EventBusError):
            self._errors.append(exc)


@contextlib.contextmanager
def simulated(world):
    """Replace time, randomness and nats-py with the world's own."""
    numbers = itertools.count(1)
    random_state = random.getstate()
    random.seed(0)
    replaced = []

    def replace(owner, name, value):
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    clock = world.clock
    replace(time, "monotonic", clock.monotonic)
    replace(time, "perf_counter", clock.monotonic)
    replace(time, "time", clock.wall)
    replace(time, "time_ns", clock.wall_ns)
    replace(uuid_utils, "uuid7", lambda: f"{next(numbers):032x}")
    replace(secrets, "token_hex", lambda size=8: f"{next(numbers):0{2 * size}x}")
    replace(secrets, "token_urlsafe", lambda _size=8: f"c{next(numbers)}")
    replace(importlib.metadata, "entry_points", _entry_points)
    replace(admission, "resident_bytes", lambda: None)
    for owner, name in TICKS:
        replace(owner, name, TICK_S)
    replace(nats_connection, "FastClient", SimClient)
    replace(nats_connection, "require_supported", lambda: None)
    # The order of a set of subscriptions must not depend on their addresses in memory.
    replace(NatsSubscription, "__hash__", lambda subscription: hash(subscription.subject))

    def closed_by_peer(filenos):
        wanted = set(filenos)
        there = {c.conn.fileno() for c in world.clients if c.conn is not None}
        return wanted - there

    replace(edge_connection, "closed_by_peer", closed_by_peer)
    replace(edge_connections, "closed_by_peer", closed_by_peer)
    SimClient.world = world
    handler = Faults(world.faults)
    for name in ("eventbus", "eventbus_edge"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        replace(log, "propagate", False)
        replace(log, "level", logging.ERROR)
    logging.Logger.manager._clear_cache()
    try:
        yield
    finally:
        for name in ("eventbus", "eventbus_edge"):
            logging.getLogger(name).removeHandler(handler)
        for owner, name, value in reversed(replaced):
            setattr(owner, name, value)
        logging.Logger.manager._clear_cache()
        random.setstate(random_state)


@contextlib.contextmanager
def quiet_collection():
    """Collect garbage only at the end of the block, and without warnings.

    Killed processes leave unfinished coroutines, which would cause warnings.
    """
    hook = sys.unraisablehook
    gc.disable()
    try:
        yield
    finally:
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        sys.unraisablehook = hook
        gc.enable()
