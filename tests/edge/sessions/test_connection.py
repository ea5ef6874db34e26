"""A connection on its node: what it holds and releases, whenever it ends."""

import asyncio

import pytest

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus_edge.access.rules import Allowed, ChannelRules, Rule, Who
from eventbus_edge.config import EdgeSettings
from eventbus_edge.framing.frames import TEXT_FRAMES
from eventbus_edge.node import Node
from eventbus_edge.protocols.native import NATIVE
from eventbus_edge.protocols.vocabulary import (
    Authenticate,
    ChannelMessage,
    CloseReason,
    Ping,
    Subscribe,
    Unsubscribe,
)
from eventbus_edge.sessions.connection import AT_ONCE
from eventbus_edge.sessions.timing import SessionTime


class Socket:
    """A sink and peer that remembers, in order."""

    is_behind = False

    def __init__(self):
        self.log = []

    def write(self, data):
        self.log.append(data)

    def unsent(self):
        return 0

    def ping(self):
        self.log.append("ping")

    def close(self, closing):
        self.log.append(closing.code)


@pytest.fixture
async def bus():
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


@pytest.fixture
def heartbeat():
    """Seconds until a node asks a silent client, and as many until it closes the connection."""
    return 600.0


@pytest.fixture
async def node(bus, heartbeat):
    settings = EdgeSettings(heartbeat=heartbeat, unsubscribe_after=0.0, drain_time=0.0)
    made = Node(bus, settings, ChannelRules(), None)
    await made.start()
    yield made
    await made.aclose()


async def connect(node, *channels):
    socket = Socket()
    slot = node.access.admission.slots.enter("a")
    wire = node.wires.shared(NATIVE, TEXT_FRAMES)
    connection = node.acceptor.accept(wire, socket, socket, None, slot)
    assert connection.open([]) is None
    for channel in channels:
        await connection.handle(Subscribe(channel, None, 0, None))
    await turn()
    return connection, socket


async def turn():
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_earlier_frames_precede_the_close_and_nothing_follows_it(node, bus):
    connection, socket = await connect(node, "general")
    del socket.log[:]
    node._hub.push(connection.outbox, b"pending")
    connection.close(CloseReason.DRAINING, "draining")
    await bus.publish("general", "e", 1)
    await turn()
    assert socket.log == [b"pending", 4200]  # RFC 6455, 5.5.1: no data after a close frame


async def test_a_message_that_was_delivered_before_the_close_is_sent_before_it(node):
    connection, socket = await connect(node, "general")
    other, _ = await connect(node, "general")
    del socket.log[:]
    message = ChannelMessage("general", "e", b"{}", None, None)
    assert node._hub.deliver(message) == 2
    connection.close(CloseReason.DRAINING, "draining")
    await turn()
    frame = connection.outbox.format.message(message)
    assert socket.log == [frame, 4200]
    assert not other.is_closing


async def test_the_answer_to_the_third_bad_token_comes_before_the_close(node):
    connection, socket = await connect(node)
    del socket.log[:]
    for _ in range(3):
        await connection.handle(Authenticate("nonsense", None))
    await turn()
    *answers, code = socket.log
    assert b"".join(answers).count(b"eb:error") == 3
    assert code == 4001


async def test_a_command_that_comes_after_the_close_is_not_carried_out(node):
    connection, socket = await connect(node, "general")
    connection.close(CloseReason.DRAINING, "draining")
    await connection.handle(Unsubscribe("general", None))
    await connection.handle(Subscribe("public", None, 0, None))
    await connection.handle(Ping(None, None))
    node.connections.remove(connection)
    await turn()
    assert socket.log[-1] == 4200
    assert list(node._hub.channels) == []
    assert node.metrics.subscriptions.value == 0


async def test_a_channel_with_subscribers_is_joined_in_the_call_that_asked_for_it(node, bus):
    subscribe = Subscribe("general", None, 0, None)
    first, _ = await connect(node)
    await first.receive(subscribe)  # it has to subscribe on the bus
    second, socket = await connect(node)
    assert second.receive(subscribe) is None
    assert node._hub.count("general") == 2
    assert node.metrics.subscriptions.value == 2
    assert sum(node.metrics.tally.joins.counts) == 2
    del socket.log[:]
    await bus.publish("general", "e", 1)
    await turn()
    assert b'"event":"e"' in b"".join(socket.log)
    third, _ = await connect(node)
    work = third.receive(subscribe._replace(history=1))
    assert work is not None  # it may have to read
    await work


async def test_a_revoked_channel_is_not_joined_in_the_call_that_asked_for_it(node, monkeypatch):
    await connect(node, "general")
    connection, socket = await connect(node)
    monkeypatch.setattr(node.access.revoker, "forbids", lambda *_: True)
    effects = connection.session.consulted(
        Subscribe("general", None, 0, None), Allowed(node.access.rules.find("general"))
    )
    await connection._begin(effects, "joining")
    await turn()
    assert b"was revoked while it was joined" in b"".join(socket.log)
    assert node._hub.count("general") == 1
    assert node.metrics.subscriptions.value == 1


async def test_a_handshake_with_many_channels_joins_only_some_of_them_at_once(bus, monkeypatch):
    names = [f"public.{number}" for number in range(2 * AT_ONCE)]
    rules = ChannelRules([Rule(Pattern("public.*"), ChannelKind.PUBLIC, Who(anyone=True))])
    node = Node(bus, EdgeSettings(drain_time=0.0), rules, None)
    await node.start()
    await connect(node, *names)
    connection, socket = await connect(node)
    allowed = [(Subscribe(n, None, 0, None), Allowed(rules.find(n))) for n in names]
    rest = connection.open(allowed)
    assert rest is not None
    assert len(connection.session.channels) < AT_ONCE
    await rest
    await turn()
    assert list(connection.session.channels) == names
    assert b"".join(socket.log).count(b"eb:subscribed") == len(names)
    await node.aclose()


async def test_a_connection_is_closed_once(node):
    connection, socket = await connect(node)
    connection.close(CloseReason.DRAINING, "draining")
    connection.close(CloseReason.NO_HEARTBEAT, "silent")
    connection.ended(1009)
    assert [entry for entry in socket.log if isinstance(entry, int)] == [4200]
    assert node.metrics.closes.labels("4200")._value.get() == 1
    assert node.metrics.closes.labels("4203")._value.get() == 0


async def test_a_client_that_leaves_while_it_joins_holds_nothing(node, bus, monkeypatch):
    go, asked, subscribe = asyncio.Event(), asyncio.Event(), bus.driver.subscribe

    async def slow(subject, handler):
        asked.set()
        await go.wait()
        return await subscribe(subject, handler)

    monkeypatch.setattr(bus.driver, "subscribe", slow)
    connection, _ = await connect(node)
    joining = asyncio.create_task(connection.handle(Subscribe("general", None, 0, None)))
    await asked.wait()
    connection.ended(None)
    go.set()
    await joining
    node.connections.remove(connection)
    assert list(node._hub.channels) == []
    assert node.metrics.subscriptions.value == 0


@pytest.mark.parametrize("heartbeat", [0.1])
async def test_the_fault_of_one_connection_does_not_stop_the_clock_of_the_others(
    node, monkeypatch, caplog
):
    broken, socket = await connect(node)
    _, other = await connect(node)

    tick = SessionTime.tick

    def fail(time, now):
        if time is broken.session.time:
            raise ValueError("a bug")
        return tick(time, now)

    monkeypatch.setattr(SessionTime, "tick", fail)
    async with asyncio.timeout(40):
        while 4203 not in other.log:  # noqa: ASYNC110 - the log tells, by no event
            await asyncio.sleep(0.01)
    assert socket.log[-1] == 1011
    assert "a bug" in caplog.text


async def test_connection_is_removed_once_however_often_its_end_is_noticed(node):
    connection, _ = await connect(node, "general")
    assert node.connections == {connection.id: connection}
    for _ in range(2):
        node.connections.remove(connection)
    assert len(node.connections) == 0
    assert node.metrics.connections.value == 0


async def test_drain_closes_those_that_are_there_and_the_rest_is_closed_after_it(node):
    _, early = await connect(node)
    await node.connections.drain()
    _, late = await connect(node)  # its handshake was under way
    await node.connections.drain()
    assert (early.log[-1], late.log[-1] == 4200) == (4200, False)
    node.connections.close_remaining()
    assert [socket.log.count(4200) for socket in (early, late)] == [1, 1]
