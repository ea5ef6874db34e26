"""A thousand clients: one that stops reading among them, and a restart while messages flow."""

import asyncio
import collections
import json
import os
import re
import resource
import socket
import statistics
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest

from eventbus.bus import EventBus

pytestmark = [pytest.mark.xdist_group("load"), pytest.mark.timeout(180)]

MANY = 1000
PATIENCE_S = 120.0
ROOM_FOR_ALL = {"BROADCAST_MAX_CONNECTIONS_PER_ADDRESS": str(4 * MANY)}
_HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Frame(msgspec.Struct):
    """What these clients read of a frame."""

    event: str
    data: msgspec.Raw
    offset: int | None = None
    epoch: str | None = None


class Start(msgspec.Struct):
    offset: int
    epoch: str
    recovered: bool | None = None


decode = msgspec.json.Decoder(Frame).decode
decode_start = msgspec.json.Decoder(Start).decode


class LightClient(asyncio.Protocol):
    """A WebSocket of few lines, cheap enough for a thousand of them beside what they test."""

    def __init__(self, on_frame, on_end):
        self.close_code = None
        self._on_frame = on_frame
        self._on_end = on_end
        self._buffer = b""
        self._is_open = False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(_HANDSHAKE)

    def connection_lost(self, exc):
        self._on_end(self.close_code or 1006)

    def data_received(self, data):
        data = self._buffer + data if self._buffer else data
        at = 0
        if not self._is_open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._is_open = True
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                start += 2
                size = int.from_bytes(data[at + 2 : start])
            elif size == 127:
                start += 8
                size = int.from_bytes(data[at + 2 : start])
            if len(data) < start + size:
                break
            self._take(data[at] & 15, data[start : start + size])
            at = start + size
        self._buffer = data[at:]

    def _take(self, opcode, payload):
        if opcode == 1:
            self._on_frame(payload)
        elif opcode == 9:  # a client that does not answer would be closed
            self.write(10, payload)
        elif opcode == 8:
            self.close_code = int.from_bytes(payload[:2])
            self.write(8, payload[:2])

    def write(self, opcode, payload):
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
        self.transport.write(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    def ask(self, action, channel, **data):
        command = {"action": action, "channel": channel} | ({"data": data} if data else {})
        self.write(1, json.dumps(command).encode())


class Listener:
    """Receives a channel; reconnects after its node drains, and resumes."""

    def __init__(self, ports, turn):
        self.heard = []
        self.codes = collections.Counter()
        self.subscribed = asyncio.Event()
        self.unrecovered = 0
        self.changed = asyncio.Event()
        self._cursor = {}
        self._ports = ports
        self._turn = turn
        self._is_closing = False
        self._task = None
        self._gone = asyncio.Event()

    async def connect(self):
        loop = asyncio.get_running_loop()
        while True:
            port = self._ports[self._turn % len(self._ports)]
            try:
                _, self._client = await loop.create_connection(
                    lambda: LightClient(self._take, self._ended), "127.0.0.1", port
                )
            except OSError:  # the node is gone by now
                self._turn += 1
                await asyncio.sleep(0.05)
            else:
                self._gone.clear()
                return

    def _take(self, payload):
        frame = decode(payload)
        match frame.event:
            case "eb:connected":
                self._client.ask("subscribe", "general", **self._cursor)
            case "eb:subscribed":
                start = decode_start(frame.data)
                self.unrecovered += start.recovered is False
                self._cursor = {"offset": start.offset, "epoch": start.epoch}
                self.subscribed.set()
            case "tick":
                self.heard.append(int(bytes(frame.data)))
                if frame.offset is not None:
                    self._cursor = {"offset": frame.offset, "epoch": frame.epoch}
                self.changed.set()

    def _ended(self, code):
        self.codes[code] += 1
        self._gone.set()
        if not self._is_closing:
            self._turn += 1
            self._task = asyncio.ensure_future(self.connect())

    async def until(self, count):
        while len(self.heard) < count:
            self.changed.clear()
            await self.changed.wait()

    async def close(self):
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
        self._client.transport.abort()
        await self._gone.wait()


@pytest.fixture(autouse=True)
def room_for_sockets():
    """For the clients of this process, and for the nodes, which inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MANY if hard == resource.RLIM_INFINITY else min(4 * MANY, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def listen():
    """Connect many that subscribe to `general`: `await listen(ports, count)`."""
    listeners = []

    async def start(ports, count):
        made = [Listener(ports, turn) for turn in range(count)]
        listeners.extend(made)
        for group in range(0, count, 50):  # within the backlog of a listening socket
            await asyncio.gather(*(one.connect() for one in made[group : group + 50]))
            await asyncio.gather(*(one.subscribed.wait() for one in made[group : group + 50]))
        return made

    yield start
    await asyncio.gather(*(one.close() for one in listeners))


async def metric(url, name):
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", await answer.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_client_that_stops_reading_costs_its_bound_and_delays_none_of_the_others(
    start_process, bus, listen
):
    bulk, beside, rounds = "x" * 50_000, 16, 30
    node = await start_process(**ROOM_FOR_ALL)
    clients = await listen([node.port], MANY - 1)

    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)  # and no more by itself
    plain.connect(("127.0.0.1", node.port))
    plain.setblocking(False)
    taken = asyncio.Queue()
    ended = asyncio.get_running_loop().create_future()
    transport, stopping = await asyncio.get_running_loop().create_connection(
        lambda: LightClient(taken.put_nowait, ended.set_result), sock=plain
    )
    stopping.ask("subscribe", "announcements")
    while b'"eb:subscribed"' not in await taken.get():
        pass

    async def one_round(number):
        """How long a message took to all, with as much sent to the one beside it as ever."""
        for _ in range(beside):
            await bus.publish("announcements", "bulk", bulk, volatile=True)
        started = time.monotonic()
        await bus.publish("general", "tick", number)
        await asyncio.gather(*(one.until(number + 1) for one in clients))
        return time.monotonic() - started

    async with asyncio.timeout(PATIENCE_S):
        reading = []
        for number in range(rounds):
            reading.append(await one_round(number))
            for _ in range(beside):
                await taken.get()
        before = resident(node.process.pid)
        transport.pause_reading()
        stopped = [await one_round(rounds + number) for number in range(rounds)]

    assert all(one.heard == list(range(2 * rounds)) for one in clients)
    assert not any(one.codes for one in clients)
    # A fan-out to all takes as long as before: of 30 rounds, the middle one tells. Were anybody
    # waited for, it would be for seconds.
    assert statistics.median(stopped) < 5 * statistics.median(reading)
    assert await metric(node.url, 'eventbus_edge_closes_total{code="4201"}') == 1
    grown = resident(node.process.pid) - before
    assert grown < rounds * beside * len(bulk) / 2, "what it did not read was kept"
    transport.resume_reading()
    async with asyncio.timeout(PATIENCE_S):
        assert await ended in {4201, 1006}


async def test_a_restart_under_load_leaves_every_list_whole(
    start_process, settings, namespace, listen
):
    own = msgspec.structs.replace(settings, history_messages=5000)
    environ = {
        "BROADCAST_HISTORY_MESSAGES": "5000",
        "BROADCAST_DRAIN_TIME": "3",
        **ROOM_FOR_ALL,
    }
    stays, restarts = await start_process(**environ), await start_process(**environ)
    ports = [stays.port, restarts.port]
    clients = await listen(ports, MANY)
    done = asyncio.Event()

    async with EventBus(own) as bus, asyncio.timeout(PATIENCE_S):

        async def publish():
            count = 0
            while not done.is_set():
                await bus.publish("general", "tick", count)
                count += 1
                await asyncio.sleep(0.04)
            return count

        publishing = asyncio.create_task(publish())
        await asyncio.gather(*(one.until(5) for one in clients))
        restarts.terminate()
        code, _ = await restarts.end()
        assert code == 0
        ports[1] = (await start_process(**environ)).port
        seen = len(clients[0].heard)
        await asyncio.gather(*(one.until(seen + 10) for one in clients))
        done.set()
        count = await publishing
        await asyncio.gather(*(one.until(count) for one in clients))

    wrong = [one for one in clients if one.heard != list(range(count))]
    assert not wrong, f"{len(wrong)} lists are not whole, such as {wrong[0].heard}"
    assert sum(one.unrecovered for one in clients) == 0
    close_codes = sum((one.codes for one in clients), collections.Counter())
    assert close_codes == {4200: MANY // 2}
