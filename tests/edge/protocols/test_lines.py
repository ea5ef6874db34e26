"""A second protocol, of lines of words, beside the native one: nothing else knows of it."""

import asyncio
import contextlib
import hmac
import itertools
import json

import aiohttp
import pytest
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from eventbus.bus import EventBus
from eventbus.cluster.answers import Disconnect
from eventbus.config import Settings
from eventbus_edge.app import WEBSOCKETS
from eventbus_edge.protocols.base import Liveness, Proven
from eventbus_edge.protocols.vocabulary import (
    Authenticate,
    ChannelMessage,
    CloseReason,
    Closing,
    Connected,
    Failed,
    Malformed,
    Member,
    PresenceChanged,
    Returns,
    SignOfLife,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Whisper,
)

KEY = b"the key that signs subscriptions"
CODES = {CloseReason.NO_HEARTBEAT: 4901, CloseReason.DRAINING: 4902, CloseReason.REVOKED: 4903}


def sign(connection_id, channel, user):
    return hmac.digest(KEY, f"{connection_id}:{channel}:{user}".encode(), "sha256").hex()


class Lines:
    """Clients send SUB, LEAVE, SAY, TOKEN and HERE; only subscriptions and errors are answered.

    A subscription may name its member, with a signature over connection, channel and user.
    """

    subprotocols = None
    name = "lines"
    announces_close = True
    liveness = Liveness(heartbeat=b"THERE?", control_frames=False)

    def __init__(self):
        self.encoded = 0
        self._ids = itertools.count(1)

    def connection_id(self):
        return f"{next(self._ids)}.{id(self)}"

    def decode(self, frame):
        match frame.split(" ", 3) if isinstance(frame, str) else []:
            case ["SUB", channel]:
                return Subscribe(channel, None, 0, None)
            case ["SUB", channel, user, signature]:
                return Subscribe(channel, None, 0, None, (user, signature))
            case ["LEAVE", channel]:
                return Unsubscribe(channel, None)
            case ["SAY", channel, event, data]:
                return Whisper(channel, event, data.encode(), None)
            case ["TOKEN", token]:
                return Authenticate(token, None)
            case ["HERE"]:
                return SignOfLife()
        return Malformed("bad_request", "no such line", None)

    def message(self, message):
        self.encoded += 1
        match message:
            case ChannelMessage(channel, event, body):
                return b"MSG %b %b %b" % (channel.encode(), event.encode(), body)
            case PresenceChanged(channel, change, user, info):
                return f"{change.upper()} {channel} {user} {info.decode()}".encode()
        return None  # it has no samples of the cluster

    def reply(self, reply):
        match reply:
            case Connected(connection_id):
                return f"HELLO {connection_id}".encode()
            case Subscribed(channel):
                return f"IN {channel}".encode()
            case Unsubscribed(channel, reason=reason) if reason is not None:
                return f"OUT {channel}".encode()
            case Failed(code, channel=channel):
                return f"NO {code} {channel}".encode()
            case Closing(code, text):
                return f"BYE {code} {text}".encode()
        return None

    def closing(self, reason, text):
        return Closing(CODES.get(reason, 4900), text, Returns.LATER)

    def refuse(self, failed):
        code = 4910 if failed.code == "unauthorized" else 4911
        return Closing(code, failed.code, Returns.NEVER)

    def agree(self, _query):
        return self

    def prove(self, connection_id, command, _user):
        user, signature = command.proof
        if not hmac.compare_digest(signature, sign(connection_id, command.channel, user)):
            return Proven(None, "the signature is wrong")
        return Proven(Member(user, {"by": "proof"}))


class LineClient:
    def __init__(self, socket):
        self.socket = socket

    async def next(self):
        async with asyncio.timeout(40):
            return await self.socket.recv()

    async def ask(self, line):
        await self.socket.send(line)
        return await self.next()

    async def ended(self):
        async with asyncio.timeout(40):
            await self.socket.wait_closed()
        return self.socket.close_code


@pytest.fixture
async def memory_bus():
    async with EventBus(Settings(driver="memory")) as bus:
        yield bus


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture(params=["text", "deflated"])
async def line_edge(request, start_edge, memory_bus, lines):
    options = {"compression": True, "compression_min_bytes": 1}
    edge = await start_edge(
        memory_bus,
        websockets={**WEBSOCKETS, "/lines": lines, "/lines/{channel}": lines},
        presence_grace=0.0,
        **(options if request.param == "deflated" else {}),
    )
    edge.extensions = None
    if request.param == "deflated":
        edge.extensions = [ClientPerMessageDeflateFactory()]
    return edge


async def connect(edge, path="/lines", **options):
    """A client of lines that has been greeted, with the id of its connection."""
    client = await edge.connect(path, greeted=False, extensions=edge.extensions, **options)
    made = LineClient(client.socket)
    hello, made.id = (await made.next()).split(" ", 1)
    assert hello == "HELLO"
    return made


async def test_clients_of_both_protocols_receive_the_same_channel(line_edge, memory_bus, lines):
    one, other = await connect(line_edge, "/lines/general"), await connect(line_edge)
    native = await line_edge.connect()
    assert one.id != other.id
    assert one.id.endswith(f".{id(lines)}")  # the protocol's own shape
    assert await one.next() == "IN general"
    assert await other.ask("SUB general") == "IN general"
    await native.subscribe("general")
    encoded = lines.encoded
    await memory_bus.publish("general", "news", {"text": "words " * 50})
    frame = await native.next()
    for client in (one, other):
        kind, channel, event, body = (await client.next()).split(" ", 3)
        assert (kind, channel, event) == ("MSG", "general", "news")
        assert json.loads(body)["data"] == frame["data"] == {"text": "words " * 50}
    assert lines.encoded == encoded + 1  # once for both


async def test_messages_are_deflated_where_that_is_agreed_on(line_edge, memory_bus):
    client = await connect(line_edge, "/lines/general")
    assert await client.next() == "IN general"
    before = line_edge.node.metrics.deflated_bytes.labels("before")._value.get()
    await memory_bus.publish("general", "news", {"text": "words " * 50})
    assert (await client.next()).startswith("MSG general news ")
    deflated = line_edge.node.metrics.deflated_bytes.labels("before")._value.get() - before
    assert (deflated > 0) == (line_edge.extensions is not None)


async def test_members_come_from_the_proof_of_each_subscription(line_edge, token):
    native = await line_edge.connect(token=token("7"))
    await native.subscribe("presence.a")
    line = await connect(line_edge)
    for channel, user in (("presence.a", "ann"), ("presence.b", "bob")):
        answer = await line.ask(f"SUB {channel} {user} {sign(line.id, channel, user)}")
        assert answer == f"IN {channel}"
    joined = await native.next()
    assert (joined["event"], joined["data"]) == (
        "eb:presence.joined",
        {"user_id": "ann", "info": {"by": "proof"}},
    )
    await native.socket.close()
    assert (await line.next()).startswith("LEFT presence.a 7 ")
    watcher = await line_edge.connect(token=token("8"))
    data = await watcher.subscribe("presence.b")
    assert [member["user_id"] for member in data["members"]] == ["bob", "8"]
    assert (await line.next()).startswith("JOINED presence.b 8 ")
    await line.socket.send("LEAVE presence.b")  # which it has no answer to
    left = await watcher.next()
    assert (left["event"], left["data"]["user_id"]) == ("eb:presence.left", "bob")


@pytest.mark.parametrize("channel", ["presence.a", "no.such.rule"])
async def test_a_proof_is_checked_and_rules_still_hold(line_edge, channel):
    line = await connect(line_edge)
    other = await connect(line_edge)
    stolen = sign(other.id, channel, "ann")
    assert await line.ask(f"SUB {channel} ann {stolen}") == f"NO forbidden {channel}"
    own = await line.ask(f"SUB {channel} ann {sign(line.id, channel, 'ann')}")
    allowed = channel == "presence.a"
    assert own == (f"IN {channel}" if allowed else f"NO forbidden {channel}")


async def test_whispers_cross_from_one_protocol_to_the_other(line_edge, token):
    native = await line_edge.connect(token=token("7"))
    await native.subscribe("presence.a")
    line = await connect(line_edge)
    await line.ask(f"SUB presence.a ann {sign(line.id, 'presence.a', 'ann')}")
    assert (await native.next())["event"] == "eb:presence.joined"
    await line.socket.send('SAY presence.a typing {"on":true}')
    frame = await native.next()
    assert (frame["event"], frame["data"], frame["user_id"]) == (
        "client-typing",
        {"on": True},
        "ann",
    )
    await native.send("whisper", channel="presence.a", event="typing", data={"on": False})
    kind, channel, event, body = (await line.next()).split(" ", 3)
    assert (kind, channel, event) == ("MSG", "presence.a", "client-typing")
    assert json.loads(body)["user_id"] == "7"


async def test_a_new_token_leaves_what_was_proven_and_a_revocation_takes_it(line_edge, token):
    line = await connect(line_edge)
    await line.ask(f"SUB presence.a ann {sign(line.id, 'presence.a', 'ann')}")
    await line.socket.send(f"TOKEN {token('7')}")
    assert await line.ask("SUB general") == "IN general"  # and no OUT before
    line_edge.node.connections[line.id].revoke("presence.a")
    assert await line.next() == "OUT presence.a"


async def prove(client, channel, user):
    return await client.ask(f"SUB {channel} {user} {sign(client.id, channel, user)}")


@pytest.mark.parametrize("channel", [None, "presence.a"])
async def test_revoked_user_leaves_what_was_joined_by_proof_and_stays_out(
    start_edge, memory_bus, lines, token, channel
):
    edge = await start_edge(
        memory_bus, websockets={**WEBSOCKETS, "/lines": lines}, jwt_leeway=0.0, presence_grace=0.0
    )
    edge.extensions = None
    watcher = await edge.connect(token=token("7"))
    await watcher.subscribe("presence.a")
    line = await connect(edge)
    for joined, user in (("presence.a", "ann"), ("presence.b", "ann"), ("presence.c", "bob")):
        assert await prove(line, joined, user) == f"IN {joined}"
    assert (await watcher.next())["event"] == "eb:presence.joined"
    await edge.node.access.revoker.revoke(user_id="ann", channel=channel)
    left = await watcher.next()
    assert (left["event"], left["data"]["user_id"]) == ("eb:presence.left", "ann")
    assert await line.next() == "OUT presence.a"
    if channel is None:
        assert await line.next() == "OUT presence.b"
        assert await prove(line, "presence.d", "ann") == "NO forbidden presence.d"
    assert await prove(line, "presence.a", "ann") == "NO forbidden presence.a"
    assert await prove(line, "presence.e", "bob") == "IN presence.e"
    # A proof of a later connection is newer than the revocation, as a newer token is.
    assert await prove(await connect(edge), "presence.a", "ann") == "IN presence.a"


async def test_user_who_is_revoked_while_joining_by_proof_does_not_stay(line_edge, monkeypatch):
    line = await connect(line_edge)
    channels = line_edge.node.presence
    enter = channels.enter

    async def enter_late(*args):
        await line_edge.node.access.revoker.revoke(user_id="ann")
        await enter(*args)

    monkeypatch.setattr(channels, "enter", enter_late)
    assert await prove(line, "presence.a", "ann") == "NO forbidden presence.a"
    assert channels.count("presence.a") == 0


async def test_disconnecting_a_user_ends_what_was_joined_by_proof(line_edge):
    line = await connect(line_edge)
    for channel, user in (("presence.a", "ann"), ("presence.b", "bob")):
        assert await prove(line, channel, user) == f"IN {channel}"
    census = line_edge.node.census
    assert (await census.disconnect(Disconnect(user_id="eve"))).count == 0
    assert (await census.disconnect(Disconnect(user_id="ann"))).count == 1
    assert await line.next() == "OUT presence.a"
    assert (await census.disconnect(Disconnect(user_id="bob", reconnect=True))).count == 1
    assert (await line.next()).startswith("BYE 4900 ")


async def test_the_reason_of_a_close_has_the_protocols_own_code_and_last_words(line_edge):
    line, native = await connect(line_edge), await line_edge.connect()
    for connection in list(line_edge.node.connections.values()):
        connection.close(CloseReason.REVOKED, "revoked")
    assert await line.next() == "BYE 4903 revoked"
    assert await line.ended() == 4903
    assert await native.closed() == 4003
    closes = line_edge.node.metrics.closes
    assert [closes.labels(code)._value.get() for code in ("4903", "4003")] == [1, 1]


async def test_a_heartbeat_is_a_message_of_the_protocol(start_edge, memory_bus, lines):
    edge = await start_edge(memory_bus, heartbeat=1.5, websockets={"/lines": lines})
    edge.extensions = None
    line = await connect(edge)
    for _ in range(3):  # longer than a client lives that does not answer
        assert await line.next() == "THERE?"
        await line.socket.send("HERE")
    pings = asyncio.create_task(_keep_pinging(line.socket))
    received = [await line.next(), await line.next()]
    assert received == [
        "THERE?",
        "BYE 4901 no answer to the heartbeat",
    ]  # pings are not signs of life
    assert await line.ended() == 4901
    pings.cancel()


async def _keep_pinging(socket):
    with contextlib.suppress(Exception):
        while True:
            await socket.ping()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "error", "code"),
    [
        ("/lines?auth_token=nonsense", "BYE 4910 unauthorized", 4910),
        ("/lines/user.9", "BYE 4910 unauthorized", 4910),
        ("/lines?channel=a%20b", "BYE 4911 invalid_channel", 4911),
    ],
)
async def test_errors_of_the_handshake_are_given_in_the_socket(line_edge, path, error, code):
    client = await line_edge.connect(path, greeted=False, extensions=line_edge.extensions)
    line = LineClient(client.socket)
    assert await line.next() == error
    assert await line.ended() == code
    assert not line_edge.node.connections
    assert len(line_edge.node.access.admission.slots) == 0


async def test_the_native_protocol_gives_them_outside_beside_it(line_edge):
    status, _, problem = await line_edge.refusal("/ws/user.9")
    assert (status, problem["code"]) == (401, "unauthorized")


async def test_an_overloaded_or_draining_node_says_so_in_the_socket(line_edge):
    line_edge.node.connections.is_draining = True
    client = await line_edge.connect("/lines", greeted=False, extensions=line_edge.extensions)
    line = LineClient(client.socket)
    assert await line.next() == "BYE 4911 unavailable"
    assert await line.ended() == 4911
    with pytest.raises(InvalidStatus):
        await line_edge.connect("/ws")


async def test_rate_limit_and_the_price_of_wrong_tokens_hold_in_the_socket_too(
    start_edge, memory_bus, lines
):
    edge = await start_edge(
        memory_bus,
        websockets={**WEBSOCKETS, "/lines": lines},
        max_requests_per_address=0.01,
        max_connections_per_address=3,
    )
    answers = []
    for _ in range(4):  # six requests at once
        client = await edge.connect("/lines?auth_token=nonsense", greeted=False)
        line = LineClient(client.socket)
        answers.append(await line.next())
        assert await line.ended() in {4910, 4911}
    # A wrong token counts twice.
    assert answers == ["BYE 4910 unauthorized"] * 3 + ["BYE 4911 rate_limited"]
    status, _, problem = await edge.refusal("/ws")  # the native protocol has it outside
    assert (status, problem["code"]) == (429, "rate_limited")
    async with aiohttp.ClientSession() as http, http.get(f"{edge.url}/lines") as response:
        assert response.status == 429  # a request that cannot be upgraded
    assert not edge.node.connections


async def test_offers_of_subprotocols_are_ignored_by_a_protocol_without_any(line_edge):
    line = await connect(line_edge, subprotocols=["anything"])
    assert line.socket.subprotocol is None


async def test_lines_that_are_not_of_the_protocol_are_answered_in_it(line_edge):
    line = await connect(line_edge)
    assert await line.ask("NONSENSE") == "NO bad_request None"
    assert await line.ask(b"binary") == "NO bad_request None"
    assert await line.ask("SUB user.9") == "NO unauthorized user.9"
