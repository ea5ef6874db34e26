"""The close code or status that ends a connection reaches a client that is still sending.

If a socket is closed while data arrives, it is reset. The client would see 1006, and reconnect at
once although it must stay away.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import socket
import time

import pytest

from eventbus.client import ClientState, connect as connect_client
from eventbus.errors import ClientClosed
from eventbus.tokens import issue_token
from eventbus_edge import lingering
from eventbus_edge.framing import FrameReader
from eventbus_edge.protocols import CloseReason
from eventbus_edge.transports import websocket
from tests.conformance.edges import KEY, LIMIT, LOOPS, SECRET, serving
from tests.conformance.wire import (
    BINARY,
    CLOSE,
    MORE,
    NATIVE,
    PATIENCE_S,
    PING,
    PONG,
    PUSHER,
    TEXT,
    close,
    connect,
    fragments,
    frame,
    handshake,
)

DIALECTS = (NATIVE, PUSHER)
SIZE = 256 * 1024
"""Bytes of each write of a flood."""


@pytest.fixture(autouse=True)
def counted(summarize):
    summarize("Ends of clients that flood", 1)


@pytest.fixture(scope="module")
def slow_machine():
    """Time for clients that share their cores with much else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lingering, "LINGER_S", 15.0)
        patch.setattr(websocket, "CLOSE_TIMEOUT_S", 15.0)
        yield


@pytest.fixture(scope="module", params=LOOPS)
def edge(request, slow_machine):
    """A node with the rate limits of production, on each event loop."""
    pace = {"max_actions_per_second": 50.0, "action_burst": 100}
    with serving(request.param, **pace) as started:
        yield started


@pytest.fixture(scope="module", params=LOOPS)
def patient_edge(request, slow_machine):
    """A node that does not close flooding connections by itself."""
    with serving(request.param, max_unsent_bytes=10**9) as started:
        yield started


def many(part):
    return part * (SIZE // len(part) + 1)


FLOODS = {
    "texts": many(frame(TEXT, b'{"action":"ping"}')),
    "large texts": many(frame(TEXT, b"x" * 60_000)),
    "binaries": many(frame(BINARY, b"x" * 1000)),
    "pings": many(frame(PING, b"x" * 100)),
    "pongs": many(frame(PONG)),
    "fragments": many(frame(TEXT, fin=False) + frame(MORE, fin=False) * 100 + frame(MORE)),
    "no frames": b"\xff" * SIZE,
}
REASONS = [
    CloseReason.BAD_TOKENS, CloseReason.DISCONNECTED, CloseReason.REVOKED,
    CloseReason.TOO_MANY_ACTIONS, CloseReason.DRAINING, CloseReason.TOKEN_EXPIRED,
    CloseReason.NO_HEARTBEAT, CloseReason.INTERNAL_ERROR,
]  # fmt: skip


@contextlib.asynccontextmanager
async def flooding(writer, data):
    """Send endlessly, like a client that has not noticed anything yet."""

    async def send():
        while True:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)

    task = asyncio.create_task(send())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def code_of(peer):
    """The code of the close frame; earlier frames do not matter here."""
    while True:
        opcode, payload = await peer.frame()
        if opcode == CLOSE:
            return int.from_bytes(payload[:2])


async def until(edge, is_so):
    async with asyncio.timeout(2 * PATIENCE_S):  # longer than a socket may linger
        while not await edge.call(is_so):  # noqa: ASYNC110 - it happens in another thread
            await asyncio.sleep(0.02)


async def none_is_left(edge):
    node = edge.node
    await until(edge, lambda: not (node.connections._sockets or node.access.admission._sockets))
    assert await edge.call(lambda: (len(node.connections), len(node.access.admission.slots))) == (
        0, 0,
    )  # fmt: skip


# Close codes


async def code_after(edge, dialect, tls, data, do):
    """The code that a flooding client reads; `do` ends the connection, if given."""
    peer = await connect(edge.port(tls), dialect, tls=edge.context(tls))
    async with flooding(peer.writer, data) as sending:
        if do is not None:
            await do(peer)
        code = await code_of(peer)
        assert not sending.done()  # nothing has been reset
    peer.leave()
    return code


def ending(edge, reason):
    """Ends all connections, for one of the node's reasons."""

    def end():
        for connection in list(edge.node.connections.values()):
            connection.close(reason, "for a test")

    return lambda _: edge.call(end)


@pytest.mark.parametrize("number", range(len(REASONS)), ids=lambda number: REASONS[number].name)
async def test_code_of_the_node_reaches_clients_that_flood(patient_edge, number):
    """In both protocols, over plain sockets and TLS; each reason during another kind of flood."""
    edge, reason = patient_edge, REASONS[number]
    floods = [data for name, data in FLOODS.items() if name != "no frames"]
    data = floods[number % len(floods)]
    variants = list(itertools.product(DIALECTS, (False, True)))
    peers = [
        await connect(edge.port(tls), dialect, tls=edge.context(tls)) for dialect, tls in variants
    ]
    async with contextlib.AsyncExitStack() as stack:
        sending = [await stack.enter_async_context(flooding(peer.writer, data)) for peer in peers]
        await ending(edge, reason)(None)
        codes = await asyncio.gather(*map(code_of, peers))
        assert not any(task.done() for task in sending)  # nothing has been reset
    for peer in peers:
        peer.leave()
    assert codes == [
        (NATIVE_CODES if dialect is NATIVE else PUSHER_CODES)[reason] for dialect, _ in variants
    ]


NATIVE_CODES = {
    CloseReason.BAD_TOKENS: 4001, CloseReason.DISCONNECTED: 4003, CloseReason.REVOKED: 4003,
    CloseReason.TOO_MANY_ACTIONS: 4008, CloseReason.DRAINING: 4200,
    CloseReason.TOKEN_EXPIRED: 4202, CloseReason.NO_HEARTBEAT: 4203,
    CloseReason.INTERNAL_ERROR: 1011,
}  # fmt: skip
PUSHER_CODES = {
    CloseReason.BAD_TOKENS: 4009, CloseReason.DISCONNECTED: 4009, CloseReason.REVOKED: 4009,
    CloseReason.TOO_MANY_ACTIONS: 4009, CloseReason.DRAINING: 4200,
    CloseReason.TOKEN_EXPIRED: 4009, CloseReason.NO_HEARTBEAT: 4201,
    CloseReason.INTERNAL_ERROR: 4100,
}  # fmt: skip
CAUSED = {
    "too many texts": (FLOODS["texts"], 4008, 4009),
    "too many pings": (FLOODS["pings"], 4008, 4009),
    "too many pongs": (FLOODS["pongs"], 4008, 4009),
    "too many fragments": (FLOODS["fragments"], 4008, 4009),
    "no frames": (FLOODS["no frames"], 1002, 1002),
    "not UTF-8": (many(frame(TEXT, b"\xff" * 1000)), 1007, 1007),
    "not UTF-8 in fragments": (many(b"".join(fragments(b"x" * 999 + b"\xff", 500))), 1007, 1007),
    "a large message": (frame(TEXT, b"x" * 2 * LIMIT), 1009, 1009),
    "large fragments": (
        frame(TEXT, b"x" * LIMIT, fin=False) + frame(MORE, b"x" * LIMIT, fin=False), 1009, 1009,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSED)
async def test_code_caused_by_a_flood_reaches_the_flooding_client(edge, cause):
    data, *codes = CAUSED[cause]
    variants = list(itertools.product(zip(DIALECTS, codes, strict=True), (False, True)))
    read_codes = await asyncio.gather(
        *(code_after(edge, dialect, tls, data, None) for (dialect, _), tls in variants)
    )
    assert read_codes == [code for (_, code), _ in variants]
    await none_is_left(edge)


async def test_three_refused_tokens_end_a_client_that_floods(edge):
    auth = frame(TEXT, b'{"action":"auth","data":{"token":"x"}}')
    for tls in (False, True):
        peer = await connect(edge.port(tls), NATIVE, tls=edge.context(tls))
        peer.writer.write(auth * 3)
        async with flooding(peer.writer, FLOODS["binaries"]) as sending:
            assert await code_of(peer) == 4001
            assert not sending.done()
        peer.leave()


async def test_refused_client_of_pusher_reads_its_code_while_it_floods(edge):
    head = handshake("/app/nobody")
    for tls in (False, True):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
        )
        writer.write(head.encode())
        async with flooding(writer, FLOODS["pings"]), asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"\r\n\r\n")
            assert b"pusher:error" in await reader.readuntil(b"}}")
            first, size = await reader.readexactly(2)
            assert first == 0x80 | CLOSE
            assert int.from_bytes((await reader.readexactly(size))[:2]) == 4001
        writer.transport.abort()


async def test_client_that_answers_the_close_ends_at_once_although_it_had_sent_more(edge):
    """Its frames before the answer are dropped, and the stream ends without a reset."""
    for tls in (False, True):
        peer = await connect(edge.port(tls), NATIVE, tls=edge.context(tls))
        await ending(edge, CloseReason.REVOKED)(peer)
        peer.writer.write(FLOODS["large texts"] * 4 + close(4003))
        assert await code_of(peer) == 4003
        began = time.monotonic()
        assert await peer.ended() == b""
        assert time.monotonic() - began < lingering.LINGER_S
        peer.leave()
    await none_is_left(edge)


# What it costs


async def sent_in_vain(edge, path):
    """The bytes that a client which never reads can send before its socket is reset."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", edge.plain)) as client:
        client.setblocking(False)
        await loop.sock_sendall(client, handshake(path).encode() + frame(TEXT, b"\xff"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while sent < lingering.MAX_SURPLUS + 2 * BUFFERS:
                    await loop.sock_sendall(client, b"x" * SIZE)
                    sent += SIZE
    return sent


BUFFERS = 32 * 1024 * 1024
"""More than the buffers of two sockets hold."""


async def test_no_more_than_a_bound_is_read_of_a_client_that_never_reads(edge, monkeypatch):
    """The rest stays in the buffers of both systems, and the socket ends after its time."""
    monkeypatch.setattr(lingering, "LINGER_S", 6.0)
    metric = edge.node.metrics.limits_reached.labels("surplus")
    before = metric._value.get()
    sent = await asyncio.gather(*(sent_in_vain(edge, dialect.path) for dialect in DIALECTS))
    assert metric._value.get() == before + len(sent)
    assert min(sent) > lingering.MAX_SURPLUS
    assert max(sent) < lingering.MAX_SURPLUS + BUFFERS
    await none_is_left(edge)


async def test_flood_over_tls_is_not_read_beyond_the_bound_either(edge, monkeypatch):
    monkeypatch.setattr(lingering, "LINGER_S", 6.0)
    metric = edge.node.metrics.limits_reached.labels("surplus")
    before = metric._value.get()
    peer = await connect(edge.tls, NATIVE, tls=edge.trust)
    peer.writer.write(frame(TEXT, b"\xff"))
    async with flooding(peer.writer, b"x" * SIZE):
        assert await code_of(peer) == 1007
        await until(edge, lambda: metric._value.get() == before + 1)
        await none_is_left(edge)
    peer.leave()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bounded_number_of_frames_is_searched_for_the_answer_to_a_close(
    patient_edge, monkeypatch, tls
):
    """The smallest frames take the node a microsecond each, and a client a few bytes."""
    edge, dropped, read = patient_edge, collections.Counter(), FrameReader.read

    def counted_read(reader, *, drop=False):
        item = read(reader, drop=drop)
        dropped[reader] += drop and item is not None
        return item

    monkeypatch.setattr(FrameReader, "read", counted_read)
    peer = await connect(edge.port(tls), NATIVE, tls=edge.context(tls))
    await ending(edge, CloseReason.REVOKED)(peer)
    peer.writer.write(frame(PONG) * 100_000)
    assert await code_of(peer) == 4003
    assert await peer.ended() == b""
    most = max(dropped.values())  # clients of earlier tests may be about to end
    assert 0 < most < websocket.DROPPED_FRAMES + websocket.FRAMES_PER_TURN
    peer.leave()
    await none_is_left(edge)


async def test_closed_clients_need_no_task(edge):
    tasks = await edge.call(lambda: len(asyncio.all_tasks()))
    peers = [
        await connect(edge.port(tls), NATIVE, tls=edge.context(tls)) for tls in (False, True) * 10
    ]
    for peer in peers:
        peer.writer.write(frame(TEXT, b"\xff"))
        assert await code_of(peer) == 1007
    await until(edge, lambda: len(asyncio.all_tasks()) <= tasks)
    for peer in peers:
        peer.leave()
    await none_is_left(edge)


# HTTP

_PUBLISH = (
    "POST /api/broadcast/events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {KEY}\r\n"
)
_CHUNK = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
REFUSED = {
    "a body that is too large": (
        f"{_PUBLISH}Content-Length: 9999999999\r\n\r\n", b"x" * SIZE, 413, "payload_too_large",
    ),
    "chunks that are too many": (
        f"{_PUBLISH}Transfer-Encoding: chunked\r\n\r\n", many(_CHUNK), 413, "payload_too_large",
    ),
    "an invalid chunk": (
        f"{_PUBLISH}Transfer-Encoding: chunked\r\n\r\n", many(b"zz\r\n"), 400, "bad_request",
    ),
    "a body without a key": (
        "POST /api/broadcast/events HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n",
        b"x" * SIZE, 401, "unauthorized",
    ),
    "a body of another type": (
        f"{_PUBLISH.replace('json', 'xml')}Content-Length: 9999999999\r\n\r\n",
        b"x" * SIZE, 415, "bad_request",
    ),
    "a body for another method": (
        "PUT /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n",
        b"x" * SIZE, 405, "method_not_allowed",
    ),
    "an unexpected body": (
        f"{_PUBLISH}Content-Length: 9999999999\r\nExpect: nonsense\r\n\r\n",
        b"x" * SIZE, 417, "bad_request",
    ),
    "a header without end": ("GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * SIZE, 431, "bad_request"),
    "headers without end": ("GET / HTTP/1.1\r\nHost: a\r\n", many(b"X: y\r\n"), 431, "bad_request"),
    "no HTTP": ("\0\0\r\n\r\n", b"\0" * SIZE, 400, "bad_request"),
    "frames behind a refused handshake": (
        handshake("/ws?channel=user.7"), FLOODS["pings"], 401, "unauthorized",
    ),
}  # fmt: skip


async def first_answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    size = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(size))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", REFUSED)
async def test_status_reaches_a_client_that_still_sends(edge, name, tls):
    """The stream also ends, so that a client that only checks between writes notices it."""
    head, data, status, code = REFUSED[name]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
    )
    writer.write(head.encode())
    async with flooding(writer, data), asyncio.timeout(PATIENCE_S):
        found, problem = await first_answer(reader)
        assert (found, problem["code"]) == (status, code)
        if not tls:  # where one direction can end alone
            await reader.read()
    writer.transport.abort()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_last_event_of_a_stream_reaches_a_client_that_sends_into_it(edge, tls):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
    )
    writer.write(b"GET /sse?channel=general HTTP/1.1\r\nHost: a\r\n\r\n")
    async with flooding(writer, b"x" * SIZE), asyncio.timeout(PATIENCE_S):
        received = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert b"nothing may be sent into a stream" in received
    writer.transport.abort()


async def test_requests_behind_that_of_a_stream_do_not_keep_its_end_from_being_read(edge):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.plain)
    heads = (b"/sse?channel=general", *[b"/"] * 100)
    writer.write(b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in heads))
    async with flooding(writer, b"x" * SIZE), asyncio.timeout(PATIENCE_S):
        received = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert b"nothing may be sent into a stream" in received
    writer.transport.abort()


async def test_connection_stays_usable_after_a_refused_body_that_ends(edge):
    body = b"x" * 2_000_000
    for tls in (False, True):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port(tls), ssl=edge.context(tls)
        )
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                writer.write(f"{_PUBLISH}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status, _ = await first_answer(reader)
                assert status == 413
        writer.transport.abort()


async def test_closed_http_connection_needs_no_task(edge):
    await none_is_left(edge)
    tasks = await edge.call(lambda: len(asyncio.all_tasks()))
    opened = [await asyncio.open_connection("127.0.0.1", edge.plain) for _ in range(10)]
    async with asyncio.timeout(PATIENCE_S):
        for reader, writer in opened:
            writer.write(b"\0\r\n\r\n")
            await first_answer(reader)
            assert await reader.read() == b""
    # The clients have not closed their side yet.
    assert await edge.call(lambda: len(edge.node.connections._sockets)) == len(opened)
    await until(edge, lambda: len(asyncio.all_tasks()) <= tasks)
    for _, writer in opened:
        writer.transport.abort()
    await none_is_left(edge)


async def test_token_of_a_url_is_in_no_answer_to_a_flood(edge):
    token = issue_token("7", secret=SECRET)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.plain)
    writer.write(f"GET /healthz?auth_token={token} HTTP/1.1\r\nX: ".encode())
    async with flooding(writer, b"x" * SIZE), asyncio.timeout(PATIENCE_S):
        assert token.encode() not in await reader.read()
    writer.transport.abort()


# The Python client


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_python_client_that_floods_learns_that_it_must_stay_away(edge, tls):
    """4008, because it sends too much: with 1006 it would connect again at once."""
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{edge.port(tls)}/ws"
    for _ in range(3):
        async with connect_client(url, tls=edge.context(tls)) as client, asyncio.timeout(60):
            while client.state is not ClientState.CLOSED:
                asked = [client.ask("ping", data="x" * 5000) for _ in range(200)]
                await asyncio.gather(*asked, return_exceptions=True)
            with pytest.raises(ClientClosed) as caught:
                await client.ping()
        assert caught.value.close_code == 4008


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_python_client_that_floods_learns_that_its_access_was_revoked(edge, tls):
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{edge.port(tls)}/ws"
    async with connect_client(url, tls=edge.context(tls)) as client, asyncio.timeout(60):
        asked = [client.ask("ping", data="x" * 5000) for _ in range(150)]
        answers = asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0)
        await ending(edge, CloseReason.REVOKED)(None)
        await answers
        while client.state is not ClientState.CLOSED:
            asked = [client.ask("ping", data="x" * 5000) for _ in range(50)]
            await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.sleep(0)
        with pytest.raises(ClientClosed) as caught:
            await client.ping()
    assert caught.value.close_code == 4003
