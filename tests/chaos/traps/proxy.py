"""A TCP proxy that delays, drops or cuts the traffic between clients and one server."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

MAX_RECORDED = 1024**2
_CHUNK = 65_536
_BUFFER = 65_536
"""Small, so that the server soon notices a client that does not read."""


class Proxy:
    """Passes bytes on to a server and back."""

    def __init__(self, host: str, port: int) -> None:
        self.sent = bytearray()
        """What clients have sent, up to MAX_RECORDED bytes."""
        self._server = (host, port)
        self._answers_flow = asyncio.Event()
        self._answers_flow.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self.held = 0
        """How many chunks have been read from the server and wait for `release`."""
        self.accepted = 0
        """How many connections clients have made."""
        self.bytes_per_second = 0
        """How fast answers pass; 0 for no limit."""

    @property
    def url(self) -> str:
        assert self._listening is not None
        return f"nats://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._listening is not None
        self._listening.close()
        self.release()
        self.cut()
        await self._listening.wait_closed()

    def hold(self) -> None:
        """Stop reading from the server, and hold back what was read."""
        self._answers_flow.clear()

    def release(self) -> None:
        """Pass on the held data, and everything that follows."""
        self._answers_flow.set()

    def cut(self) -> None:
        """End all connections, as a network does."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        upstream = socket.socket()
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        upstream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(upstream, self._server)
        except OSError:
            upstream.close()
            writer.close()
            return
        there, back = await asyncio.open_connection(sock=upstream, limit=_BUFFER)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._forth(reader, back), self._back(there, writer))
        finally:
            for each in (writer, back):
                each.close()
                self._writers.discard(each)

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                self.sent += data[: max(0, MAX_RECORDED - len(self.sent))]
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                self.held += 1
                await self._answers_flow.wait()
                self.held -= 1
                if self.bytes_per_second:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def proxied(server: object) -> AsyncIterator[Proxy]:
    """A proxy to a server that has `host` and `port`."""
    proxy = Proxy(server.host, server.port)  # type: ignore[attr-defined]
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
