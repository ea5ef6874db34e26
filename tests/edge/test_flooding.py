"""Clients that send more than they may, of whatever kind, and what others notice of it."""

import asyncio
import contextlib
import json
import statistics
import time

import aiohttp
import pytest

from eventbus.channels import ChannelKind, Pattern
from eventbus.client import connect
from eventbus_edge.access.admission import Admission
from eventbus_edge.access.rules import (
    ANYONE,
    ChannelRules,
    Rule,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.problem import Problem
from eventbus_edge.protocols.vocabulary import CloseReason
from eventbus_edge.sessions import pauses

PATIENCE_S = 30.0
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
UNBOUND = {"max_actions_per_second": 1e6, "action_burst": 10**6}


def frame(first, payload=b""):
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((first,)) + length + bytes(4) + payload  # the mask of zeros changes nothing


PING, PONG, TEXT, BEGIN, FRAGMENT = 0x89, 0x8A, 0x81, 0x01, 0x00
ACTION = b'{"action":"ping"}'


class Raw:
    """A WebSocket of bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def next(self):
        """The first byte of the next frame, and its payload."""
        async with asyncio.timeout(PATIENCE_S):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2))
            return first, await self.reader.readexactly(size)

    async def until_closed(self):
        """All frames up to the close frame, whose code comes last."""
        frames = []
        while True:
            first, payload = await self.next()
            if first == 0x88:
                return frames, int.from_bytes(payload[:2])
            frames.append((first, payload))


@pytest.fixture
async def raw():
    """Open: `await raw(edge)`, greeted."""
    writers = []

    async def open_one(edge, more=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writers.append(writer)
        writer.write(HANDSHAKE + more)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        client = Raw(reader, writer)
        assert b"eb:connected" in (await client.next())[1]
        return client

    yield open_one
    for writer in writers:
        writer.transport.abort()


@pytest.fixture
async def open_socket():
    """Open one that sends nothing: `await open_socket(port)` gives a reader and a writer."""
    writers = []

    async def open_one(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.transport.abort()


def codes(frames):
    """The error codes among the text frames."""
    replies = [json.loads(payload) for first, payload in frames if first == 0x81]
    return [reply["data"]["code"] for reply in replies if reply["event"] == "eb:error"]


# Every kind of frame is an action


@pytest.mark.parametrize(
    ("begin", "flood"),
    [
        (b"", frame(PING)),
        (b"", frame(PING, b"x" * 125)),
        (b"", frame(PONG)),
        (b"", frame(TEXT)),
        (b"", frame(0x82)),
        (frame(BEGIN), frame(FRAGMENT)),
        (frame(BEGIN, b'{"action":"ping","data":"'), frame(FRAGMENT, b"x")),
        (b"", frame(PING) + frame(PONG) + frame(TEXT)),
    ],
    ids=["pings", "long pings", "pongs", "empty texts", "empty binaries", "empty fragments",
         "tiny fragments", "all"],
)  # fmt: skip
async def test_flooding_client_gets_errors_and_is_closed_with_4008(
    start_edge, bus, raw, begin, flood
):
    edge = await start_edge(bus)
    client = await raw(edge)
    client.send(begin + flood * 2000)
    frames, code = await client.until_closed()
    assert code == 4008
    assert codes(frames)[-1] == "rate_limited"
    assert edge.node.metrics.closes.labels("4008")._value.get() == 1


async def test_data_behind_the_handshake_counts_as_well(start_edge, bus, raw):
    edge = await start_edge(bus)
    client = await raw(edge, frame(PING) * 2000)
    assert (await client.until_closed())[1] == 4008


@pytest.mark.parametrize("kind", [PING, PONG], ids=["pings", "pongs"])
async def test_control_frames_and_commands_are_of_one_pace(start_edge, bus, raw, kind):
    edge = await start_edge(bus, max_actions_per_second=0.01, action_burst=10)
    client = await raw(edge)
    client.send(frame(kind) * 6 + frame(TEXT, ACTION) * 6)
    got = []
    while len(got) < 6:
        first, payload = await client.next()
        if first == TEXT:
            got.append(json.loads(payload)["event"])
    assert got == ["pong"] * 4 + ["eb:error"] * 2


async def test_a_message_in_parts_costs_an_action_for_each_of_them(start_edge, bus, raw):
    edge = await start_edge(bus, max_actions_per_second=0.01, action_burst=10)
    client = await raw(edge)
    parts = frame(BEGIN, ACTION[:5]) + frame(FRAGMENT, ACTION[5:9]) + frame(0x80, ACTION[9:])
    events = []
    for _ in range(4):
        client.send(parts)
        events.append(json.loads((await client.next())[1])["event"])
    assert events == ["pong", "pong", "pong", "eb:error"]


async def test_a_large_message_costs_an_action_more_for_each_16_kib(start_edge, bus, raw):
    edge = await start_edge(bus, max_actions_per_second=0.01, action_burst=10)
    client = await raw(edge)
    long = b'{"action":"ping","data":"' + b"x" * 40_000 + b'"}'  # 3 actions
    for _ in range(4):
        client.send(frame(TEXT, long))
    events = [json.loads((await client.next())[1])["event"] for _ in range(4)]
    assert events == ["pong", "pong", "pong", "eb:error"]


async def test_a_token_costs_five_actions(start_edge, bus, token):
    edge = await start_edge(bus, max_actions_per_second=0.01, action_burst=11)
    client = await edge.connect()
    for _ in range(2):
        answer = await client.ask("auth", data={"token": token()})
        assert answer["event"] == "eb:authenticated"
    assert await client.error("auth", data={"token": token()}) == "rate_limited"
    assert (await client.ask("ping"))["event"] == "pong"


async def test_deflated_message_costs_as_much_as_its_inflated_size(start_edge, bus):
    edge = await start_edge(bus, compression=True, max_actions_per_second=0.01, action_burst=10)
    client = await edge.connect(compression="deflate")
    bomb = {"data": "x" * 40_000}  # 3 actions, of some 100 bytes on the wire
    events = [(await client.ask("ping", **bomb))["event"] for _ in range(4)]
    assert events == ["pong", "pong", "pong", "eb:error"]


async def test_a_long_answer_costs_an_action_more_for_each_64_kib(start_edge, bus, token):
    edge = await start_edge(bus, max_actions_per_second=0.01, action_burst=5)
    for number in range(70):
        await edge.connect("/ws/presence.a", token=token(str(number), name="x" * 2000))
    async with asyncio.timeout(PATIENCE_S):
        while edge.node.presence.count("presence.a") < 70:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    client = await edge.connect("/ws/presence.a", token=token("0"))
    await client.next()  # the list, of 140 KB: two actions
    asked = [await client.ask("presence", channel="presence.a") for _ in range(2)]
    assert [answer["event"] for answer in asked] == ["eb:presence", "eb:error"]
    assert asked[1]["data"]["code"] == "rate_limited"


async def test_a_client_that_sends_into_a_stream_is_closed(start_edge, bus, open_socket):
    edge = await start_edge(bus)
    reader, writer = await open_socket(edge.port)
    writer.write(b"GET /sse?channel=general HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"eb:subscribed")
    writer.write(b"x" * 200_000)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        while edge.node.connections:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert edge.node.metrics.closes.labels("4008")._value.get() == 1


# Pings


async def test_the_newest_ping_of_a_read_is_answered_and_no_other(start_edge, bus, raw):
    edge = await start_edge(bus, **UNBOUND)
    client = await raw(edge, b"".join(frame(PING, b"%d" % number) for number in range(1000)))
    client.send(frame(TEXT, ACTION))
    frames = []
    while not frames or frames[-1][0] != TEXT:
        frames.append(await client.next())
    pongs = [payload for first, payload in frames if first == PONG]
    assert pongs[-1] == b"999"
    assert len(pongs) <= 3  # reads: of the handshake's rest, and of what the system cut off


async def test_pings_within_the_pace_are_answered_each(start_edge, bus, raw):
    client = await raw(await start_edge(bus))
    for number in range(20):
        client.send(frame(PING, b"%d" % number))
        assert await client.next() == (PONG, b"%d" % number)


async def test_a_ping_between_the_parts_of_a_message_is_answered(start_edge, bus, raw):
    client = await raw(await start_edge(bus))
    client.send(frame(BEGIN, ACTION[:5]) + frame(PING, b"mid") + frame(0x80, ACTION[5:]))
    frames = dict([await client.next(), await client.next()])
    assert frames[PONG] == b"mid"
    assert json.loads(frames[TEXT])["event"] == "pong"


# All that was read is handled


async def test_more_commands_than_may_wait_are_all_answered_in_order(start_edge, bus, raw):
    client = await raw(await start_edge(bus, **UNBOUND))
    commands = [b'{"action":"ping","ref":%d}' % number for number in range(3000)]
    client.send(b"".join(frame(TEXT, command) + frame(PING) for command in commands))
    refs = []
    while len(refs) < len(commands):
        first, payload = await client.next()
        if first == TEXT:
            refs.append(json.loads(payload)["data"]["ref"])
    assert refs == list(range(3000))


async def test_commands_sent_before_a_client_left_are_carried_out(
    start_edge, bus, token, raw, monkeypatch
):
    # After a pause, a node drops clients that have left meanwhile.
    monkeypatch.setattr(pauses, "PAUSE_S", 10_000.0)
    edge = await start_edge(bus, max_whispers_per_channel=1e6, **UNBOUND)
    listener = await edge.connect("/ws/chat.1", token=token("8"))
    await listener.next()
    client = await raw(edge)
    commands = [{"action": "auth", "data": {"token": token()}}]
    commands.append({"action": "subscribe", "channel": "chat.1"})
    whisper = {"action": "whisper", "channel": "chat.1", "event": "e"}
    commands += [whisper | {"data": number} for number in range(1000)]
    client.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in commands))
    client.writer.write_eof()
    assert [(await listener.next())["data"] for _ in range(1000)] == list(range(1000))


# Requests


async def request(edge, path, **headers):
    async with (
        aiohttp.ClientSession() as http,
        http.get(edge.url + path, headers=headers) as response,
    ):
        return response.status, response.headers, await response.read()


def reached(edge, limit):
    return edge.node.metrics.limits_reached.labels(limit)._value.get()


def few_requests(**settings):
    """Ten requests at once, and hardly another one."""
    rate = {"max_requests_per_address": 0.01, "max_connections_per_address": 5}
    return rate | {"trusted_proxies": ("127.0.0.1",)} | settings


@pytest.mark.parametrize(
    "path",
    ["/ws", "/sse?channel=general", "/api/docs", "/dashboard", "/static/eventbus.js", "/nothing",
     "/api/broadcast/stats", "/metrics"],
)  # fmt: skip
async def test_an_address_has_its_number_of_requests_of_whatever_kind(start_edge, bus, path):
    edge = await start_edge(bus, api_key="the-key-of-this-test", **few_requests())
    for _ in range(10):
        assert (await request(edge, "/nothing", **{"X-Forwarded-For": "9.9.9.9"}))[0] == 404
    status, headers, body = await request(edge, path, **{"X-Forwarded-For": "9.9.9.9"})
    assert (status, json.loads(body)["code"]) == (429, "rate_limited")
    assert int(headers["Retry-After"]) >= 1
    assert headers["Connection"] == "close"
    assert reached(edge, "requests") == 1
    assert (await request(edge, "/nothing", **{"X-Forwarded-For": "9.9.9.8"}))[0] == 404


async def test_a_page_of_another_origin_can_read_that_it_asks_too_often(start_edge, bus):
    edge = await start_edge(bus, cors_allowed_origins=("https://app.example",), **few_requests())
    page = {"Origin": "https://app.example"}
    while (answer := await request(edge, "/sse", **page))[0] != 429:
        pass
    assert answer[1]["Access-Control-Allow-Origin"] == "https://app.example"


async def test_handshakes_are_counted_by_the_address_behind_a_trusted_proxy(start_edge, bus):
    edge = await start_edge(bus, **few_requests())
    for _ in range(10):
        client = await edge.connect(headers={"X-Forwarded-For": "9.9.9.9"})
        await client.socket.close()
    status, _, problem = await edge.refusal(headers={"X-Forwarded-For": "9.9.9.9"})
    assert (status, problem["code"]) == (429, "rate_limited")
    await edge.connect(headers={"X-Forwarded-For": "9.9.9.8"})


async def test_probes_are_counted_apart_so_that_a_flood_does_not_have_the_node_restarted(
    start_edge, bus
):
    edge = await start_edge(bus, **few_requests())
    while (await request(edge, "/nothing"))[0] != 429:
        pass
    for _ in range(10):
        assert (await request(edge, "/readyz"))[0] == 200
    assert (await request(edge, "/healthz"))[0] == 429  # a flood of them is one too


async def test_client_with_the_key_is_not_counted_and_a_wrong_key_counts_twice(start_edge, bus):
    edge = await start_edge(bus, api_key="the-key-of-this-test", **few_requests())
    known = {"Authorization": "Bearer the-key-of-this-test"}
    for _ in range(30):
        assert (await request(edge, "/api/broadcast/revocations", **known))[0] == 200
    statuses = [(await request(edge, "/metrics", Authorization="Bearer no"))[0] for _ in range(6)]
    assert statuses == [401] * 5 + [429]


async def test_the_channels_that_a_handshake_names_are_counted_too(start_edge, bus):
    edge = await start_edge(bus, **few_requests())
    query = "&".join(f"channel=presence.{number}" for number in range(100))
    assert (await request(edge, f"/sse?{query}"))[0] == 401
    assert (await request(edge, "/nothing"))[0] == 429


async def test_a_thousand_clients_of_one_address_may_come_at_once_and_come_back():
    settings = EdgeSettings()
    admission = Admission(settings, Metrics())
    for _ in range(2 * settings.max_connections_per_address):
        admission.request("9.9.9.9", {})
    admission.charge_requests("9.9.9.9", 100)  # the time that it took
    with pytest.raises(Problem):
        admission.request("9.9.9.9", {})


async def test_an_address_has_its_number_of_sockets_although_they_send_nothing(
    start_edge, bus, open_socket
):
    edge = await start_edge(bus, max_connections_per_address=2)
    silent = [await open_socket(edge.port) for _ in range(4)]
    await sockets(edge, 4)
    reader, _ = await open_socket(edge.port)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert reached(edge, "sockets") == 1
    silent[0][1].transport.abort()
    await sockets(edge, 3)
    await edge.connect()


async def sockets(edge, count):
    """Wait until an edge counts so many."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(edge.node.access.admission._sockets.values()) != count:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def test_the_sockets_of_a_trusted_proxy_are_not_counted(start_edge, bus, open_socket):
    edge = await start_edge(bus, max_connections_per_address=1, trusted_proxies=("127.0.0.1",))
    for _ in range(4):
        await open_socket(edge.port)
    await edge.connect(headers={"X-Forwarded-For": "9.9.9.9"})
    assert reached(edge, "sockets") == 0


@pytest.mark.usefixtures("no_refills")
async def test_all_nodes_are_asked_a_bounded_number_of_times(start_edge, bus, token):
    edge = await start_edge(bus, max_questions=0.5)
    statuses = [(await request(edge, "/api/broadcast/stats"))[0] for _ in range(3)]
    assert statuses == [200, 200, 503]
    client = await edge.connect(token=token(roles=["admin"]))
    assert await client.error("stats") == "unavailable"
    assert reached(edge, "questions") == 2


# History


async def fill(bus, count):
    for number in range(count):
        await bus.publish("general", "e", number)


@pytest.mark.usefixtures("no_refills")
async def test_history_is_counted_by_message_for_all_connections_of_an_address(start_edge, bus):
    edge = await start_edge(bus, max_history_per_address=2.0)  # 20 at once
    await fill(bus, 15)
    first, second = await edge.connect(), await edge.connect()
    assert len((await first.ask("history", channel="general"))["data"]["messages"]) == 15
    assert len((await second.ask("history", channel="general"))["data"]["messages"]) == 15
    for client in (first, second):
        assert await client.error("history", channel="general") == "rate_limited"
    assert reached(edge, "history") == 2
    assert (await first.ask("ping"))["event"] == "pong"


@pytest.mark.usefixtures("no_refills")
async def test_reads_that_find_nothing_are_counted_too(start_edge, bus):
    edge = await start_edge(bus, max_history_per_address=0.5)
    client = await edge.connect()
    asked = [await client.ask("history", channel="public") for _ in range(7)]
    assert [answer["event"] for answer in asked] == ["eb:history"] * 6 + ["eb:error"]


@pytest.mark.parametrize("ask", ["resume", "history"])
async def test_a_subscription_that_reads_waits_for_its_turn_and_then_has_all(start_edge, bus, ask):
    edge = await start_edge(bus, max_history_per_address=20.0)
    client = await edge.connect()
    start = await client.subscribe("general")
    await client.ask("unsubscribe", channel="general")
    await fill(bus, 50)
    at = {"offset": start["offset"], "epoch": start["epoch"]}
    edge.node.access.admission.charge_history(client_address(edge), 210)  # half a second of debt
    began = time.monotonic()
    answer = await client.subscribe("general", data=at if ask == "resume" else {"history": 50})
    assert time.monotonic() - began > 0.3
    assert answer.get("recovered", True)
    assert [(await client.next())["data"] for _ in range(50)] == list(range(50))
    assert reached(edge, "history") == 1
    assert edge.node._hub.unsent.held == 0


@pytest.mark.usefixtures("no_refills")
async def test_a_subscription_that_would_wait_too_long_is_asked_to_retry_later(start_edge, bus):
    edge = await start_edge(bus, max_history_per_address=1.0)
    client = await edge.connect()
    edge.node.access.admission.charge_history(client_address(edge), 100)
    assert await client.error("subscribe", channel="general", data={"history": 1}) == "rate_limited"
    await client.subscribe("general")


def client_address(edge):
    return next(iter(edge.node.connections.values())).address


# Presence


@pytest.mark.usefixtures("no_refills")
async def test_presence_updates_are_counted_with_the_client_events_of_their_channel(
    start_edge, bus, token
):
    edge = await start_edge(bus, max_whispers_per_channel=4.0)
    first = await edge.connect("/ws/presence.a", token=token("1"))
    await first.next()
    second = await edge.connect("/ws/presence.a", token=token("2"))
    await second.next()
    assert (await first.next())["event"] == "eb:presence.joined"
    updates = [
        await first.ask("presence", channel="presence.a", data={"n": number}) for number in "12"
    ]
    assert [answer["event"] for answer in updates] == ["eb:presence"] * 2
    for _ in range(2):
        assert (await second.next())["event"] == "eb:presence.updated"
    for _ in range(2):
        whisper = {"channel": "presence.a", "event": "e", "data": 1, "ref": 1}
        assert (await second.ask("whisper", **whisper))["event"] == "eb:ack"
    assert await second.error("presence", channel="presence.a", data={"n": 1}) == "rate_limited"
    assert reached(edge, "presence") == 1
    assert (await second.ask("presence", channel="presence.a"))["event"] == "eb:presence"


@pytest.mark.usefixtures("no_refills")
async def test_a_user_who_leaves_and_joins_again_and_again_is_refused(start_edge, bus, token):
    edge = await start_edge(bus, max_joins_per_member=0.3)
    watcher = await edge.connect("/ws/presence.a", token=token("8"))
    await watcher.next()
    client = await edge.connect(token=token("7"))
    for _ in range(3):
        await client.subscribe("presence.a")
        assert (await watcher.next())["event"] == "eb:presence.joined"
        await client.ask("unsubscribe", channel="presence.a")
        assert (await watcher.next())["event"] == "eb:presence.left"
    assert await client.error("subscribe", channel="presence.a") == "rate_limited"
    assert await watcher.receives_nothing()
    assert reached(edge, "joins") == 1
    await client.subscribe("presence.b")
    other = await edge.connect("/ws/presence.a", token=token("9"))
    assert (await other.next())["event"] == "eb:subscribed"


async def test_a_user_with_many_tabs_joins_with_all_of_them(start_edge, bus, token):
    edge = await start_edge(bus, max_joins_per_member=0.1)  # one at once
    for _ in range(5):
        client = await edge.connect("/ws/presence.a", token=token("7"))
        assert (await client.next())["event"] == "eb:subscribed"
    assert reached(edge, "joins") == 0


# Clients as they should be


async def test_our_client_meets_no_limit_when_it_comes_back_to_many_channels(start_edge, bus):
    """As many as a connection may have, with something missed in each of them."""
    edge = await start_edge(
        bus, rules=ChannelRules([Rule(Pattern("news.*"), ChannelKind.PUBLIC, ANYONE)])
    )
    names = [f"news.{number}" for number in range(edge.node.settings.max_channels_per_connection)]

    async def joined():
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for connection in edge.node.connections.values():
                    if len(connection.session.channels) == len(names):
                        return connection
                await asyncio.sleep(0.01)

    async with connect(edge.url.replace("http", "ws") + "/ws") as client:
        subscriptions = [await client.subscribe(name) for name in names]
        for count in range(3):
            connection = await joined()
            await asyncio.gather(*(bus.publish(name, "e", count) for name in names))
            connection.close(CloseReason.DRAINING, "draining")
            await asyncio.gather(*(bus.publish(name, "missed", count) for name in names))
        async with asyncio.timeout(PATIENCE_S):
            for subscription in subscriptions:
                messages = aiter(subscription)
                got = [await anext(messages) for _ in range(6)]
                assert [(m.event, m.data) for m in got] == [
                    (event, count) for count in range(3) for event in ("e", "missed")
                ]
    metrics = edge.node.metrics
    assert metrics.errors.labels("rate_limited")._value.get() == 0
    assert reached(edge, "history") == reached(edge, "requests") == 0
    assert metrics.closes.labels("4008")._value.get() == 0


# Unsent bytes


async def test_the_unsent_bytes_of_all_are_bounded_and_a_client_that_reads_is_not_cut(
    start_edge, bus, raw
):
    bound = 8 * 1024 * 1024
    edge = await start_edge(
        bus, max_unsent_bytes=10**9, max_unsent_bytes_total=bound, max_connections_per_address=50
    )
    well = await edge.connect("/ws/general", max_size=None)
    await well.next()
    slow = [await raw(edge) for _ in range(20)]
    for client in slow:
        client.send(frame(TEXT, b'{"action":"subscribe","channel":"general"}'))
        assert b"eb:subscribed" in (await client.next())[1]
        client.writer.transport.pause_reading()
    largest = 0
    async with asyncio.timeout(PATIENCE_S):
        while not reached(edge, "unsent"):
            await bus.publish("general", "e", "x" * 60_000, volatile=True)
            assert (await well.next())["event"] == "e"
            largest = max(largest, edge.node._hub.unsent.measure())
    assert largest <= bound
    assert edge.node._hub.unsent.measure() <= 0.9 * bound
    assert edge.node.metrics.closes.labels("4201")._value.get() >= 1
    assert well.socket.close_code is None


async def test_nothing_is_taken_on_while_too_much_is_unsent(start_edge, bus):
    edge = await start_edge(bus, max_unsent_bytes_total=10_000_000)
    client = await edge.connect()
    edge.node._hub.unsent.held = 10_000_001
    status, headers, problem = await edge.refusal()
    assert (status, problem["code"]) == (503, "unavailable")
    assert "Retry-After" in headers
    assert await client.error("subscribe", channel="general", data={"history": 1}) == "rate_limited"
    assert reached(edge, "unsent") == 2
    await client.subscribe("general")
    edge.node._hub.unsent.held = 0
    await edge.connect()


# Others


@contextlib.asynccontextmanager
async def flooding(port, data, count):
    """Clients that send without end, and connect again when they are closed."""

    async def flood():
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(HANDSHAKE)
                    drop = asyncio.ensure_future(reader.read())
                    while not drop.done():
                        writer.write(data)
                        await writer.drain()
                finally:
                    drop.cancel()
                    writer.transport.abort()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(flood()) for _ in range(count)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def round_trips(client, count=40):
    took = []
    for _ in range(count):
        began = time.perf_counter()
        assert (await client.ask("ping"))["event"] == "pong"
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.03)
    return statistics.quantiles(took, n=4)[0]


@pytest.mark.parametrize("kind", ["pings", "pongs", "fragments"])
async def test_a_flood_of_frames_does_not_keep_the_others_waiting(start_process, connect, kind):
    node = await start_process()
    bystander = await connect(node.port)
    await bystander.next()
    alone = await round_trips(bystander)
    flood = {"pings": frame(PING), "pongs": frame(PONG), "fragments": frame(FRAGMENT)}[kind]
    async with flooding(node.port, frame(BEGIN) * (kind == "fragments") + flood * 40_000, 4):
        beside = await round_trips(bystander)
    # Uncounted, each read of the flood would take 40 ms and more: hundreds, beside four of them.
    # Every ping would wait for them; those that wait for other programs of the machine are few.
    assert beside < 10 * alone + 0.05, f"{alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside"
