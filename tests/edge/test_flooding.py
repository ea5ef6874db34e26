"""Clients that send more than they may, of whatever kind, and what others notice of it."""

import asyncio
import contextlib
import json
import statistics
import time

import pytest

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
async def test_whoever_floods_hears_that_it_is_too_much_and_is_closed_with_4008(
    start_edge, bus, raw, begin, flood
):
    edge = await start_edge(bus)
    client = await raw(edge)
    client.send(begin + flood * 2000)
    frames, code = await client.until_closed()
    assert code == 4008
    assert codes(frames)[-1] == "rate_limited"
    assert edge.node.metrics.closes.labels("4008")._value.get() == 1


async def test_what_comes_with_the_handshake_counts_as_well(start_edge, bus, raw):
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


async def test_what_a_client_sent_before_it_left_is_carried_out(start_edge, bus, token, raw):
    edge = await start_edge(bus, max_whispers_per_channel=1e6, **UNBOUND)
    hears = await edge.connect("/ws/chat.1", token=token("8"))
    await hears.next()
    client = await raw(edge)
    commands = [{"action": "auth", "data": {"token": token()}}]
    commands.append({"action": "subscribe", "channel": "chat.1"})
    whisper = {"action": "whisper", "channel": "chat.1", "event": "e"}
    commands += [whisper | {"data": number} for number in range(1000)]
    client.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in commands))
    client.writer.write_eof()
    assert [(await hears.next())["data"] for _ in range(1000)] == list(range(1000))


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
    return statistics.median(took)


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
    assert beside < 10 * alone + 0.05, f"{alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside"
