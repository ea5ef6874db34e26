"""A network link between two programs that can be slow, lossy or cut: a TCP proxy."""

import asyncio
import random
from typing import Final

from scripts.chaos_lab.processes import HOST, free_port

__all__ = ["Link"]

_CHUNK: Final = 65_536
_RETRANSMISSION_S: Final = 0.3
"""How long a lost packet delays a TCP connection, at least."""


class Link:
    """Passes bytes on, in both directions."""

    def __init__(self, target: tuple[str, int], host: str = HOST) -> None:
        self.port = free_port(host)
        self.delay_s = 0.0
        """The delay in each direction."""
        self.loss = 0.0
        """The share of chunks that are delayed by a retransmission."""
        self._target = target
        self._host = host
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._there, self._back = asyncio.Event(), asyncio.Event()
        """Set while bytes pass in that direction."""
        self._there.set()
        self._back.set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, self._host, self.port)

    def cut(self, *, there: bool = True, back: bool = True) -> None:
        """Let nothing pass to the target, back from it, or both, as if packets were dropped."""
        if there:
            self._there.clear()
        if back:
            self._back.clear()

    def mend(self) -> None:
        """Pass all bytes at full speed again, including those that wait."""
        self.delay_s = self.loss = 0.0
        self._there.set()
        self._back.set()

    def reset(self) -> None:
        """End all connections."""
        for each in self._tasks:
            each.cancel()

    async def aclose(self) -> None:
        """Stop listening, and end all connections."""
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task of our own.

        Python 3.11 reports an asyncio server's own tasks as failed if they are cancelled.
        """
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._there.wait()
            await self._back.wait()
            there, back = await asyncio.open_connection(*self._target)
            writers.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back, self._there))
                both.create_task(self._pass(there, writer, self._back))
        except* OSError:
            pass  # one side has ended it; the other one is closed below
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mended: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            delay = self.delay_s
            if self.loss and random.random() < self.loss:  # noqa: S311 - it simulates a network
                delay += _RETRANSMISSION_S
            if delay:
                await asyncio.sleep(delay)
            await mended.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
