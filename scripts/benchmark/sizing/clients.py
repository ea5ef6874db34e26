"""A process with many lightweight clients, controlled by lines of JSON on stdin.

    {"do": "open", "port": 8080, "kind": "websocket", "clients": [["/ws?channel=general", ""]], …}

`open` connects clients, and replies when each has `joins` subscriptions. `send` makes each client
send a text. `expect` replies when each client has received the given number of subscriptions and
messages. `follow` makes disconnected clients connect to another port. `drop` closes all
connections. Clients parse as little of each frame as possible, to need little CPU time themselves.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final, Literal, cast

import uvloop

__all__ = ["EVENT", "Kind"]

Kind = Literal["websocket", "sse"]

EVENT: Final = "tick"
"""The event name that distinguishes messages from system events of the edge."""
HOST: Final = "127.0.0.1"
AT_ONCE: Final = 500
"""How many connections a process opens concurrently."""
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # the client does not check the reply
_OFFER: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
_MARK: Final = f'"event":"{EVENT}"'.encode()
_SUBSCRIBED: Final = b'"event":"eb:subscribed"'
_NAME_WITHIN: Final = 120
"""The event name is within this many bytes at the beginning of a frame."""
_RSV1: Final = 0x40


class Counts:
    """What all clients of the process have received."""

    def __init__(self) -> None:
        self.subscribed = 0
        self.messages = 0
        self._waiting: tuple[int, int, asyncio.Future[None]] | None = None

    async def reach(self, subscribed: int, messages: int) -> None:
        """Wait for these numbers, and then subtract them."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting = subscribed, messages, waiting
        self.check()
        await waiting
        self._waiting = None
        self.subscribed -= subscribed
        self.messages -= messages

    def check(self) -> None:
        """Wake up `reach` if there are enough."""
        if self._waiting is not None:
            subscribed, messages, waiting = self._waiting
            enough = self.subscribed >= subscribed and self.messages >= messages
            if enough and not waiting.done():
                waiting.set_result(None)


class WebSocket(asyncio.Protocol):
    """Reads server frames, which are unfragmented and not masked (RFC 6455, section 5.2)."""

    def __init__(self, head: bytes, counts: Counts, on_end: Callable[[], None]) -> None:
        self.transport: asyncio.Transport
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = head
        self._counts = counts
        self._on_end = on_end
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.transport.write(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("the edge closed the connection"))
        self._on_end()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            if not head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")):
                self.opened.set_exception(ConnectionError(f"refused: {head[:200]!r}{data[:500]!r}"))
                return
            self.opened.set_result(None)
        self._buffer = self.read(data)
        self._counts.check()

    def read(self, data: bytes) -> bytes:
        """Handle all complete frames. Returns the rest."""
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
            self._take(data[at], data, start, start + size)
            at = start + size
        return data[at:]

    def _take(self, first: int, data: bytes, start: int, end: int) -> None:
        match first & 15:
            case 1:
                name_end = min(end, start + _NAME_WITHIN)
                # Only messages are deflated, so every deflated frame is a message.
                if first & _RSV1 or data.find(_MARK, start, name_end) >= 0:
                    self._counts.messages += 1
                elif data.find(_SUBSCRIBED, start, name_end) >= 0:
                    self._counts.subscribed += 1
            case 8:
                self.write(8, data[start : start + 2])
            case 9:
                self.write(10, data[start:end])

    def write(self, opcode: int, payload: bytes) -> None:
        """Send a frame, masked with zeros."""
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
        self.transport.write(bytes((0x80 | opcode,)) + length + bytes(4) + payload)


class Stream(WebSocket):
    """Server-Sent Events. Counts events without parsing chunks and lines."""

    def read(self, data: bytes) -> bytes:
        self._counts.messages += data.count(_MARK)
        self._counts.subscribed += data.count(_SUBSCRIBED)
        last = max(data.rfind(_MARK), data.rfind(_SUBSCRIBED)) + 1
        return data[max(last, len(data) - len(_SUBSCRIBED) + 1) :]


class Client:
    """One client, which can reconnect."""

    def __init__(self, crowd: "Clients", head: bytes) -> None:
        self.protocol: WebSocket
        self._crowd = crowd
        self._head = head

    async def open(self) -> None:
        """Connect, and wait for the reply to the handshake."""
        crowd = self._crowd
        async with crowd.turn:
            _, self.protocol = await asyncio.get_running_loop().create_connection(
                lambda: crowd.kind(self._head, crowd.counts, self._ended),
                HOST,
                crowd.port,
                ssl=crowd.tls,
            )
            await self.protocol.opened

    def _ended(self) -> None:
        if self._crowd.followed_by is not None:
            task = asyncio.create_task(self._follow(self._crowd.followed_by))
            self._crowd.tasks.add(task)
            task.add_done_callback(self._crowd.tasks.discard)

    async def _follow(self, text: bytes) -> None:
        await self.open()
        self.protocol.write(1, text)


class Clients:
    """All clients of the process."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.turn = asyncio.Semaphore(AT_ONCE)
        self.port = 0
        self.kind: type[WebSocket] = WebSocket
        self.tls: ssl.SSLContext | None = None
        self.followed_by: bytes | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self._clients: list[Client] = []

    async def open(
        self,
        *,
        port: int,
        kind: Kind,
        clients: list[list[str]],
        joins: int,
        deflate: bool,
        ca: str,
    ) -> None:
        self.port = port
        self.kind = Stream if kind == "sse" else WebSocket
        self.tls = ssl.create_default_context(cafile=ca) if ca else None
        made = [Client(self, _head(kind, *each, deflate=deflate)) for each in clients]
        self._clients += made
        await asyncio.gather(*(each.open() for each in made))
        await self.counts.reach(joins * len(made), 0)

    async def send(self, *, text: str) -> None:
        for client in self._clients:
            client.protocol.write(1, text.encode())

    async def expect(self, *, subscribed: int, messages: int) -> None:
        count = len(self._clients)
        await self.counts.reach(subscribed * count, messages * count)

    async def follow(self, *, port: int, text: str) -> None:
        self.port, self.followed_by = port, text.encode()

    async def drop(self) -> None:
        self.followed_by = None
        for client in self._clients:
            client.protocol.transport.abort()
        self._clients.clear()
        self.counts = Counts()


def _head(kind: Kind, path: str, token: str, *, deflate: bool) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
    if kind == "websocket":
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {_KEY}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n" + _OFFER * deflate + "\r\n").encode()


async def main() -> None:
    """Run until stdin is closed."""
    clients = Clients()
    reader = asyncio.StreamReader(limit=2**27)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, str] = {}
        try:
            await getattr(clients, command.pop("do"))(**command)
        except OSError as exc:
            answer["error"] = f"{type(exc).__name__}: {exc}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
