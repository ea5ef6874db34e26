"""How connections end (RFC 6455, section 7), and packets with a close frame and other frames."""

import asyncio
import dataclasses
import json
import ssl

import pytest
import pytest_asyncio
import trustme
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from eventbus_edge import lingering
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import (
    create_app,
    make_runner,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.keys import NODE
from eventbus_edge.protocols.vocabulary import CloseReason
from eventbus_edge.transports import websocket
from tests.conformance.wire import (
    ACCEPT,
    CLOSE,
    KEY,
    PING,
    PONG,
    TEXT,
    close,
    deflated,
    frame,
    read_frame,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 40.0
LIMIT = 65_536
SECRET = "a-secret-of-tests-that-is-32-bytes-long"

# What a client sends


def command(ref=1, size=None):
    """A ping of the wire protocol, whose answer repeats `ref`, padded to `size` bytes."""
    text = b'{"action":"ping","ref":%d,"data":""}' % ref
    return text if size is None else text[:-2] + b"x" * (size - len(text)) + text[-2:]


def say(ref=1, **options):
    return frame(TEXT, command(ref), **options)


def squeezed(payload, **options):
    return frame(TEXT, deflated(payload), rsv=4, **options)


# Nodes and clients


@dataclasses.dataclass
class Nodes:
    runner: web.AppRunner
    ports: dict[bool, int]
    """By whether TLS is spoken there."""
    trust: ssl.SSLContext
    bus: EventBus

    @property
    def node(self):
        return self.runner.app[NODE]

    async def connect(self, *, tls, deflated, path="/ws", more=b""):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.ports[tls], ssl=self.trust if tls else None
        )
        extensions = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflated else ""
        head = (
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extensions}\r\n"
        )
        writer.write(head.encode() + more)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert answer.startswith("HTTP/1.1 101 ")
        assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n" in answer
        assert ("permessage-deflate" in answer) == deflated
        client = Client(reader, writer)
        assert json.loads((await client.frame())[1])["event"] == "eb:connected"
        return client


class Client:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def frame(self):
        """The opcode and payload of the next frame of the server."""
        return await read_frame(self.reader, PATIENCE_S)

    async def answers(self):
        """The answers in the frames up to the close frame, and its code."""
        answers = []
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return [*answers, int.from_bytes(payload[:2]) if payload else None]
            if opcode == PONG:
                answers.append(payload)
            else:
                data = json.loads(payload)["data"]
                answers.append(data.get("ref", data.get("code")))

    async def ended(self):
        """All bytes up to the end of the stream, which must not be a reset."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    def leave(self):
        self.writer.transport.abort()


@pytest.fixture(autouse=True)
def counted(summarize):
    summarize("Close, RFC 6455, 7", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes():
    """One node with a plain port and a TLS port, for all cases."""
    authority = trustme.CA()
    tls, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(trust)
    pace = {"max_actions_per_second": 1e6, "action_burst": 10**6}
    settings = EdgeSettings(
        compression=True,
        max_requests_per_address=1e6,
        max_frame_bytes=LIMIT,
        max_whispers_per_channel=1e6,
        jwt_secret=SECRET,
        drain_time=0.0,
        **pace,
    )
    async with EventBus(Settings(driver="memory")) as bus:
        runner = make_runner(create_app(settings, bus, rules=ChannelRules()))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        ports = dict(zip((False, True), (at[1] for at in runner.addresses), strict=True))
        yield Nodes(runner, ports, trust, bus)
        await runner.cleanup()


over_all = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


# Packets of several frames


@over_all
async def test_waiting_command_is_answered_before_a_later_close(nodes, tls):
    """RFC 6455, 5.5.1: what was sent before the close frame is carried out, and acknowledged."""
    token = issue_token("7", secret=SECRET)
    path = f"/ws/chat.1?auth_token={token}"
    listener = await nodes.connect(tls=tls, deflated=False, path=path)
    client = await nodes.connect(tls=tls, deflated=False, path=path)
    for each in (listener, client):
        assert json.loads((await each.frame())[1])["event"] == "eb:subscribed"
    whisper = b'{"action":"whisper","channel":"chat.1","event":"e","data":%d,"ref":%d}'
    whispers = [frame(TEXT, whisper % (number, number)) for number in range(5)]
    client.writer.write(b"".join(whispers) + frame(PING, b"p") + close(1000))
    assert await client.answers() == [*range(5), b"p", 1000]
    assert [json.loads((await listener.frame())[1])["data"] for _ in range(5)] == list(range(5))
    listener.leave()
    client.leave()


@over_all
async def test_frames_that_come_with_the_handshake_are_served(nodes, tls):
    more = say(1) + frame(PING, b"p") + close(1000)
    client = await nodes.connect(tls=tls, deflated=False, more=more)
    assert await client.answers() == [1, b"p", 1000]
    client.leave()


@over_all
async def test_close_handshake_of_the_client_ends_the_stream_at_once(nodes, tls):
    client = await nodes.connect(tls=tls, deflated=False)
    client.writer.write(close(1000) + b"what must not follow" * 100_000)
    assert await client.answers() == [1000]
    assert await client.ended() == b""
    client.leave()


@over_all
async def test_nothing_more_is_read_while_a_command_waits(nodes, only, tls, monkeypatch):
    """A client that sends faster than it is served is slowed by its own socket."""
    go, asked, subscribe = asyncio.Event(), asyncio.Event(), nodes.bus.driver.subscribe

    async def slow(*arguments, **options):
        asked.set()
        await go.wait()
        return await subscribe(*arguments, **options)

    monkeypatch.setattr(nodes.bus.driver, "subscribe", slow)
    client = await nodes.connect(tls=tls, deflated=False)
    socket = (await only())._peer
    channel = b"announcements" if tls else b"public"  # without other subscribers
    client.writer.write(frame(TEXT, b'{"action":"subscribe","channel":"%b"}' % channel))
    async with asyncio.timeout(PATIENCE_S):
        await asked.wait()
    count = 400
    text = b'{"action":"ping","ref":%d,"x":"' + b"x" * 60_000 + b'"}'  # of a short answer
    client.writer.write(b"".join(frame(TEXT, text % ref) for ref in range(count)))
    sending = asyncio.create_task(client.writer.drain())
    async with asyncio.timeout(PATIENCE_S):
        while not socket._is_held:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(socket._reader._data) < 1_000_000
    go.set()
    assert json.loads((await client.frame())[1])["event"] == "eb:subscribed"
    refs = [json.loads((await client.frame())[1])["data"]["ref"] for _ in range(count)]
    assert refs == list(range(count))
    await sending
    client.leave()


# A close by the server


@pytest.fixture
def only(nodes):
    """The one connection of the node."""

    async def find():
        async with asyncio.timeout(PATIENCE_S):
            while len(nodes.node.connections) != 1:  # noqa: ASYNC110 - others are about to end
                await asyncio.sleep(0.01)
        return next(iter(nodes.node.connections.values()))

    return find


async def all_ended(nodes):
    async with asyncio.timeout(PATIENCE_S):
        while nodes.node.connections._sockets:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


@over_all
async def test_close_of_the_server_waits_for_the_clients_answer(nodes, only, tls):
    """RFC 6455, 5.5.1 and 7.1.1."""
    client = await nodes.connect(tls=tls, deflated=False)
    (await only()).close(CloseReason.DRAINING, "draining")
    assert await client.answers() == [4200]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.reader.read()
    client.writer.write(close(4200))
    assert await client.ended() == b""
    client.leave()


@over_all
async def test_close_of_the_server_waits_for_a_bounded_time(nodes, only, tls, monkeypatch):
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(lingering, "LINGER_S", 0.2)
    client = await nodes.connect(tls=tls, deflated=False)
    (await only()).close(CloseReason.DRAINING, "draining")
    assert await client.answers() == [4200]
    assert await client.ended() == b""
    await all_ended(nodes)
    client.leave()


@over_all
async def test_client_that_does_not_read_is_cut_after_its_time(nodes, only, tls, monkeypatch):
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(lingering, "LINGER_S", 0.2)
    client = await nodes.connect(tls=tls, deflated=False)
    client.writer.transport.pause_reading()
    connection = await only()
    connection.write(frame(TEXT, b"x" * 60_000, mask=False) * 400)
    connection.close(CloseReason.TOO_SLOW, "too slow")
    await all_ended(nodes)
    client.leave()


@over_all
async def test_nothing_follows_the_servers_close_to_a_slow_client(nodes, only, tls):
    """RFC 6455, 5.5.1: no data after a close frame."""
    client = await nodes.connect(tls=tls, deflated=False, path="/ws/general")
    assert json.loads((await client.frame())[1])["event"] == "eb:subscribed"
    client.writer.transport.pause_reading()
    connection = await only()
    while not connection._peer.unsent():
        await nodes.bus.publish("general", "e", "x" * 30_000, volatile=True)
        await asyncio.sleep(0)
    connection.close(CloseReason.DRAINING, "draining")
    for _ in range(20):
        await nodes.bus.publish("general", "e", "late", volatile=True)
    connection.write(b"late")
    client.writer.transport.resume_reading()
    opcode = TEXT
    while opcode == TEXT:
        opcode, payload = await client.frame()
        assert b"late" not in payload
    assert (opcode, payload[:2]) == (CLOSE, (4200).to_bytes(2))
    client.writer.write(close(4200))
    assert await client.ended() == b""
    client.leave()


@over_all
async def test_both_may_begin_to_close_at_once(nodes, only, tls):
    client = await nodes.connect(tls=tls, deflated=False)
    connection = await only()
    client.writer.write(close(1001))
    connection.close(CloseReason.DRAINING, "draining")
    assert await client.answers() == [4200]
    assert await client.ended() == b""
    client.leave()


@over_all
async def test_closed_connections_leave_nothing_behind(nodes, tls):
    await all_ended(nodes)
    before = len(asyncio.all_tasks())
    for _ in range(20):
        client = await nodes.connect(tls=tls, deflated=True)
        client.writer.write(squeezed(command()) + close(1000))
        assert await client.answers() == [1, 1000]
        client.leave()
    await all_ended(nodes)
    assert len(nodes.node.connections) == 0
    assert len(nodes.node.access.admission.slots) == 0
    assert not nodes.node.access.admission._sockets
    assert len(asyncio.all_tasks()) <= before
