"""Clients that misbehave, on raw sockets, and crowds of clients."""

import asyncio
import contextlib
import functools
import itertools
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

__all__ = ["FLOODS", "Crowd", "churn", "flood", "stall", "trickle"]

_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_OPEN_S: Final = 20.0
_BATCH: Final = 200
_LITTLE: Final = 4096
_PAUSE_S: Final = 0.05
_BYTES: Final = 16_384
"""Bytes that a flood sends at once, 20 times per second."""


def _frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame of at most 125 bytes, masked with zeros (RFC 6455, section 5.2)."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


FLOODS: Final = {
    "text": _frame(1, b'{"action":"ping"}'),
    "malformed": _frame(1, b"{"),
    "ping": _frame(9, b"x" * 100),
    "pong": _frame(10, b"x" * 100),
}
"""The frame that each kind of flood repeats."""


def _handshake(channel: str) -> bytes:
    return (
        f"GET /ws?channel={channel} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n\r\n"
    ).encode()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def _open(url: str, *, buffer: int | None = None) -> socket.socket:
    plain = socket.socket()
    plain.setblocking(False)
    if buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        async with asyncio.timeout(_OPEN_S):
            await asyncio.get_running_loop().sock_connect(plain, _address(url))
    except BaseException:
        plain.close()
        raise
    return plain


async def _once(
    url: str, work: Callable[[socket.socket], Awaitable[object]], *, buffer: int | None = None
) -> None:
    """Connect, and do the work until the connection ends."""
    with contextlib.suppress(OSError, TimeoutError):
        plain = await _open(url, buffer=buffer)
        with plain:
            await work(plain)


async def stall(url: str, channel: str) -> None:
    """Subscribe, and never read; reconnect when the connection ends."""
    loop = asyncio.get_running_loop()

    async def work(plain: socket.socket) -> None:
        await loop.sock_sendall(plain, _handshake(channel))
        while True:
            await asyncio.sleep(1.0)
            await loop.sock_sendall(plain, FLOODS["pong"])

    while True:
        await _once(url, work, buffer=_LITTLE)
        await asyncio.sleep(_PAUSE_S)


async def trickle(url: str, channel: str) -> None:
    """Send a handshake and frames, byte by byte."""
    loop = asyncio.get_running_loop()

    async def work(plain: socket.socket) -> None:
        for byte in itertools.chain(_handshake(channel), itertools.cycle(FLOODS["text"])):
            await loop.sock_sendall(plain, bytes((byte,)))
            await asyncio.sleep(_PAUSE_S)

    while True:
        await _once(url, work)
        await asyncio.sleep(_PAUSE_S)


async def churn(
    urls: Sequence[str], channel: str, per_s: float, count: Callable[[], object]
) -> None:
    """Open and close connections: before, during and after the handshake; call `count` for each."""
    loop = asyncio.get_running_loop()
    texts = (b"", b"GET /ws HTTP/1.1\r\nHo", _handshake(channel))
    began = loop.time()
    for number in itertools.count():
        text = texts[number % len(texts)]
        await _once(urls[number % len(urls)], functools.partial(_send, text))
        count()
        await asyncio.sleep(max(0.0, began + number / per_s - loop.time()))


async def _send(text: bytes, plain: socket.socket) -> None:
    await asyncio.get_running_loop().sock_sendall(plain, text)


async def flood(url: str, channel: str, kind: str) -> None:
    """Send frames of a kind, read the answers, and reconnect when the connection ends."""
    loop = asyncio.get_running_loop()
    frame = FLOODS[kind]
    burst = frame * (_BYTES // len(frame))

    async def work(plain: socket.socket) -> None:
        await loop.sock_sendall(plain, _handshake(channel))
        while await loop.sock_recv(plain, _BYTES):
            await loop.sock_sendall(plain, burst)
            await asyncio.sleep(_PAUSE_S)

    while True:
        await _once(url, work)
        await asyncio.sleep(_PAUSE_S)


class _Guest(asyncio.Protocol):
    """One idle client, which only notices that it has joined."""

    def __init__(self, channel: str) -> None:
        self.joined = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(_handshake(self._channel))

    def data_received(self, data: bytes) -> None:
        if not self.joined.done():
            self._tail = (self._tail + data)[-_BYTES:]
            if b"eb:subscribed" in self._tail:
                self.joined.set_result(None)
                self._tail = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.joined.done():
            self.joined.set_exception(ConnectionResetError("the connection was lost"))


class Crowd:
    """Many clients that join, lose their connections, and come back all at once."""

    def __init__(self, urls: Sequence[str], channel: str, count: int) -> None:
        self._urls = urls
        self._channel = channel
        self._count = count
        self._guests: list[_Guest] = []

    async def join(self) -> None:
        """Join one group after another."""
        for first in range(0, self._count, _BATCH):
            batch = range(first, min(first + _BATCH, self._count))
            self._guests += await asyncio.gather(*map(self._enter, batch))

    def cut(self) -> None:
        """Lose all connections."""
        for each in self._guests:
            each.transport.abort()
        self._guests = []

    async def return_(self) -> None:
        """Join again, all at once; each client retries until it succeeds."""
        self._guests = list(await asyncio.gather(*map(self._enter, range(self._count))))

    async def _enter(self, number: int) -> _Guest:
        loop = asyncio.get_running_loop()
        host, port = _address(self._urls[number % len(self._urls)])
        while True:
            guest = None
            try:
                async with asyncio.timeout(_OPEN_S):
                    _, guest = await loop.create_connection(
                        lambda: _Guest(self._channel), host, port
                    )
                    await guest.joined
            except (OSError, TimeoutError):
                if guest is not None:
                    guest.transport.abort()
                await asyncio.sleep(_PAUSE_S)
            else:
                return guest
