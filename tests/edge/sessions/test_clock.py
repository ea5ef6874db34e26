"""The node's clock: who is looked at, and when."""

import asyncio
import gc
import logging
import time
import weakref
from types import SimpleNamespace

import pytest

from eventbus_edge.protocols.native import CLOSE_CODES
from eventbus_edge.sessions.clock import Clock

PATIENCE_S = 30


class Watched:
    """What the clock sees of a connection."""

    log = logging.getLogger("eventbus_edge.sessions.connection")

    def __init__(self, id_, due):
        self.id = id_
        self.is_closing = False
        self.closed = None
        self.ticks = 0
        self.fault = None
        self.due = due
        self.session = SimpleNamespace(time=SimpleNamespace(deadline=lambda: self.due))

    def tick(self, now):
        assert now >= self.due
        self.ticks += 1
        self.due = now + 3600
        if self.fault is not None:
            raise self.fault

    def close(self, reason, text):
        self.is_closing = True
        self.closed = CLOSE_CODES[reason]


class Node:
    """The connections, and the turns that the clock takes."""

    def __init__(self):
        self.connections = {}
        self.lags = []
        self.fault = None
        self._turns = asyncio.Queue()
        self.clock = Clock(
            self.connections,
            heartbeat_s=0.02,
            on_turn=self._look,
            on_lag=self.lags.append,
        )

    def add(self, id_, due):
        connection = self.connections[id_] = Watched(id_, due)
        self.clock.expect(connection)
        return connection

    def _look(self, now):
        self._turns.put_nowait(now)
        if self.fault is not None:
            raise self.fault

    async def turn(self):
        """A turn that begins from here on is over."""
        begin = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while await self._turns.get() < begin:
                pass
            await self._turns.get()  # the next one begins, so that one is over


@pytest.fixture
async def node():
    made = Node()
    made.clock.start()
    yield made
    await made.clock.aclose()


async def test_connection_is_checked_once_it_is_due_and_not_before(node):
    due, later = node.add("a", time.monotonic()), node.add("b", time.monotonic() + 3600)
    await node.turn()
    await node.turn()
    assert (due.ticks, later.ticks) == (1, 0)
    assert all(lag >= 0 for lag in node.lags)


async def test_nearer_deadline_replaces_the_one_that_is_set(node):
    connection = node.add("a", time.monotonic() + 3600)
    connection.due = time.monotonic()
    node.clock.expect(connection)
    await node.turn()
    assert connection.ticks == 1


async def test_connection_that_ended_or_closes_is_not_checked(node):
    gone, closing = node.add("a", 0.0), node.add("b", 0.0)
    node.clock.forget(gone)
    closing.is_closing = True
    await node.turn()
    assert (gone.ticks, closing.ticks) == (0, 0)


async def test_fault_of_one_connection_closes_it_and_stops_no_other(node, caplog):
    bad, good = node.add("a", 0.0), node.add("b", 0.0)
    bad.fault = RuntimeError("on purpose")
    await node.turn()
    assert (bad.closed, good.closed, good.ticks) == (1011, None, 1)
    assert "its clock failed" in caplog.text


async def test_fault_of_the_node_itself_does_not_stop_its_clock(node, caplog):
    node.fault = RuntimeError("on purpose")
    await node.turn()
    connection = node.add("a", 0.0)
    await node.turn()
    assert connection.ticks == 1
    assert "a turn of the node's clock failed" in caplog.text


async def test_clock_keeps_no_connection_that_has_ended(node):
    gone = weakref.ref(node.add("a", time.monotonic()))
    await node.turn()
    assert gone().ticks == 1
    del node.connections["a"]
    gc.collect()  # it refers to itself
    assert gone() is None
