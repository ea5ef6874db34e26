"""The sockets of a client, which are closed with it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import aiohttp

__all__ = ["Sockets"]

_CLOSE_S: Final = 2.0


class _Socket(socket.socket):
    """A socket that reports its close."""

    def __init__(
        self, family: int, kind: int, protocol: int, on_close: Callable[["_Socket"], object]
    ) -> None:
        super().__init__(family, kind, protocol)
        self._on_close = on_close

    def close(self) -> None:
        super().close()
        self._on_close(self)


class Sockets:
    """The sockets of one aiohttp session.

    A session's close() waits for the connections in its pool (aiohttp 3.14). A WebSocket's
    connection has left the pool: over TLS its shutdown could outlast the event loop, and leave the
    socket open.
    """

    def __init__(self) -> None:
        self._open: set[_Socket] = set()
        self._none_open = asyncio.Event()

    def connector(self, tls: ssl.SSLContext | bool = True) -> aiohttp.TCPConnector:
        """A connector for the session; `tls` verifies the edge's certificate."""
        return aiohttp.TCPConnector(ssl=tls, socket_factory=self._make)

    async def aclose(self) -> None:
        """Wait until all are closed, in bounded time; call it after the session's close()."""
        if not await self._wait():
            for each in self._open:
                with contextlib.suppress(OSError):  # the other side has reset it
                    each.shutdown(socket.SHUT_RDWR)  # as if the other side had ended it
            await self._wait()

    def _make(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = _Socket(family, kind, protocol, self._forget)
        self._open.add(made)
        self._none_open.clear()
        return made

    def _forget(self, closed: _Socket) -> None:
        self._open.discard(closed)
        if not self._open:
            self._none_open.set()

    async def _wait(self) -> bool:
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._none_open.wait()
        return not self._open
