"""Handshakes that the first protocol of a socket reads are answered as those that aiohttp reads."""

import asyncio
import contextlib
import json
import logging

import pytest
import pytest_asyncio
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.front import MAX_AHEAD_BYTES, MAX_HEAD_BYTES, read_head
from eventbus_edge.keys import NODE

SECRET = "of-the-tests-of-first-protocols-0123456789"
LINES = (
    "Host: a.example:80",
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
PING, PONG = b"\x89\x81\0\0\0\0p", b"\x8a\x01p"
TIMES = {"date", "sec-websocket-accept"}


def token(**claims):
    return issue_token("7", secret=SECRET, **claims)


def request(path="/ws", *more, lines=LINES):
    return "\r\n".join((f"GET {path} HTTP/1.1", *lines, *more, "", "")).encode("latin-1")


def bearer(**claims):
    return f"Authorization: Bearer {token(**claims)}"


@web.middleware
async def of_an_application(request, handler):
    """Sends all requests through aiohttp, because it must see each of them."""
    return await handler(request)


async def start(bus, *middlewares, **settings):
    made = EdgeSettings(jwt_secret=SECRET, cors_allowed_origins=("https://b.example",), **settings)
    app = create_app(made, bus, rules=ChannelRules())
    app.middlewares.extend(middlewares)
    runner = make_runner(app, made.request_timeout)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways():
    """A node whose first protocol reads handshakes, and one where aiohttp reads all of them."""
    async with EventBus(Settings(driver="memory")) as bus:
        runners = [await start(bus), await start(bus, of_an_application)]
        yield runners
        for runner in runners:
            await runner.cleanup()


@pytest.fixture
async def bus():
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


async def connect(runner):
    return await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])


async def answer(runner, *parts):
    """Status line, headers and body or greeting of the answer, without what varies."""
    reader, writer = await connect(runner)
    try:
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(40):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            if "101" in head[0]:
                frames = await reader.readuntil(PONG)
                events = [name for name in (b"eb:connected", b"eb:subscribed") if name in frames]
                return head[0], headers, events
            body = json.loads(await reader.readexactly(int(headers["Content-Length"])))
            headers.pop("Date")
            return head[0], headers, body
    finally:
        writer.transport.abort()


async def until(is_so):
    async with asyncio.timeout(40):
        while not is_so():  # noqa: ASYNC110 - nothing reports it
            await asyncio.sleep(0.01)


def counted(runner):
    """What the metrics say about refusals and connections."""
    metrics = runner.app[NODE].metrics
    samples = [
        sample
        for family in (metrics.refusals, metrics.connections_opened, metrics.limits_reached)
        for metric in family.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]
    return {(s.name, *sorted(s.labels.items())): s.value for s in samples if s.value}


ASKED = {
    "nothing": request(),
    "channels": request("/ws?channel=a&channel=b.c&channel="),
    "the path's channel": request("/ws/general?channel=b"),
    "a parameter without a value": request("/ws?channel"),
    "an unknown parameter": request("/ws?x=1&channel=a"),
    "no channel in the path": request("/ws/"),
    "an invalid channel": request("/ws?channel=a..b"),
    "a channel that needs a token": request("/ws?channel=private.a"),
    "a token in the header": request("/ws?channel=private.a", bearer(channels=["private.a"])),
    "a token in the query": request(f"/ws?channel=private.a&auth_token={token(channels=['>'])}"),
    "a token as a subprotocol": request(
        "/ws", f"Sec-WebSocket-Protocol: eventbus.v1, eventbus.bearer.{token()}"
    ),
    "a subprotocol alone": request("/ws", "Sec-WebSocket-Protocol: other"),
    "a token that may not": request("/ws?channel=private.a", bearer()),
    "a bad token": request("/ws", "Authorization: Bearer a.b.c"),
    "an empty token": request("/ws", "Authorization: Bearer "),
    "another scheme": request("/ws", "Authorization: Basic a"),
    "two tokens": request("/ws?auth_token=a&auth_token=b"),
    "an origin": request("/ws", "Origin: https://b.example"),
    "a foreign origin": request("/ws", "Origin: https://c.example"),
    "another version": request(lines=[*LINES[:3], "Sec-WebSocket-Version: 8", LINES[4]]),
    "an invalid key": request(lines=[*LINES[:4], "Sec-WebSocket-Key: a"]),
    "a malformed extension": request("/ws", "Sec-WebSocket-Extensions: ;"),
    "no upgrade in Connection": request(lines=[LINES[0], "Connection: close", *LINES[2:]]),
    "spaces around values": request(lines=[f"{line.replace(': ', ':')} " for line in LINES]),
    "lower case": request(lines=[line.lower() for line in LINES[:4]] + [LINES[4]]),
    "a body": request("/ws", "Content-Length: 1") + b"x",
    "another path": request("/other"),
    "percent-encoding": request("/ws?channel=a%2Eb"),
    "dot segments": request("/ws/../ws?channel=a"),
}  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("data", ASKED.values(), ids=ASKED)
async def test_both_ways_answer_and_count_alike(ways, data):
    before = [counted(way) for way in ways]
    answers = [await answer(way, data, PING) for way in ways]
    assert answers[0] == answers[1]
    after = [counted(way) for way in ways]
    changes = [
        {key: value - old.get(key, 0) for key, value in new.items() if value != old.get(key, 0)}
        for old, new in zip(before, after, strict=True)
    ]
    assert changes[0] == changes[1]
    assert changes[0] != {}


@pytest.mark.asyncio(loop_scope="module")
async def test_fault_after_the_upgrade_ends_the_socket_and_is_counted_both_ways(
    ways, monkeypatch, caplog
):
    changes = []
    for way in ways:
        monkeypatch.setattr(way.app[NODE].acceptor, "accept", lambda *_: 1 / 0)
        before = counted(way)
        reader, writer = await connect(way)
        writer.write(request())
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
        await until(lambda way=way, before=before: counted(way) != before)
        changes.append(counted(way).items() - before.items())
        assert not len(way.app[NODE].access.admission.slots)
    assert changes[0] == changes[1]
    assert [r.getMessage() for r in caplog.records if r.exc_info] == ["GET /ws failed"] * 2


@pytest.mark.asyncio(loop_scope="module")
async def test_refused_client_may_send_its_next_request_on_the_same_socket(ways):
    for way in ways:
        reader, writer = await connect(way)
        for _ in range(2):
            writer.write(request("/ws?channel=a..b") + request("/ws?channel=b..c"))
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400 ")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        writer.write(request() + PING)
        assert (await reader.readuntil(PONG)).startswith(b"HTTP/1.1 101 ")
        writer.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_head_may_arrive_in_parts(ways):
    for way in ways:
        reader, writer = await connect(way)
        for byte in (request()[:20], request()[20:]):
            writer.write(byte)
            await asyncio.sleep(0.02)  # so that it is read by itself
        writer.write(PING)
        assert (await reader.readuntil(PONG)).startswith(b"HTTP/1.1 101 ")
        writer.close()


async def test_limits_of_requests_and_sockets_are_those_of_an_address(bus):
    for middlewares in ((), (of_an_application,)):
        runner = await start(
            bus, *middlewares, max_requests_per_address=0.001, max_connections_per_address=2
        )
        statuses = []
        for _ in range(6):
            line, headers, _ = await answer(runner, request("/ws?channel=a..b"))
            statuses.append((line.split()[1], headers.get("Connection")))
        assert statuses == [("400", None)] * 4 + [("429", "close")] * 2
        held = [await connect(runner) for _ in range(5)]
        async with asyncio.timeout(40):  # four sockets are the limit
            with contextlib.suppress(ConnectionResetError):
                assert await held[4][0].read() == b""
        assert not any(reader.at_eof() for reader, _ in held[:4])
        for _, writer in held:
            writer.transport.abort()
        await runner.cleanup()


async def test_silent_socket_is_closed_after_the_time_for_requests(bus):
    runner = await start(bus, request_timeout=0.2)
    reader, writer = await connect(runner)
    async with asyncio.timeout(40):
        assert await reader.read() == b""
    writer.close()
    assert runner.app[NODE].access.admission._sockets == {}
    await runner.cleanup()


async def test_silent_sockets_do_not_delay_the_end_of_a_node(bus):
    runner = await start(bus, request_timeout=300)
    reader, writer = await connect(runner)
    async with asyncio.timeout(50):
        await runner.cleanup()
        assert await reader.read() == b""
    writer.close()


async def test_client_that_sends_ahead_without_end_is_not_read_until_it_is_answered(
    bus, monkeypatch
):
    runner = await start(bus)
    may_go_on, is_asked = asyncio.Event(), asyncio.Event()

    async def verify(_token, **_):
        is_asked.set()
        await may_go_on.wait()

    monkeypatch.setattr(runner.app[NODE].access.authenticator, "verify", verify)
    monkeypatch.setattr(runner.app[NODE].access.admission, "claim_early", lambda *_: None)
    _, writer = await connect(runner)
    writer.write(request("/ws", bearer()))
    await is_asked.wait()
    writer.transport.set_write_buffer_limits(high=0)
    for _ in range(100):
        writer.write(PING * 10_000)
    [front] = runner.server._fronts.open.keys()
    await until(lambda: len(front._data) > MAX_AHEAD_BYTES)
    assert writer.transport.get_write_buffer_size() > 0
    assert len(front._data) < 2 * MAX_AHEAD_BYTES + 512 * 1024
    writer.transport.abort()
    may_go_on.set()
    await until(lambda: not len(runner.app[NODE].access.admission.slots))
    await runner.cleanup()


async def test_fault_of_the_node_is_logged_and_answered(bus, monkeypatch, caplog):
    runner = await start(bus)
    monkeypatch.setattr(runner.app[NODE].access.origins, "require", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        line, _, problem = await answer(runner, request("/ws/a-secret-channel"))
    assert line.split()[1] == "500"
    assert problem["code"] == "internal"
    assert [record.getMessage() for record in caplog.records] == ["GET /ws/{channel} failed"]
    await runner.cleanup()


READ = {
    "the shortest": request(),
    "what a browser sends": request(
        "/ws?channel=user.7@a,b;c=d_e-f",
        "Pragma: no-cache",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        "Origin: http://a.example",
        "Accept-Encoding: gzip, deflate, br",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", READ.values(), ids=READ)
def test_ordinary_handshake_is_read_here(data):
    head = read_head(data + PING, 64)
    assert head is not None
    assert head.path == "/ws"
    assert head.size == len(data)
    assert head.headers["sec-websocket-version"] == "13"


LEFT = {
    "no HTTP": b"\x00\r\n\r\n",
    "half a head": request()[:-2],
    "another method": request().replace(b"GET", b"HEAD"),
    "HTTP/1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no upgrade": request(lines=LINES[:2]),
    "two upgrades": request(lines=[*LINES[:2], "Upgrade: h2c, websocket", *LINES[3:]]),
    "no host": request(lines=LINES[1:]),
    "two hosts": request("/ws", "Host: b"),
    "a header that is repeated": request("/ws", "User-Agent: a", "user-agent: b"),
    "a handshake of an old draft": request("/ws", "Sec-WebSocket-Key1: a"),
    "a strange host": request(lines=["Host: a b", *LINES[1:]]),
    "a folded line": request("/ws", "X-A: b", " c"),
    "a space before the colon": request("/ws", "X-A : b"),
    "a bare line feed": request("/ws", "X-A: b\nX-B: c"),
    "a control character": request("/ws", "X-A: \x01"),
    "NUL": request("/ws", "X-A: \x00"),
    "Latin-1": request("/ws", "X-A: é"),
    "a name of another token": request("/ws", "X_A: b"),
    "a body": request("/ws", "content-length: 0"),
    "a chunked body": request("/ws", "Transfer-Encoding: chunked"),
    "Expect": request("/ws", "Expect: 100-continue"),
    "an absolute target": request("http://a/ws"),
    "a fragment": request("/ws#a"),
    "percent-encoding in the path": request("/ws/a%20b"),
    "percent-encoding in the query": request("/ws?channel=%61"),
    "a plus in the query": request("/ws?channel=a+b"),
    "dot segments": request("/ws/../a"),
    "many headers": request("/ws", *["X-A: b"] * 64),
    "a long head": request("/ws", "X-A: " + "b" * MAX_HEAD_BYTES),
}  # fmt: skip


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT)
def test_anything_unusual_is_left_to_aiohttp(data):
    assert read_head(data, 64) is None
