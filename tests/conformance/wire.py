"""WebSocket clients that send arbitrary bytes, over plain sockets and TLS.

Frames are made by hand (RFC 6455, section 5), so that nothing corrects or refuses them.
"""

import asyncio
import dataclasses
import json
import os
import ssl
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PATIENCE_S: Final = 40.0
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT: Final = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
APP: Final = "conformance"
"""The key of the app for clients of the Pusher protocol."""
ERROR: Final = "an error"
"""The answer to a message that is not a command: the connection stays open."""


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True
) -> bytes:
    """One frame of a client; `rsv` is the number of its three reserved bits."""
    size = len(payload)
    if size < 126:
        short, extended = size, b""
    else:
        short, extended = (126, size.to_bytes(2)) if size < 65_536 else (127, size.to_bytes(8))
    head = bytes((fin << 7 | rsv << 4 | opcode, mask << 7 | short)) + extended
    if not mask:
        return head + payload
    key = os.urandom(4)
    sums = int.from_bytes(payload) ^ int.from_bytes((key * (size // 4 + 1))[:size])
    return head + key + sums.to_bytes(size)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason)


def fragments(payload: bytes, size: int, *, opcode: int = TEXT, rsv: int = 0) -> list[bytes]:
    """The frames of a message in fragments of `size` bytes; the last one is shorter."""
    at = range(0, len(payload), size) or (0,)
    return [
        frame(
            MORE if start else opcode,
            payload[start : start + size],
            fin=start == at[-1],
            rsv=0 if start else rsv,
        )
        for start in at
    ]


def deflated(payload: bytes, compressor: "zlib._Compress | None" = None) -> bytes:
    """The data of a compressed message (RFC 7692, 7.2.1)."""
    compressor = compressor or zlib.compressobj(wbits=-15)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\0\0\xff\xff")


class Dialect(NamedTuple):
    """Builds commands whose answers quote a text, for one protocol."""

    name: str
    path: str
    begin: bytes
    end: bytes
    quotes: tuple[str, ...]
    """Where the answer has the text."""

    def quoting(self, text: bytes) -> bytes:
        """A command whose answer quotes `text`, which must not contain characters JSON escapes."""
        return self.begin + text + self.end

    def sized(self, size: int, fill: bytes = b"*") -> bytes:
        """A command of `size` bytes, filled with repetitions of `fill`."""
        room = size - len(self.begin) - len(self.end)
        return self.quoting((fill * (room // len(fill) + 1))[:room])

    def text_of(self, command: bytes) -> str:
        """The text that the answer to a command quotes."""
        return command[len(self.begin) : len(command) - len(self.end)].decode()

    def read(self, payload: bytes) -> str:
        """The text that an answer quotes; ERROR for an error."""
        value = json.loads(payload)
        if value["event"] in ("eb:error", "pusher:error"):
            return ERROR
        for name in self.quotes:
            value = value[name]
        assert isinstance(value, str)
        return value


NATIVE: Final = Dialect("native", "/ws", b'{"action":"ping","data":"', b'"}', ("data", "echo_data"))
PUSHER: Final = Dialect(  # "*" is in no name of a channel: the refusal quotes the name
    "pusher", f"/app/{APP}", b'{"event":"pusher:subscribe","data":{"channel":"*', b'"}}',
    ("channel",),
)  # fmt: skip
PUSHER_PREFIX: Final = "*"


class Refused(Exception):
    """The handshake was refused; the message is the head of the answer."""


def handshake(target: str, more: str = "") -> str:
    """The head of an opening handshake; `more` are header lines."""
    return (
        f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )


class Pong(bytes):
    """The payload of a pong. Among the parts to send, it is awaited before the next part."""


async def read_frame(reader: asyncio.StreamReader, patience_s: float) -> tuple[int, bytes]:
    """The opcode and the payload of the next frame, which must be one of a server."""
    async with asyncio.timeout(patience_s):
        first, size = await reader.readexactly(2)
        assert size < 128, "a server does not mask"
        assert first & 0x80, "the server does not fragment"
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
        payload = await reader.readexactly(size)
    if first & 0x40:
        payload = zlib.decompress(payload + b"\0\0\xff\xff", -15)
    return first & 0xF, payload


@dataclasses.dataclass
class Peer:
    """The other end of one WebSocket, after its opening handshake."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    dialect: Dialect
    head: str
    """The answer to the handshake."""

    async def frame(self) -> tuple[int, bytes]:
        """The opcode and the payload of the next frame, which must be one of a server."""
        return await read_frame(self.reader, PATIENCE_S)

    async def send(self, sent: Iterable[bytes], chop: int = 0) -> list[object]:
        """Send each part separately, in pieces of `chop` bytes if given.

        Returns the answers that were read: for each Pong among the parts, those up to it.
        """
        answers: list[object] = []
        for part in sent:
            if isinstance(part, Pong):
                while not answers or answers[-1] != part:
                    answers.append(await self.answer())
                continue
            for at in range(0, len(part), chop or len(part) or 1):
                self.writer.write(part[at : at + chop] if chop else part)
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.drain()
        return answers

    async def answer(self) -> object:
        """The next frame: a text, a Pong or a close code; None for a close without a code."""
        opcode, payload = await self.frame()
        if opcode == CLOSE:
            assert len(payload) != 1
            payload[2:].decode()
            return int.from_bytes(payload[:2]) if payload else None
        if opcode == PONG:
            return Pong(payload)
        assert opcode == TEXT
        text = self.dialect.read(payload)
        return text.removeprefix(PUSHER_PREFIX) if self.dialect is PUSHER else text

    async def answers(self) -> list[object]:
        """All answers up to the close frame; the last one is its code."""
        found: list[object] = []
        while not found or not (found[-1] is None or isinstance(found[-1], int)):
            found.append(await self.answer())
        return found

    async def ended(self) -> bytes:
        """All bytes up to the end of the stream, which must not be a reset."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    def leave(self) -> None:
        """End the socket."""
        self.writer.transport.abort()


async def connect(
    port: int,
    dialect: Dialect,
    *,
    tls: ssl.SSLContext | None = None,
    offer: str = "",
    query: str = "",
) -> Peer:
    """Open a WebSocket, and read the greeting; `offer` is for Sec-WebSocket-Extensions.

    Raises Refused.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    extensions = f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else ""
    writer.write(handshake(dialect.path + query, extensions).encode())
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if not head.startswith("HTTP/1.1 101 "):
        writer.transport.abort()
        raise Refused(head)
    assert f"Sec-WebSocket-Accept: {ACCEPT}\r\n" in head
    peer = Peer(reader, writer, dialect, head)
    opcode, payload = await peer.frame()
    assert opcode == TEXT
    assert json.loads(payload)["event"] in ("eb:connected", "pusher:connection_established")
    return peer
