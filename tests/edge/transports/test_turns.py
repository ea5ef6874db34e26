"""What clients make a node do in one turn of its event loop, counted on a clock of the tests."""

import asyncio
import collections
import contextlib
import json

import pytest

from eventbus_edge.access import Admission
from eventbus_edge.http import server
from eventbus_edge.http.front import HANDSHAKE_S
from eventbus_edge.lingering import MUCH
from eventbus_edge.protocols import CloseReason
from eventbus_edge.sessions.connection import Connection
from eventbus_edge.sessions.joining import Joiner
from eventbus_edge.transports.websocket import WebSocket
from eventbus_edge.turns import S_PER_BYTE, SHARE_S, TURN_S
from scripts.benchmark.bystanders.floods import frame, handshake, request

PATIENCE_S = 60.0
PING = frame(0x81, b'{"action":"ping"}')
STEP_S = SHARE_S / 2
"""What everything that is counted takes on the clock."""
MOST = (2 * TURN_S + SHARE_S) / STEP_S
"""Counted between two polls of the loop, which may have parts of two turns in them."""


class Turns:
    """Counts calls by turns of the event loop; each takes STEP_S."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.counts = collections.Counter()
        self._turn = 0
        self._monkeypatch = monkeypatch
        loop = asyncio.get_running_loop()
        run_once = loop._run_once

        def turn():
            self._turn += 1
            run_once()

        monkeypatch.setattr(loop, "_run_once", turn, raising=False)

    def clock(self):
        return self.now

    def count(self, owner, name):
        plain = getattr(owner, name)

        def counted(*args, **options):
            self.counts[self._turn] += 1
            self.now += STEP_S
            return plain(*args, **options)

        self._monkeypatch.setattr(owner, name, counted)

    @property
    def most(self):
        return max(self.counts.values())


@pytest.fixture
async def start(start_edge, bus, monkeypatch):
    """Start a node whose calls of a function are counted."""

    async def start(owner, name, **settings):
        edge = await start_edge(bus, **settings)
        turns = Turns(monkeypatch)
        monkeypatch.setattr(edge.node.connections.turns, "clock", turns.clock)
        turns.count(owner, name)
        return edge, turns

    return start


@contextlib.asynccontextmanager
async def clients(edge, count, data):
    """Connections that have sent data, once all are connected."""
    pairs = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(count)]
    for _, writer in pairs:
        writer.write(data)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.transport.abort()


async def read_all(readers, what, times):
    """Read until something has come that often from each."""

    async def read(reader):
        for _ in range(times):
            await reader.readuntil(what)

    await asyncio.gather(*map(read, readers))


@pytest.mark.parametrize("count", [1, 4, 40])
async def test_commands_of_any_number_of_clients_share_the_time_of_a_turn(start, count):
    edge, turns = await start(Connection, "receive")
    async with clients(edge, count, handshake("/ws") + PING * 50) as readers:
        await read_all(readers, b'"pong"', 50)
    assert turns.counts.total() == 50 * count
    assert turns.most <= MOST


async def test_large_messages_are_read_no_faster_than_they_are_handled(start, monkeypatch):
    edge, turns = await start(
        Connection, "receive", max_actions_per_second=10_000, action_burst=10_000
    )
    received = []
    receive = WebSocket.data_received

    def data_received(socket, data):
        received.append(turns._turn)
        receive(socket, data)

    monkeypatch.setattr(WebSocket, "data_received", data_received)
    large = frame(0x81, b'{"action":"ping","data":"%b"}' % (b"x" * 60_000))
    async with clients(edge, 4, handshake("/ws") + large * 50) as readers:
        await read_all(readers, b'"pong"', 50)
    assert turns.most <= MOST
    assert max(received.count(turn) for turn in received) <= MOST + 4


@pytest.mark.parametrize("count", [1, 4, 40])
async def test_requests_that_do_not_wait_for_answers_share_the_time_of_a_turn(start, count):
    edge, turns = await start(Admission, "request", max_requests_per_address=100_000)
    async with clients(edge, count, request("GET /nothing") * 50) as readers:
        await read_all(readers, b"HTTP/1.1 404", 50)
    assert turns.counts.total() == 50 * count
    assert turns.most <= MOST


@pytest.mark.parametrize(
    ("data", "answer"),
    [(handshake("/ws"), b"eb:connected"), (request("GET /nothing"), b"HTTP/1.1 404")],
    ids=["handshakes", "requests"],
)
async def test_crowd_that_comes_at_once_is_spread_over_turns(start, data, answer):
    edge, turns = await start(Admission, "request", max_requests_per_address=100_000)
    async with clients(edge, 100, data) as readers:
        await read_all(readers, answer, 1)
    assert turns.counts.total() == 100
    assert turns.most <= 2 * TURN_S / HANDSHAKE_S + 1


async def test_large_bodies_are_read_in_turns(start_edge, bus, monkeypatch):
    edge = await start_edge(bus, max_requests_per_address=100_000)
    turns, read = Turns(monkeypatch), collections.Counter()
    parse = server._RequestHandler._parse

    def counted(handler, data):
        if len(data) >= MUCH:
            read[turns._turn] += 1
        parse(handler, data)

    monkeypatch.setattr(server._RequestHandler, "_parse", counted)
    async with clients(edge, 8, request("POST /nothing", bytes(900_000)) * 5) as readers:
        await read_all(readers, b"HTTP/1.1 404", 5)
    assert read.total() > 80
    # The first packet of each has been read before its turn comes.
    assert sum(count > 4 for count in read.values()) <= 2


async def test_commands_in_the_body_of_a_stream_share_the_time_of_a_turn(start, token):
    edge, turns = await start(Joiner, "enter")
    body = json.dumps([{"action": "subscribe", "channel": f"chat.{n}"} for n in range(50)])
    asked = request("POST /sse", body.encode(), f"Authorization: Bearer {token()}")
    async with clients(edge, 4, asked) as readers:
        await read_all(readers, b'"eb:subscribed"', 50)
    assert turns.counts.total() == 200
    assert turns.most <= MOST


async def test_client_that_behaves_is_served_while_others_flood(start):
    edge, _ = await start(Connection, "receive")
    flood, polite = handshake("/ws") + PING * 20_000, handshake("/ws") + PING
    async with clients(edge, 20, flood), clients(edge, 1, polite) as readers:
        await read_all(readers, b'"pong"', 1)


async def test_closed_client_that_floods_is_read_a_little_in_each_turn(start_edge, bus):
    """uvloop delivers what it reads again and again, in one turn, until reading is paused."""
    edge = await start_edge(bus)
    async with clients(edge, 1, handshake("/ws")) as readers:
        await read_all(readers, b"eb:connected", 1)
        [connection] = edge.node.connections.values()
        socket = connection._peer
        connection.close(CloseReason.DISCONNECTED, "closed by a test")
        await asyncio.sleep(0)
        reads, large = 0, frame(0x81, bytes(60_000)) * 4
        while socket._transport.is_reading() and reads < 1000:
            socket.data_received(large)
            reads += 1
    assert 1 < reads <= TURN_S / (len(large) * S_PER_BYTE) + 3
