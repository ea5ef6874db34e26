"""Many clients, spread over several processes (scripts.benchmark.sizing.clients)."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from scripts.benchmark.sizing.clients import Kind

__all__ = ["PLAIN", "Crowd", "Guest", "How", "start_crowd"]

PATIENCE_S: Final = 300.0
_LINE: Final = 2**20


class Guest(NamedTuple):
    """One client: the path that it requests, and its token, if any."""

    path: str
    token: str = ""


class How(NamedTuple):
    """How clients connect."""

    kind: Kind = "websocket"
    deflate: bool = False
    ca: str = ""
    """The file with the edge's CA certificate; empty for no TLS."""


PLAIN: Final = How()


class Crowd:
    """A group of clients, controlled together."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def open(
        self, port: int, guests: Sequence[Guest], how: How = PLAIN, *, joins: int = 1
    ) -> None:
        """Connect more clients, and wait until each has `joins` subscriptions."""
        count = len(self._processes)
        shares = [guests[index::count] for index in range(count)]
        await asyncio.gather(
            *(
                self._ask(process, "open", port=port, clients=share, joins=joins, **how._asdict())
                for process, share in zip(self._processes, shares, strict=True)
            )
        )

    async def send(self, text: str) -> None:
        """Make each client send a text frame."""
        await self._ask_all("send", text=text)

    async def expect(self, *, subscribed: int = 0, messages: int = 0) -> None:
        """Wait until each client has received these numbers of subscriptions and messages."""
        await self._ask_all("expect", subscribed=subscribed, messages=messages)

    async def follow(self, port: int, text: str) -> None:
        """From now on, disconnected clients connect to `port` at once and send `text`."""
        await self._ask_all("follow", port=port, text=text)

    async def drop(self) -> None:
        """Close all connections."""
        await self._ask_all("drop")

    async def _ask_all(self, do: str, **fields: Any) -> None:
        await asyncio.gather(*(self._ask(process, do, **fields) for process in self._processes))

    async def _ask(self, process: asyncio.subprocess.Process, do: str, **fields: Any) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(PATIENCE_S):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError("a client process has exited")
        if error := json.loads(line).get("error"):
            raise RuntimeError(f"clients: {error}")


@contextlib.asynccontextmanager
async def start_crowd(count: int) -> AsyncIterator[Crowd]:
    """Start `count` processes without clients."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scripts.benchmark.sizing.clients",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={"PATH": os.environ["PATH"]},
                limit=_LINE,
            )
            processes.append(process)
        yield Crowd(processes)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
