"""A process with many clients that come and go: `python -m scripts.benchmark.soak.clients PLAN`.

PLAN is a Plan as JSON. Prints `{"ready": true}` once all clients are connected, then a Report every
few seconds, and a last one when stdin is closed and all connections have ended.
"""

import asyncio
import math
import random
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final, cast

import msgspec
import uvloop

from eventbus.tokens import issue_token
from scripts.benchmark.loader import NONCE, text_frame
from scripts.benchmark.machine import HOST
from scripts.benchmark.sizing.processes import SECRET

__all__ = ["BUCKETS", "EVENT", "GROUP", "Plan", "Report", "percentile"]

EVENT: Final = "tick"
GROUP: Final = 10
"""The number of clients that share a channel."""
BUCKETS: Final = 256
_PER_OCTAVE: Final = 8
"""Latency buckets between some number of microseconds and twice that: each is 9 % wide."""
REPORT_S: Final = 5.0
PER_ADDRESS: Final = 2000
"""Connections per source address (127.0.1.1, 127.0.1.2, …), since ports are limited."""
AT_ONCE: Final = 50
END_S: Final = 60.0
_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""ip(7): the port is chosen on connect, so that an address does not run out of ports."""
_MARK: Final = f'"event":"{EVENT}"'.encode()
_DATA: Final = b'"data":'
_SUBSCRIBED: Final = b'"event":"eb:subscribed"'
_ERROR: Final = b'"event":"eb:error"'
_NAME_WITHIN: Final = 160


class Plan(msgspec.Struct):
    """What the clients do."""

    port: int
    connections: int
    reconnects: float
    """Clients per second that disconnect, half of them without a close frame, and reconnect."""
    moves: float
    """Clients per second that leave their channel and join another."""


class Report(msgspec.Struct):
    """What has happened since the last report."""

    connected: int
    """Clients that are connected now."""
    messages: int = 0
    opened: int = 0
    joined: int = 0
    lost: dict[str, int] = {}
    """Connections that the server ended, by close code or status."""
    errors: int = 0
    latencies: list[int] = []
    """The number of messages per bucket; see `percentile`."""
    longest_us: float = 0.0


def bucket(microseconds: float) -> int:
    """The bucket of a latency."""
    return min(BUCKETS - 1, int(_PER_OCTAVE * math.log2(max(microseconds, 1.0))))


def percentile(counts: list[int], share: float) -> float:
    """The latency in milliseconds that `share` of the messages did not exceed; 0 without any."""
    left = share * sum(counts)
    for number, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return float(2 ** ((number + 1) / _PER_OCTAVE)) / 1000
    return 0.0


class Client(asyncio.Protocol):
    """A WebSocket client that parses as little as possible."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        self.number = number
        self.transport: asyncio.Transport
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.channel = f"chat.{number // GROUP}"
        self.is_leaving = False
        self._crowd = crowd
        self._buffer = b""
        self._code = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        path = f"/ws?channel=general&channel={self.channel}"
        if self.number % 5 == 0:
            path += f"&channel=presence.room.{self.number // (5 * GROUP)}"
        token = issue_token(f"user-{self.number}", secret=SECRET)
        self.transport.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {NONCE}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )

    def connection_lost(self, _: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        self.ended.set_result(None)
        self._crowd.ended(self, self._code or "1006")

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._code = head[9:12].decode("ascii", "replace")
                self.transport.close()
                return
            self.opened.set_result(None)
        at, length = 0, len(data)
        while length - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                start += 2
                size = int.from_bytes(data[at + 2 : start])
            elif size == 127:
                start += 8
                size = int.from_bytes(data[at + 2 : start])
            if length - start < size:
                break
            self._take(data[at] & 15, data, start, start + size)
            at = start + size
        self._buffer = data[at:]

    def _take(self, opcode: int, data: bytes, start: int, end: int) -> None:
        if opcode == 1:
            crowd, name_end = self._crowd, min(end, start + _NAME_WITHIN)
            if data.find(_MARK, start, name_end) >= 0:
                at = data.find(_DATA, start, end) + len(_DATA)
                crowd.received(float(data[at : data.find(b",", at, end)]))
            elif data.find(_SUBSCRIBED, start, name_end) >= 0:
                crowd.report.joined += 1
            elif data.find(_ERROR, start, name_end) >= 0:
                crowd.report.errors += 1
        elif opcode == 8:
            self._code = str(int.from_bytes(data[start : start + 2]))
            self._write(8, data[start : start + 2])
        elif opcode == 9:
            self._write(10, data[start:end])

    def move(self, channel: str) -> None:
        """Leave the channel, and join another."""
        before, self.channel = self.channel, channel
        for action, name in (("unsubscribe", before), ("subscribe", channel)):
            command = msgspec.json.encode({"action": action, "channel": name})
            self.transport.write(text_frame(command))

    def leave(self, *, politely: bool) -> None:
        """End the connection, with or without a close frame."""
        self.is_leaving = True
        if politely:
            self._write(8, (1000).to_bytes(2))
        else:
            self.transport.abort()

    def _write(self, opcode: int, payload: bytes) -> None:
        if not self.transport.is_closing():
            head = bytes((0x80 | opcode, 0x80 | len(payload)))  # control frames are short
            self.transport.write(head + bytes(4) + payload)


class Crowd:
    """All clients of the process."""

    def __init__(self, plan: Plan) -> None:
        self.report = Report(0, latencies=[0] * BUCKETS)
        self._plan = plan
        self._clients: dict[int, Client] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random(7)  # noqa: S311 - a load that can be repeated
        self._is_ending = False

    async def open(self) -> None:
        """Connect all of them."""
        await asyncio.gather(*(self._open(number) for number in range(self._plan.connections)))

    async def run(self) -> None:
        """Make clients reconnect, join and leave until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._plan.reconnects, self._reconnect))
            group.create_task(self._repeat(self._plan.moves, self._move))
            group.create_task(self._print())

    async def close(self) -> None:
        """End all connections, and wait until they have ended."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        leaving = list(self._clients.values())
        for client in leaving:
            client.leave(politely=client.number % 2 == 0)
        try:
            async with asyncio.timeout(END_S):
                await asyncio.gather(*(client.ended for client in leaving))
        except TimeoutError:
            for client in leaving:
                client.transport.abort()

    def received(self, sent_at: float) -> None:
        """Record a message."""
        took_us = 1e6 * (time.monotonic() - sent_at)
        report = self.report
        report.messages += 1
        report.latencies[bucket(took_us)] += 1
        report.longest_us = max(report.longest_us, took_us)

    def ended(self, client: Client, code: str) -> None:
        """Record the end of a connection, and open it again."""
        if self._clients.get(client.number) is client:
            del self._clients[client.number]
        if not client.is_leaving:
            self.report.lost[code] = self.report.lost.get(code, 0) + 1
        if not self._is_ending:
            self._start(self._open(client.number))

    def flush(self) -> None:
        """Print the report, and start a new one."""
        self.report.connected = len(self._clients)
        print(msgspec.json.encode(self.report).decode(), flush=True)
        self.report = Report(0, latencies=[0] * BUCKETS)

    async def _open(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        async with self._turn:
            plain = socket.socket()
            try:
                plain.setblocking(False)
                plain.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                plain.bind((f"127.0.1.{1 + number // PER_ADDRESS}", 0))
                await loop.sock_connect(plain, (HOST, self._plan.port))
                _, client = await loop.create_connection(lambda: Client(self, number), sock=plain)
            except OSError:
                plain.close()
                self.report.lost["refused"] = self.report.lost.get("refused", 0) + 1
                return
            self._clients[number] = client
            await client.opened
            self.report.opened += 1

    async def _reconnect(self) -> None:
        client = self._random.choice(list(self._clients.values()))
        if not client.is_leaving:
            client.leave(politely=self._random.random() < 0.5)

    async def _move(self) -> None:
        client = self._random.choice(list(self._clients.values()))
        if client.opened.done() and not client.is_leaving:
            groups = 1 + self._plan.connections // GROUP
            client.move(f"chat.{self._random.randrange(groups)}")

    async def _repeat(self, per_s: float, do: Any) -> None:
        due = time.monotonic()
        while per_s:
            due += 1 / per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._clients:
                await do()

    async def _print(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self.flush()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _until_end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


async def main(plan: Plan) -> None:
    """Run until stdin is closed."""
    crowd = Crowd(plan)
    await crowd.open()
    print('{"ready":true}', flush=True)
    running = asyncio.create_task(crowd.run())
    await _until_end_of_input()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await crowd.close()
    crowd.flush()


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Plan)))
