"""A gate between a client's socket and aiohttp's WebSocket reader: counts frames, handles pings."""

from collections.abc import Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Protocol,
)

from eventbus_edge.framing.scanning import FrameScanner

if TYPE_CHECKING:
    from eventbus_edge.sessions.connection import Connection

__all__ = ["FrameGate", "Reading"]


FRAMES_PER_TURN: Final = 128
"""Frames of one client that are processed before the event loop serves other clients."""
MAX_WAITING: Final = 256
"""Messages of one client that may wait to be handled; others wait in its socket."""
_MAX_AFTER_CLOSE: Final = 1000
"""Frames that may be dropped before a client's close frame, once the node has closed."""


class Reading(Protocol):
    """The reading side of a connection's transport."""

    def hold(self) -> None:
        """Pause reading from the socket."""

    def release(self) -> None:
        """Resume reading."""

    def close(self) -> None:
        """End the connection, because the reader has found a fault."""


class FrameGate:
    """Replaces aiohttp's reader as the parser of a connection, and feeds that reader.

    aiohttp parses all data of a socket in one turn of the event loop, and shows neither fragments
    nor the number of frames. So the gate counts frames, removes pings and pongs, and passes on a
    limited number at a time, while it pauses the socket.
    """

    def __init__(
        self,
        reading: Reading,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        deflates: bool,
    ) -> None:
        """`deflates`: whether permessage-deflate was negotiated."""
        self._reading = reading
        self._call_soon = call_soon
        self._scanner = FrameScanner(deflates=deflates)
        self._reader: Any = None
        self._connection: Connection | None = None
        self._waiting = 0
        self._after_close = 0
        self._is_held = False
        self._is_due = False
        self._is_at_end = False

    def feeds(self, reader: Any) -> None:
        """Set aiohttp's WebSocketReader, which gets the frames of messages."""
        self._reader = reader

    def open(self, connection: "Connection") -> None:
        """Let frames pass, including those received so far."""
        self._connection = connection
        self._scan()

    def took(self) -> None:
        """Note that a message is about to be handled, so there is room for another one."""
        self._waiting -= 1
        if self._is_held and self._waiting <= MAX_WAITING // 2:
            self._go_on()

    def closing(self) -> None:
        """Note that the node has closed: only the client's close frame matters from now on."""
        if self._is_held:
            self._go_on()

    # aiohttp's interface of parsers

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Process data from the socket."""
        self._scanner.feed(data)
        if self._is_held or self._connection is None:
            self._hold()
        else:
            self._scan()
        return False, b""

    def feed_eof(self) -> None:
        """The socket has ended; frames received before are processed first."""
        self._is_at_end = True
        connection = self._connection
        if connection is not None and (connection.is_closing or not self._is_held):
            self._reader.feed_eof()

    # Scanning

    def _go_on(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._call_soon(self._scan)

    def _scan(self) -> None:
        self._is_due = False
        connection = self._connection
        assert connection is not None, "the gate is open"
        if connection.is_closing:
            self._look_for_close()
            return
        scanned = self._scanner.take(FRAMES_PER_TURN, MAX_WAITING - self._waiting)
        connection.count(scanned.frames, scanned.ping, is_last=not scanned.more)
        self._waiting += scanned.messages
        if scanned.data:
            self._pass(scanned.data)
        if not scanned.more:
            self._release()
            if self._is_at_end:
                self._reader.feed_eof()
            return
        self._hold()
        if self._waiting < MAX_WAITING or connection.is_closing:
            self._go_on()

    def _look_for_close(self) -> None:
        scanned = self._scanner.take(FRAMES_PER_TURN, 1, drop=True)
        if scanned.data:
            self._pass(scanned.data)
        self._after_close += scanned.frames
        if self._after_close > _MAX_AFTER_CLOSE:
            self._hold()  # for good: the socket is closed when the close times out
        elif scanned.more:
            self._hold()
            self._go_on()
        else:
            self._release()

    def _pass(self, data: bytes) -> None:
        is_faulty, _ = self._reader.feed_data(data)
        if is_faulty:
            self._reading.close()

    def _hold(self) -> None:
        self._is_held = True
        self._reading.hold()

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._reading.release()
