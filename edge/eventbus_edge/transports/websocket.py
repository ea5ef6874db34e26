"""The socket of a WebSocket after its upgrade, by RFC 6455: frames in, frames out, and the close.

One object of ours is the protocol of the transport: nothing of HTTP and no task stay alive for an
idle connection. A command that has to wait for something runs in a task, while nothing more is read
from its client.
"""

import asyncio
import enum
from collections.abc import (
    Callable,
    Iterable,
)
from typing import Final

from eventbus_edge.access import Allowed, Slot
from eventbus_edge.delivery import Wire
from eventbus_edge.framing import (
    BINARY,
    CLOSE,
    PING,
    PING_FRAME,
    TEXT,
    Fault,
    FrameReader,
    close_frame,
    close_reason,
    pong_frame,
)
from eventbus_edge.http import Detached
from eventbus_edge.lingering import LINGER_S, MAX_SURPLUS, Linger
from eventbus_edge.protocols import Closing, Failed, Subscribe
from eventbus_edge.sessions import Connection, Connections, Work, fileno_of
from eventbus_edge.turns import SHARE_S

__all__ = ["MAX_CLOSE_S", "WebSocket"]


FRAMES_PER_TURN: Final = 128
"""Frames of one client that are handled before other clients are served. Messages also count by
their time, see SHARE_S.
"""
MESSAGE: Final = 8
"""How many frames a message counts as."""
DROPPED_FRAMES: Final = 4096
"""How many frames are searched for the answer to a close frame: tiny ones cost time, not bytes."""
CLOSE_TIMEOUT_S: Final = 3.0
"""How long a client may take to answer a close frame."""
_MESSAGES: Final = frozenset({TEXT, BINARY})
MAX_CLOSE_S: Final = CLOSE_TIMEOUT_S + LINGER_S


class State(enum.Enum):
    """The state of a socket; data frames are written and handled only in the first one."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    """The node has sent a close frame, and awaits the client's."""
    ENDING = enum.auto()
    """No more frames are read or written: a Linger closes the socket."""


_OPEN: Final = State.OPEN  # looking up an enum's attribute is slower


class WebSocket(asyncio.Protocol):
    """The sink that an outbox writes to, and the peer that a connection ends."""

    __slots__ = (
        "_connection",
        "_connections",
        "_drops",
        "_ended",
        "_head",
        "_is_at_end",
        "_is_due",
        "_is_held",
        "_last_size",
        "_ping",
        "_reader",
        "_room",
        "_slot",
        "_state",
        "_timer",
        "_transport",
        "_turns",
        "_work",
        "is_behind",
        "wire",
    )  # fmt: skip

    def __init__(
        self,
        detached: Detached,
        head: bytes,
        wire: Wire,
        reader: FrameReader,
        *,
        connections: Connections,
        slot: Slot | None,
    ) -> None:
        """`head` is the answer to the handshake, which goes before all frames.

        `slot` is released when the socket ends; None for a client that is refused.
        """
        self.wire = wire
        self._head = head
        self._transport = detached.transport
        self._ended = detached.ended
        self._reader = reader
        self._connections = connections
        self._turns = connections.turns
        self._connection: Connection | None = None
        self._slot = slot
        self._state = State.OPEN
        self._work: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ping: bytes | None = None
        """The payload of the newest ping that was not answered yet."""
        self._is_at_end = False
        """Whether the client has closed its side: nothing more will be received."""
        self._is_held = False
        """Whether reading from the socket is paused."""
        self._last_size = 0
        """Bytes that came last."""
        self._is_due = False
        """Whether `_read` will be called in a later turn of the event loop."""
        self._room = MAX_SURPLUS
        """Bytes that the client may send after the node's close frame."""
        self._drops = DROPPED_FRAMES
        """Frames that the client may send after it."""
        self.is_behind = self._transport.get_write_buffer_size() > 0
        """Whether bytes are unsent."""
        connections.add_socket(self)
        reader.feed(detached.received)
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._transport.set_protocol(self)

    async def open(
        self, connection: Connection, channels: Iterable[tuple[Subscribe, Allowed]]
    ) -> None:
        """Answer the handshake, join the channels, and serve the client from then on.

        Where joining need not wait, all of the answers share one write.
        """
        self._connection = connection
        connection.write(self._take_head())
        work = connection.open(channels)
        if work is not None:
            self._work = asyncio.current_task()
            try:
                await work
            finally:
                self._worked(None)
        elif not self._is_due:
            self._go_on()

    def refuse(self, failed: Failed, closing: Closing) -> None:
        """Answer the handshake, send an error, and close.

        Where the close is announced, that is the error.
        """
        if not self.wire.protocol.announces_close:
            self.write(self._take_head() + (self.wire.reply(failed) or b""))
        self.close(closing)

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    # Sink

    def write(self, data: bytes) -> None:
        """Write whole frames; nothing follows a close frame (RFC 6455, 5.5.1)."""
        if self._state is _OPEN and not self._transport.is_closing():
            self._transport.write(data)

    def unsent(self) -> int:
        """Bytes written that the system has not accepted yet."""
        return self._transport.get_write_buffer_size() if self.is_behind else 0

    def abort(self) -> None:
        """End the socket at once."""
        self._transport.abort()

    # Peer

    def ping(self) -> None:
        """Ask for a sign of life.

        Some clients of a protocol with a heartbeat of its own answer only the socket's.
        """
        self.write(self.wire.heartbeat() + PING_FRAME)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when it is closed."""
        return fileno_of(self._transport)

    def close(self, closing: Closing) -> None:
        """Begin to close: send a close frame, and wait for the client's, for some time."""
        self.write(self._take_head())  # it is closed before it was opened, if there is one
        if self.wire.protocol.announces_close:
            self.write(self.wire.reply(closing) or b"")
        self.write(close_frame(closing.code.to_bytes(2) + close_reason(closing.text)))
        if self._state is State.OPEN:
            self._state = State.CLOSING
            self._wait(CLOSE_TIMEOUT_S, self._give_up)
            self._schedule()

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Data has come from the client."""
        if self._state is State.ENDING:
            return
        if self._state is State.CLOSING:
            self._room -= len(data)
            if self._room < 0:
                self._give_up()
                return
        self._last_size = len(data)
        self._turns.count_read(len(data))  # uvloop reads on and on until reading is paused
        self._reader.feed(data)
        if self._is_busy:
            self._hold()
        else:
            self._go_on()

    def eof_received(self) -> bool:
        """The client has closed its side; what it sent before is handled first."""
        self._is_at_end = True
        if self._state is State.ENDING:
            return False
        if not self._is_busy:
            self._go_on()
        return self._transport.can_write_eof()  # with TLS, both sides end together

    def connection_lost(self, _: Exception | None) -> None:
        """The socket has ended."""
        self._is_at_end = True
        self._wait(0.0, None)
        self._end_socket()
        if self._connection is None and self._state is State.OPEN:  # opening it has failed
            self._state = State.ENDING
        if not self._is_busy:
            self._go_on()

    def _end_socket(self, _: object = None) -> None:
        self._ended()
        self._connections.remove_socket(self)
        if self._slot is not None:
            self._slot.release()

    def pause_writing(self) -> None:
        """Bytes are unsent."""
        self.is_behind = True

    def resume_writing(self) -> None:
        """All bytes are sent."""
        self.is_behind = False

    # Reading

    @property
    def _is_busy(self) -> bool:
        """Whether `_read` is called later, when it may go on."""
        return self._is_due or (self._work is not None and self._state is State.OPEN)

    def _read(self) -> None:
        """Handle received data; only a part of it if there is much."""
        self._is_due = False
        if self._state is not State.OPEN:
            self._let_go()
            if self._state is State.ENDING:
                return
        try:
            may_be_more = self._serve() if self._state is State.OPEN else self._look_for_close()
        except Fault as fault:
            self._fail(fault)
            return
        if may_be_more:
            if not self._is_busy:
                self._hold()
                self._schedule()
        elif self._is_at_end:
            self._finish()
        else:
            self._release()

    def _serve(self) -> bool:
        """Handle frames in their order; False if all that were received are handled."""
        connection, reader = self._connection, self._reader
        assert connection is not None, "a client is served once it is connected"
        decode, clock = self.wire.protocol.decode, self._turns.clock
        end = clock() + SHARE_S
        room, frames = FRAMES_PER_TURN, 0
        while room > 0:
            frame = reader.read()
            if frame is None:
                self._count(connection, frames)
                self._answer_ping(connection)
                return False
            opcode, payload, text = frame
            if opcode in _MESSAGES:
                self._count(connection, frames)
                if self._ping is not None:
                    self._answer_ping(connection)
                frames, room = 0, room - MESSAGE
                work = connection.receive(decode(text if opcode == TEXT else payload), len(payload))
                if work is not None and self._start(work):
                    return True
                if connection.is_closing or clock() >= end:
                    return True
            elif opcode == CLOSE:
                self._count(connection, frames)
                self._answer_ping(connection)
                self._answer_close(connection, payload)
                return False
            else:
                frames, room = frames + 1, room - 1
                if opcode == PING:
                    self._ping = payload
        self._count(connection, frames)
        return True

    def _look_for_close(self) -> bool:
        """Read on until the client's close frame, and drop the rest; False if nothing is left."""
        dropped = 0
        while dropped < FRAMES_PER_TURN and (frame := self._reader.read(drop=True)) is not None:
            if frame.opcode == CLOSE:
                self._finish()
                return False
            dropped += 1
        self._drops -= dropped
        if self._drops <= 0:
            self._give_up()
            return False
        return dropped == FRAMES_PER_TURN

    def _count(self, connection: Connection, frames: int) -> None:
        """Count frames that are not messages; a ping beyond the pace is not answered."""
        if frames and not connection.count(frames):
            self._ping = None

    def _answer_ping(self, connection: Connection) -> None:
        """Send one pong for all pings since the last message of a read (RFC 6455, 5.5.3)."""
        if self._ping is not None:
            connection.write(pong_frame(self._ping))
            self._ping = None

    def _go_on(self) -> None:
        """Handle received data at once, or in a later turn if others use this one."""
        if self._turns.has_time:
            self._turns.serve(self._read)
        else:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._turns.wait(self._read)

    def _hold(self) -> None:
        if not (self._is_held or self._is_at_end or self._transport.is_closing()):
            self._is_held = True
            self._transport.pause_reading()

    def _release(self) -> None:
        if self._is_held and not (self._is_at_end or self._transport.is_closing()):
            self._is_held = False
            self._turns.count_read(self._last_size)  # a client that sends much goes on to do so
            self._transport.resume_reading()

    # Commands that have to wait

    def _start(self, work: Work) -> bool:
        """Begin the rest of a command; False if it waited for nothing, and so is done."""
        begun = self._connections.commands.start(work, "a command of a client", at_once=True)
        if begun is None:  # the node has closed
            self.abort()
        elif begun.done():
            return False
        else:
            self._work = begun
            begun.add_done_callback(self._worked)
        return True

    def _worked(self, _: object) -> None:
        self._work = None
        if not self._is_due:
            self._go_on()

    # The end

    def _answer_close(self, connection: Connection, code: bytes) -> None:
        connection.ended(None)
        self.write(close_frame(code))
        self._finish()

    def _fail(self, fault: Fault) -> None:
        """Fail the connection (RFC 6455, 7.1.7): nothing more of the client is read."""
        if self._connection is not None and self._state is State.OPEN:
            self._answer_ping(self._connection)
            self._connection.ended(fault.code)
        self.write(close_frame(fault.code.to_bytes(2) + close_reason(str(fault))))
        self._give_up()

    def _give_up(self) -> None:
        """End without an answer to the close frame: the client has exceeded its time or bytes."""
        self._finish(is_answered=False)

    def _finish(self, *, is_answered: bool = True) -> None:
        """End the socket when the client does, or after some time.

        `is_answered`: the client has closed, too.
        """
        if self._connection is not None:
            self._connection.ended(None)
        self._state = State.ENDING
        self._wait(0.0, None)
        transport = self._transport
        if not transport.is_closing():
            self._release()
            # TLS cannot be closed in one direction only.
            is_whole = is_answered and not (transport.can_write_eof() or self._reader.has_more)
            Linger(
                transport,
                self._turns,
                self._end_socket,
                self._connections.note_surplus,
                room=self._room,
                is_done=self._is_at_end or is_whole,
            )
        self._let_go()

    def _let_go(self) -> None:
        """Remove the connection from the node, once its last command has ended."""
        connection = self._connection
        if connection is not None and self._work is None:
            self._connection = None
            self._connections.remove(connection)

    def _wait(self, seconds: float, then: Callable[[], object] | None) -> None:
        """Call `then` after some time, instead of the previous callback."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if then is None else asyncio.get_running_loop().call_later(seconds, then)
