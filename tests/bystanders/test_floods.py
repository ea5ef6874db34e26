"""Each kind of flood is refused as documented, and other clients are served."""

import asyncio
import contextlib
import itertools
import json
import logging

import aiohttp
import pytest
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tasks import fault_count
from eventbus.tokens import issue_token
from eventbus_edge.app import create_app, make_runner
from eventbus_edge.framing.reader import FrameReader
from eventbus_edge.keys import NODE
from eventbus_edge.sessions import connection as connections
from eventbus_edge.sessions.joining import Joiner
from scripts.benchmark.bystanders.floods import BATCH, FLOODS, handshake
from scripts.benchmark.bystanders.turns import node_settings
from scripts.benchmark.sizing.processes import SECRET

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]  # too slow for the quick tests

PATIENCE_S = 60.0
MOST_BYTES = 12_000_000
"""Of floods that no close code ends."""
COMINGS = 150
MOST_FRAMES = 1024
"""The most frames of one client in one turn; the node's own limit is far below."""
CLOSES = {
    "auth, wrong tokens": "4001",
    "close frames": "client",
    "compressed, beyond the limit": "1009",
    "frames beyond the limit": "1009",
    "not UTF-8": "1007",
    "pusher: unknown apps": "4001",
}


@pytest.fixture
async def node():
    """A node over memory, where an address may send a hundred requests at once."""
    async with EventBus(Settings(driver="memory")) as bus:
        settings = node_settings(max_requests_per_address=5.0, max_connections_per_address=40)
        runner = make_runner(create_app(settings, bus))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner
        await runner.cleanup()


@contextlib.asynccontextmanager
async def bystander(node):
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{node.addresses[0][1]}/ws/general") as socket,
    ):
        while json.loads(await socket.receive_str())["event"] != "eb:subscribed":
            pass
        yield socket


@contextlib.asynccontextmanager
async def connected(node):
    """A socket from an address of its own."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", node.addresses[0][1], local_addr=("127.0.0.2", 0)
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def flood(node, each, *, is_ended):
    """Flood until the node closes, or all bytes are sent. Returns the first answers."""
    if not each.comes_and_goes:
        async with connected(node) as (reader, writer):
            return await pour(reader, writer, each, is_ended=is_ended)
    answers = b""
    for _ in range(COMINGS):
        async with connected(node) as (reader, writer):
            writer.write(each.first)
            if each.first:
                with contextlib.suppress(ConnectionError):
                    answers += (await reader.read(4096))[:64]
    return answers


async def pour(reader, writer, each, *, is_ended):
    got = bytearray()

    async def read():
        while data := await reader.read(2**16):
            got.extend(data[: 4096 - len(got)])

    async def write():
        writer.write(each.first)
        batch = each.repeated * max(1, BATCH // len(each.repeated))
        for _ in itertools.count() if is_ended else range(MOST_BYTES // len(batch)):
            writer.write(batch)
            await writer.drain()
        writer.transport.abort()

    works = [asyncio.create_task(read()), asyncio.create_task(write())]
    await asyncio.wait(
        works, return_when=asyncio.FIRST_COMPLETED
    )  # the node closes, or all is sent
    for work in works:
        work.cancel()
    for result in await asyncio.gather(*works, return_exceptions=True):
        assert isinstance(result, OSError | asyncio.CancelledError | None), result
    return bytes(got)


def count_frames(monkeypatch):
    """The most frames of one client that were read in one turn of the event loop, as a list."""
    loop, most, turn, seen = asyncio.get_running_loop(), [0], [0], {}
    run_once, read = loop._run_once, FrameReader.read

    def counted_turn():
        turn[0] += 1
        run_once()

    def counted_read(reader, **options):
        at, count = seen.get(id(reader), (0, 0))
        count = count + 1 if at == turn[0] else 1
        seen[id(reader)] = turn[0], count
        most[0] = max(most[0], count)
        return read(reader, **options)

    monkeypatch.setattr(loop, "_run_once", counted_turn, raising=False)
    monkeypatch.setattr(FrameReader, "read", counted_read)
    return most


def counted(metric, label):
    return metric.labels(label)._value.get()


def kind_of_close(name):
    """The close code that must end a flood, as in the metric."""
    if name in CLOSES:
        return CLOSES[name]
    if name.startswith("pusher:"):
        return None if "connect" in name else "4009"
    is_websocket = FLOODS[name].first.startswith(b"GET /ws") and not FLOODS[name].comes_and_goes
    return "4008" if is_websocket and FLOODS[name].first.endswith(b"\r\n\r\n") else None


@pytest.mark.parametrize("name", FLOODS)
async def test_flood_is_refused_as_documented_and_others_go_on(name, node, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    metrics, before = node.app[NODE].metrics, fault_count()
    most = count_frames(monkeypatch)
    async with asyncio.timeout(PATIENCE_S * 4), bystander(node) as socket:
        answers = await flood(node, FLOODS[name], is_ended=kind_of_close(name) is not None)
        await node.app[NODE].bus.publish("general", "after", 1, volatile=True)
        while json.loads(await socket.receive_str())["event"] != "after":
            pass
    assert b"HTTP/1.1 500" not in answers
    assert counted(metrics.closes, "1011") == 0
    if (code := kind_of_close(name)) is not None:
        async with asyncio.timeout(PATIENCE_S):
            while not counted(metrics.closes, code):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
    if name.startswith("connect"):
        assert counted(metrics.limits_reached, "requests") > 0
    assert most[0] <= MOST_FRAMES
    assert fault_count() == before
    own = [record for record in caplog.records if record.name.startswith("eventbus")]
    assert [record.getMessage() for record in own if record.levelno >= logging.ERROR] == []


async def test_handshake_with_many_channels_lets_others_take_turns(node, monkeypatch):
    monkeypatch.setattr(connections, "SHARE_S", 0.0)
    loop, turn, joined_in = asyncio.get_running_loop(), [0], []
    run_once, enter = loop._run_once, Joiner.enter

    def counted_turn():
        turn[0] += 1
        run_once()

    async def counted_enter(joiner, effect):
        joined_in.append(turn[0])
        return await enter(joiner, effect)

    monkeypatch.setattr(loop, "_run_once", counted_turn, raising=False)
    monkeypatch.setattr(Joiner, "enter", counted_enter)
    names = "&".join(f"channel=presence.{number}" for number in range(20))
    async with connected(node) as (reader, writer):
        token = f"Authorization: Bearer {issue_token('7', secret=SECRET)}"
        writer.write(handshake(f"/ws?{names}", token))
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"presence.19")
    assert len(joined_in) == 20
    assert len(set(joined_in)) == 20, "each in a turn of its own"
