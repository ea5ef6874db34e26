"""Closes a socket whose peer may still be sending.

If a socket is closed while data arrives, TCP resets it, and the peer may lose data that it has not
read yet: a close code, or the status that refuses its upload (RFC 6455, 7.1.1; RFC 9112, 9.6). So
the node first ends its own side, and drops arriving data for a while.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from eventbus_edge.turns import Turns

__all__ = ["LINGER_S", "MAX_SURPLUS", "MUCH", "READ_BYTES", "Linger"]


LINGER_S: Final = 3.0
"""How long a peer may take to read unsent data and to end its side."""
MAX_SURPLUS: Final = 16 * 1024 * 1024
"""Bytes that are read and dropped; then nothing more is read, so that a peer that sends endlessly
costs only its socket. The socket buffers of both sides hold less (10 MiB by default on Linux,
tcp(7)), so a peer that reads while it sends ends before the limit.
"""
MUCH: Final = 64 * 1024
"""Bytes read at once after which the other clients are served before more is read."""
READ_BYTES: Final = 256 * 1024
"""What an event loop reads at once."""
QUIET_S: Final = 0.25
"""How long a TLS peer must be silent to count as done: TLS ends in both directions at once."""


class Linger(asyncio.Protocol):
    """The last protocol of a socket: sends unsent data, drops arriving data, then closes.

    It takes at most LINGER_S, and needs no task.
    """

    __slots__ = (
        "_deadline",
        "_is_silent",
        "_on_end",
        "_on_surplus",
        "_room",
        "_timer",
        "_transport",
        "_turns",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        turns: Turns,
        on_end: Callable[["Linger"], object],
        on_surplus: Callable[[], object],
        *,
        room: int = MAX_SURPLUS,
        is_done: bool = False,
    ) -> None:
        """Takes over the transport.

        on_end: called when the socket has ended. on_surplus: called when more than `room` bytes
        have arrived. is_done: the peer sends nothing more, so the socket is closed once all data
        is sent.
        """
        self._transport = transport
        self._turns = turns
        self._on_end = on_end
        self._on_surplus = on_surplus
        self._room = room
        self._is_silent = True
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + LINGER_S
        transport.set_protocol(self)
        if is_done:
            self._timer = loop.call_later(LINGER_S, transport.abort)
            transport.close()
            return
        if not transport.is_reading():
            transport.resume_reading()
        if transport.can_write_eof():
            self._timer = loop.call_later(LINGER_S, transport.abort)
            self._write_eof()
        else:
            self._timer = loop.call_later(QUIET_S, self._close_if_silent)
        self._check_room()

    def abort(self) -> None:
        """End the socket at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Drop data."""
        self._is_silent = False
        self._room -= len(data)
        self._check_room()
        if len(data) >= MUCH and self._transport.is_reading():
            self._transport.pause_reading()
            self._turns.wait(self._read_on)

    def _read_on(self) -> None:
        if self._room >= 0 and not self._transport.is_closing():
            self._turns.count_read(READ_BYTES)
            self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        """The socket has ended."""
        self._timer.cancel()
        self._on_end(self)

    def _check_room(self) -> None:
        if self._room < 0 and self._transport.is_reading():
            self._transport.pause_reading()
            self._on_surplus()

    def _write_eof(self) -> None:
        try:
            self._transport.write_eof()
        except OSError:  # the peer has reset the socket
            self._transport.abort()

    def _close_if_silent(self) -> None:
        """Close TLS while the peer is silent, or shortly before the deadline."""
        loop = asyncio.get_running_loop()
        left = self._deadline - loop.time()
        is_silent, self._is_silent = self._is_silent, True
        if (is_silent and self._room >= 0) or left <= QUIET_S:
            self._timer = loop.call_later(max(left, QUIET_S), self._transport.abort)
            self._transport.close()
        else:
            self._timer = loop.call_later(min(QUIET_S, left - QUIET_S), self._close_if_silent)
