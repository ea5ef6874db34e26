"""How much flooding clients slow down a bystander on the same node.

    python -m scripts.bench.flooding [FLOODERS ...]

For each kind of flood, measures the round trip of a bystander's action `ping`, without flooders and
with some (1 and 4 by default). Prints the median and the 95th percentile in milliseconds, and the
close codes of the flooders' connections. A closed flooder reconnects at once. Then measures
subscribing to a channel next to 50 clients that read history within their rate limits.
BROADCAST_DRIVER sets the driver, by default `memory`.
"""

import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp

SECONDS: Final = 4.0
PAUSE_S: Final = 1 / 20
READERS: Final = 50
_READ_S: Final = 1 / 45
_HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def _frame(first: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((first,)) + length + bytes(4) + payload


def _history(channel: str) -> bytes:
    command = {"action": "history", "channel": channel, "data": {"limit": 100}}
    return _frame(0x81, json.dumps(command).encode())


FLOODS: Final = {
    "pings": _frame(0x89),
    "pongs": _frame(0x8A),
    "empty fragments": _frame(0x00),
    "empty texts": _frame(0x81),
    "large texts": _frame(0x81, b"[" + b"1," * 30_000 + b"1]"),
    "history": _history("general"),
}
_FIRST: Final = {"empty fragments": _frame(0x01)}
"""The first frame of a flood: a continuation needs a message to continue."""


def flood(port: int, kind: str, ends: "multiprocessing.Queue[str]") -> None:
    """Send one kind of frame endlessly. Reports the close code of each connection that ends."""
    frames = FLOODS[kind] * max(1, 256 * 1024 // len(FLOODS[kind]))
    while True:
        ends.put(_flood_once(port, _HANDSHAKE + _FIRST.get(kind, b""), frames))


def read_history(port: int, readers: int) -> None:
    """Run clients that keep reading history, slightly below the rate limit of a connection."""
    asyncio.run(_read_history(port, readers))


async def _read_history(port: int, readers: int) -> None:
    async def read(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0) as reader:
            await reader.receive()
            while True:
                due = time.monotonic() + _READ_S
                await reader.send_str('{"action":"history","channel":"general"}')
                await reader.receive()
                await asyncio.sleep(due - time.monotonic())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(read(http) for _ in range(readers)))


def _flood_once(port: int, first: bytes, frames: bytes) -> str:
    got = b""
    try:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(first)
            got = plain.recv(65536)
            if not got.startswith(b"HTTP/1.1 101"):
                return got[9:12].decode() or "cut"
            plain.setblocking(False)
            sent = 0
            while True:
                with contextlib.suppress(BlockingIOError):
                    sent = (sent + plain.send(frames[sent:])) % len(frames)
                with contextlib.suppress(BlockingIOError):
                    answer = plain.recv(1024 * 1024)
                    if not answer:
                        break
                    got = (got + answer)[-200:]
    except OSError:
        pass
    found = re.search(rb"\x88.(..)", got, re.DOTALL)
    return str(int.from_bytes(found[1])) if found else "cut"


_PING: Final[tuple[str, ...]] = ('{"action":"ping"}',)
_JOIN: Final[tuple[str, ...]] = (
    '{"action":"subscribe","channel":"public"}',
    '{"action":"unsubscribe","channel":"public"}',
)


async def _round_trips(port: int, commands: Sequence[str]) -> list[float]:
    """Run the commands repeatedly. Returns how long each first command took."""
    took = []
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{port}/ws") as bystander,
    ):
        await bystander.receive()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            began = time.perf_counter()
            await bystander.send_str(commands[0])
            await bystander.receive()
            took.append(1000 * (time.perf_counter() - began))
            for command in commands[1:]:
                await bystander.send_str(command)
                await bystander.receive()
            await asyncio.sleep(PAUSE_S)
    return took


@contextlib.asynccontextmanager
async def _edge(**settings: str) -> AsyncIterator[int]:
    environ = (
        {"BROADCAST_DRIVER": "memory"}
        | os.environ
        | {
            "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
            "BROADCAST_WEBSOCKET_PORT": "0",
            "BROADCAST_DRAIN_TIME": "0",
            "EDGE_LOG_LEVEL": "error",
        }
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "eventbus_edge",
        stdout=asyncio.subprocess.PIPE,
        env=environ | settings,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        found = re.search(r"://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(f"the edge did not start: {line}")
        yield int(found[1])
    finally:
        process.kill()
        await process.wait()


async def _fill(port: int) -> None:
    """Publish one hundred messages to the channel that is read."""
    async with aiohttp.ClientSession() as http:
        for number in range(100):
            body = {"channel": "general", "event": "e", "data": {"number": number}}
            await http.post(f"http://127.0.0.1:{port}/api/broadcast/events", json=body)


async def _measure(kind: str, flooders: int) -> str:
    ends: multiprocessing.Queue[str] = multiprocessing.Queue()
    async with _edge() as port:
        await _fill(port)
        if kind == "readers":
            commands = _JOIN
            works = [multiprocessing.Process(target=read_history, args=(port, flooders))]
        else:
            commands = _PING
            arguments = (port, kind, ends)
            works = [multiprocessing.Process(target=flood, args=arguments) for _ in range(flooders)]
        processes = works if flooders else []
        for process in processes:
            process.start()
        try:
            await asyncio.sleep(2.0 if processes else 0)
            took = await _round_trips(port, commands)
        finally:
            for process in processes:
                process.kill()
                process.join()
        codes: collections.Counter[str] = collections.Counter()
        while not ends.empty():
            codes[ends.get()] += 1
    median, high = statistics.median(took), statistics.quantiles(took, n=20)[-1]
    return f"{median:8.1f} {high:8.1f}   {dict(codes.most_common(4))}"


async def main(numbers: list[int]) -> None:
    """Print the table."""
    print(f"{'':16} flooders   median     95 %   ends")
    print(f"{'none':16} {0:8} {await _measure('pings', 0)}")
    for kind in FLOODS:
        for flooders in numbers:
            row = await _measure(kind, flooders)
            print(f"{kind:16} {flooders:8} {row}", flush=True)
    for readers in (0, READERS):
        print(f"{'join, readers':16} {readers:8} {await _measure('readers', readers)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main([int(number) for number in sys.argv[1:]] or [1, 4]))
