"""Accepts TLS connections, and limits incomplete handshakes.

The servers of asyncio and uvloop pass a socket to its protocol only when the handshake is complete.
Until then it would not count for its address, and a client could hold any number of sockets open.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from eventbus.attempts import RateLimitedLog
from eventbus.tasks import Tasks
from eventbus_edge.access import Admission

__all__ = ["HANDSHAKE_S", "TlsServer"]


_log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
"""How long a handshake may take."""
_PAUSE_S: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TlsServer:
    """Accepts the connections of listening sockets."""

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext,
        admission: Admission,
        *,
        timeout_s: float = HANDSHAKE_S,
    ) -> None:
        """`factory` makes the protocol of a connection whose handshake is complete."""
        self._tls = tls
        self._factory = factory
        self._admission = admission
        self._timeout_s = timeout_s
        self._sockets: list[socket.socket] = []
        self._accepting = Tasks()
        self._handshakes = Tasks()
        self._faults = RateLimitedLog(_log)

    def listen(self, listening: socket.socket) -> None:
        """Accept connections on a bound, non-blocking socket."""
        self._sockets.append(listening)
        self._accepting.start(self._accept(listening), "accepting TLS connections")

    def renew(self, tls: ssl.SSLContext) -> None:
        """Use another context for new connections."""
        self._tls = tls

    async def aclose(self) -> None:
        """Stop listening, and end handshakes in progress. Open connections are not affected."""
        await self._accepting.aclose()
        for each in self._sockets:
            each.close()
        await self._handshakes.aclose()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as exc:
                self._faults.warning("a connection could not be accepted: %s", exc.strerror)
                await asyncio.sleep(_PAUSE_S if exc.errno in _EXHAUSTED else 0.0)
                continue
            peer = address[0]
            if self._admission.begin_handshake(peer):
                self._handshakes.start(self._handshake(sock, peer), "a TLS handshake")
            else:
                sock.close()

    async def _handshake(self, sock: socket.socket, peer: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, sock, ssl=self._tls, ssl_handshake_timeout=self._timeout_s
            )
        except OSError:
            sock.close()  # the context has counted the error, or the client was too slow or left
        finally:
            self._admission.end_handshake(peer)
