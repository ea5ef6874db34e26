"""permessage-deflate over real sockets, with peers of other makes."""

import asyncio
import contextlib
import json
import os
import zlib
from pathlib import Path

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

OURS = "permessage-deflate; server_no_context_takeover"
LONG = {"text": "the same words again and again, " * 200}
MAX_FRAME = 64 * 1024


@pytest.fixture
async def edge(start_edge, bus):
    return await start_edge(bus, compression=True)


@pytest.fixture
def deflated(edge):
    """How many bytes the node has deflated so far, before and after."""

    def read():
        stages = edge.node.metrics.deflated_bytes
        return [stages.labels(stage)._value.get() for stage in ("before", "after")]

    return read


class RawClient:
    """Sees the very bytes: head by head, and frames as they are on the wire."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.head = {}

    async def shake_hands(self, extensions, path="/ws"):
        offers = "".join(f"Sec-WebSocket-Extensions: {offer}\r\n" for offer in extensions)
        self.writer.write(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"{offers}\r\n".encode()
        )
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.head = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), self.head.get("sec-websocket-extensions")

    async def frame(self):
        """The first byte of a frame, and its payload."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2))
        elif size == 127:
            size = int.from_bytes(await self.reader.readexactly(8))
        return first, await self.reader.readexactly(size)

    def send(self, first, payload):
        size = len(payload)
        if size < 126:
            length = bytes((0x80 | size,))
        else:
            length = b"\xfe" + size.to_bytes(2) if size < 2**16 else b"\xff" + size.to_bytes(8)
        mask = bytes(4)  # of zeros: the payload stays as it is
        self.writer.write(bytes((first,)) + length + mask + payload)


@pytest.fixture
async def raw(edge):
    writers = []

    async def open_one():
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writers.append(writer)
        return RawClient(reader, writer)

    yield open_one
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def deflate(payload):
    compressor = zlib.compressobj(wbits=-15)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\x00\x00\xff\xff")


async def subscribed(client, channel="general"):
    await client.subscribe(channel)
    return client


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 15, "client_max_window_bits": 15},
        {"server_max_window_bits": 10, "client_max_window_bits": 9},
    ],
)
async def test_websockets_agrees_and_reads_and_writes(edge, bus, deflated, options):
    factory = ClientPerMessageDeflateFactory(**options)
    client = await edge.connect(compression=None, extensions=[factory])
    answer = client.socket.response.headers["Sec-WebSocket-Extensions"]
    assert answer.startswith(OURS)
    await client.subscribe("general")
    for number in range(5):
        await bus.publish("general", "news", LONG | {"number": number})
        assert (await client.next())["data"] == LONG | {"number": number}
    before, after = deflated()
    assert before > 5 * len(LONG["text"])
    assert after < before / 10
    echoed = await client.ask("ping", data=LONG)  # its own frames, with whatever context it keeps
    assert echoed["data"]["echo_data"] == LONG
    echoed = await client.ask("ping", data=LONG)
    assert echoed["data"]["echo_data"] == LONG


async def test_aiohttp_agrees_and_reads_and_writes(edge, bus):
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{edge.url}/ws", compress=15) as socket,
    ):
        assert socket.compress
        await socket.receive()
        await socket.send_json({"action": "subscribe", "channel": "general", "ref": "r" * 5000})
        assert (await socket.receive_json())["data"]["ref"] == "r" * 5000
        for number in range(5):
            await bus.publish("general", "news", LONG | {"number": number})
            assert (await socket.receive_json())["data"] == LONG | {"number": number}


async def test_a_hundred_clients_get_a_message_that_is_deflated_once(edge, bus, deflated):
    clients = [await edge.connect("/ws/general", compression="deflate") for _ in range(100)]
    await asyncio.gather(*(client.next() for client in clients))
    await bus.publish("general", "news", LONG)
    received = await asyncio.gather(*(client.next() for client in clients))
    assert all(message["data"] == LONG for message in received)
    before, _ = deflated()
    assert len(LONG["text"]) < before < 2 * len(LONG["text"])


async def test_resuming_client_gets_the_frame_that_was_made_for_the_others(edge, bus, deflated):
    live = await edge.connect("/ws/general", compression="deflate")
    start = (await live.next())["data"]
    await bus.publish("general", "news", LONG)
    await live.next()
    once = deflated()
    later = await edge.connect(compression="deflate")
    cursor = {"offset": start["offset"], "epoch": start["epoch"]}
    assert (await later.subscribe("general", data=cursor))["recovered"] is True
    assert (await later.next())["data"] == LONG
    assert deflated() == once


async def test_clients_with_and_without_it_receive_the_same_on_one_channel(edge, bus):
    plain = await subscribed(await edge.connect())
    packed = await subscribed(await edge.connect(compression="deflate"))
    assert "Sec-WebSocket-Extensions" not in plain.socket.response.headers
    for data in (1, LONG, "short", LONG):
        await bus.publish("general", "news", data)
        received = [await client.socket.recv(decode=False) for client in (plain, packed)]
        assert received[0] == received[1]
        assert json.loads(received[0])["data"] == data


async def test_on_the_wire_long_messages_are_deflated_and_short_ones_and_answers_are_not(
    edge, bus, raw
):
    sizes = {}
    for name, offers in (("plain", []), ("deflated", ["permessage-deflate"])):
        client = await raw()
        status, answer = await client.shake_hands(offers, "/ws/general")
        assert (status, answer) == (101, OURS if offers else None)
        assert (await client.frame())[0] == 0x81  # eb:connected
        assert (await client.frame())[0] == 0x81  # eb:subscribed
        await bus.publish("general", "short", "x" * 100)
        assert (await client.frame())[0] == 0x81
        await bus.publish("general", "long", LONG)
        first, payload = await client.frame()
        assert first == (0xC1 if offers else 0x81)
        sizes[name] = len(payload)
        client.send(0x81, b'{"action":"ping","data":"' + b"y" * 5000 + b'"}')
        assert (await client.frame())[0] == 0x81
        client.send(0x89, b"hello")
        assert await client.frame() == (0x8A, b"hello")
        client.send(0x88, b"\x03\xe8")
        first, payload = await client.frame()
        assert (first, payload[:2]) == (0x88, b"\x03\xe8")
        assert await client.reader.read() == b""
    assert sizes["deflated"] < sizes["plain"] / 10


async def test_without_the_setting_nothing_is_agreed_on(start_edge, bus):
    client = await (await start_edge(bus)).connect("/ws/general", compression="deflate")
    assert "Sec-WebSocket-Extensions" not in client.socket.response.headers
    await client.next()
    await bus.publish("general", "news", LONG)
    assert (await client.next())["data"] == LONG


@pytest.mark.parametrize(
    "offers",
    [
        ["permessage-deflate; server_max_window_bits=8"],
        ["permessage-deflate; level=9"],
        ["permessage-deflate; client_max_window_bits=9; client_max_window_bits=9"],
        ["x-webkit-deflate-frame"],
    ],
)
async def test_an_offer_that_cannot_be_kept_leaves_the_connection_plain(bus, raw, offers):
    client = await raw()
    assert await client.shake_hands(offers, "/ws/general") == (101, None)
    for _ in range(2):
        await client.frame()
    await bus.publish("general", "long", LONG)
    assert (await client.frame())[0] == 0x81
    client.send(0xC1, deflate(b'{"action":"ping"}'))  # RSV1 means nothing here
    first, payload = await client.frame()
    assert (first, payload[:2]) == (0x88, (1002).to_bytes(2))


async def test_size_of_the_window_may_be_quoted(raw):
    """RFC 6455, 9.1."""
    client = await raw()
    offer = 'permessage-deflate; server_max_window_bits="10"'
    assert await client.shake_hands([offer]) == (101, f"{OURS}; server_max_window_bits=10")


async def test_the_first_offer_that_can_be_kept_counts(raw):
    client = await raw()
    offers = "permessage-deflate; server_max_window_bits=8, permessage-deflate"
    assert await client.shake_hands([offers]) == (101, OURS)


async def test_a_header_outside_the_grammar_is_refused(edge):
    status, _, problem = await edge.refusal(
        headers={"Sec-WebSocket-Extensions": "permessage-deflate; ="}
    )
    assert (status, problem["code"]) == (400, "bad_request")
    assert "Sec-WebSocket-Extensions" in problem["detail"]


async def test_a_deflated_frame_may_be_as_large_as_the_limit_when_inflated(raw):
    client = await raw()
    await client.shake_hands(["permessage-deflate"])
    await client.frame()
    ping = b'{"action":"ping","data":"%b"}'
    client.send(0xC1, deflate(ping % (b"z" * (MAX_FRAME - len(ping) + 2))))
    first, payload = await client.frame()
    assert first == 0x81
    assert json.loads(payload)["event"] == "pong"
    client.send(0xC1, deflate(ping % (b"z" * MAX_FRAME)))
    first, payload = await client.frame()
    assert (first, payload[:2]) == (0x88, (1009).to_bytes(2))


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_zip_bomb_is_closed_with_1009_and_costs_no_memory(edge, raw):
    size = 60 * 1024 * 1024
    bomb = deflate(b"0" * size)
    assert len(bomb) < MAX_FRAME
    bombs = []
    for _ in range(5):
        client = await raw()
        await client.shake_hands(["permessage-deflate"])
        await client.frame()
        bombs.append(client)
    before = resident()
    for client in bombs:
        client.send(0xC1, bomb)
        first, payload = await client.frame()
        assert (first, payload[:2]) == (0x88, (1009).to_bytes(2))
        client.send(0x88, payload)
        assert await client.reader.read() == b""
    assert resident() - before < size // 4
    other = await edge.connect()
    assert await other.receives_nothing()
    assert edge.node.metrics.closes.labels("1009")._value.get() == 5


@pytest.mark.parametrize("data", [b"\xff" * 20, deflate(b"x" * 50)[:4] + b"\x07\x07\x07"])
async def test_message_that_cannot_be_inflated_is_closed_with_1002(raw, data):
    client = await raw()
    await client.shake_hands(["permessage-deflate"])
    await client.frame()
    client.send(0xC1, data)
    first, payload = await client.frame()
    assert (first, payload[:2]) == (0x88, (1002).to_bytes(2))


async def test_inflated_text_that_is_not_utf8_is_closed_with_1007(raw):
    client = await raw()
    await client.shake_hands(["permessage-deflate"])
    await client.frame()
    client.send(0xC1, deflate(b"\xff\xfe" * 100))
    first, payload = await client.frame()
    assert (first, payload[:2]) == (0x88, (1007).to_bytes(2))


async def test_a_client_is_closed_with_its_code(edge):
    client = await edge.connect("/ws/general", compression="deflate")
    await client.next()
    await edge.node.connections.drain()
    with pytest.raises(ConnectionClosed):
        await client.next()
    assert await client.closed() == 4200


async def test_a_level_outside_zlibs_is_refused_at_the_start(start_process):
    with pytest.raises(AssertionError, match="BROADCAST_COMPRESSION_LEVEL"):
        await start_process(BROADCAST_COMPRESSION_LEVEL="10")
