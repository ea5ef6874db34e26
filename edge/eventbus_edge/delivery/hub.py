"""Fan-out: the subscribers of each channel, and one encoding of a message for all of them."""

import sys
from collections.abc import (
    Callable,
    Collection,
    Iterable,
)
from typing import Final

from eventbus.drivers.base import Position
from eventbus_edge.delivery.outbox import (
    Outbox,
    State,
    Unsent,
)
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    Reply,
    Subscribed,
    WireFormat,
)

__all__ = ["Backlog", "Hub"]


_NOBODY: Final[dict[str, Outbox]] = {}


class Backlog:
    """The live messages of a channel while a client reads its history; limited in bytes."""

    def __init__(self, channel: str, limit: int) -> None:
        self.channel = channel
        self.messages: list[ChannelMessage | Subscribed] = []
        """With notices of gaps between them."""
        self.overflowed = False
        self._room = limit

    def add(self, message: ChannelMessage) -> None:
        """Keep a message; beyond the limit all are dropped, and `overflowed` is set."""
        self._room -= len(message.body)
        if self._room < 0:
            self.overflowed = True
            self.messages.clear()
        if not self.overflowed:
            self.messages.append(message)

    def note_gap(self, gap: Subscribed) -> None:
        """Keep the notice that messages before the next one are lost for good."""
        if not self.overflowed:
            self.messages.append(gap)


class Hub:
    """Channels to outboxes. Pure: it arranges its flush through `schedule`.

    `schedule` gets `flush` once per loop turn in which something was pushed. `on_too_slow` gets
    each outbox that exceeded its limit, after the fan-out. `on_written` gets the number of bytes
    that a flush wrote to all. `on_use` gets each channel with True when its first subscriber is
    added, and with False when the last one is removed. `unsent` limits the unsent bytes of all.
    """

    def __init__(
        self,
        schedule: Callable[[Callable[[], None]], object],
        on_too_slow: Callable[[Outbox], None],
        on_written: Callable[[int], None] = lambda _: None,
        *,
        unsent: Unsent | None = None,
        on_use: Callable[[str, bool], None] = lambda _channel, _is_heard: None,
    ) -> None:
        self.unsent = unsent or Unsent(sys.maxsize)
        self._schedule = schedule
        self._on_too_slow = on_too_slow
        self._on_written = on_written
        self._on_use = on_use
        self._channels: dict[str, dict[str, Outbox]] = {}
        self._dirty: list[Outbox] = []
        self._backlogs: dict[str, list[Backlog]] = {}
        self._ahead: dict[str, dict[str, Position]] = {}

    def add(self, channel: str, outbox: Outbox, *, ahead: Position | None = None) -> None:
        """Subscribe a connection to a channel. Does nothing the second time.

        A history may contain messages that the bus delivers later: up to `ahead`, the connection
        has them already.
        """
        if ahead is not None:
            self._ahead.setdefault(channel, {})[outbox.connection_id] = ahead
        outboxes = self._channels.get(channel)
        if outboxes is None:
            outboxes = self._channels[channel] = {}
            self._on_use(channel, True)
        outboxes[outbox.connection_id] = outbox

    def remove(self, channel: str, connection_id: str) -> None:
        """Unsubscribe a connection; a channel without subscribers is dropped."""
        if (ahead := self._ahead.get(channel)) is not None:
            ahead.pop(connection_id, None)
            if not ahead:
                del self._ahead[channel]
        outboxes = self._channels.get(channel)
        if outboxes is not None:
            outboxes.pop(connection_id, None)
            if not outboxes:
                del self._channels[channel]
                self._on_use(channel, False)

    def hold(self, channel: str, limit: int) -> Backlog:
        """Buffer the channel's messages until `release`, for a client that catches up."""
        backlog = Backlog(channel, limit)
        self._backlogs.setdefault(channel, []).append(backlog)
        return backlog

    def release(self, backlog: Backlog) -> None:
        """Stop buffering a channel's messages."""
        backlogs = self._backlogs[backlog.channel]
        backlogs.remove(backlog)
        if not backlogs:
            del self._backlogs[backlog.channel]

    def hears(self, channel: str, connection_id: str) -> bool:
        """Whether a connection is subscribed to a channel."""
        return connection_id in self._channels.get(channel, _NOBODY)

    def count(self, channel: str) -> int:
        """How many connections are subscribed to a channel."""
        return len(self._channels.get(channel, _NOBODY))

    def subscribers(self, channel: str) -> Iterable[Outbox]:
        """The outboxes of a channel's subscribers at this moment."""
        return tuple(self._channels.get(channel, _NOBODY).values())

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def channels(self) -> Iterable[str]:
        """The channels that have subscribers."""
        return self._channels.keys()

    def deliver(self, message: ChannelMessage) -> int:
        """Push a message to all subscribers of its channel; returns their number."""
        for backlog in self._backlogs.get(message.channel, ()):
            backlog.add(message)
        outboxes = self._channels.get(message.channel)
        if not outboxes:
            return 0
        encoded: dict[WireFormat, bytes] = {}
        sent = 0
        exclude = message.exclude
        have = self._have(message) if self._ahead else ()
        for connection_id, outbox in outboxes.items():
            if connection_id == exclude or (have and connection_id in have):
                continue
            frame = encoded.get(outbox.format)
            if frame is None:
                frame = encoded[outbox.format] = outbox.format.message(message)
            self.push(outbox, frame)
            sent += 1
        return sent

    def _have(self, message: ChannelMessage) -> Collection[str]:
        """The connections that have the message from the history.

        Those that have no later one are removed from `_ahead`.
        """
        ahead, position = self._ahead.get(message.channel), message.position
        if ahead is None or position is None:
            return ()
        have = {
            connection_id: at
            for connection_id, at in ahead.items()
            if at.epoch == position.epoch and at.offset >= position.offset
        }
        later = {each: at for each, at in have.items() if at.offset > position.offset}
        if later:
            self._ahead[message.channel] = later
        else:
            del self._ahead[message.channel]
        return have.keys()

    def announce(self, channel: str, reply: Reply, *, exclude: str | None = None) -> None:
        """Push a system event to all subscribers of a channel, in order with its messages."""
        encoded: dict[WireFormat, bytes] = {}
        for connection_id, outbox in self._channels.get(channel, _NOBODY).items():
            if connection_id != exclude:
                frame = encoded.get(outbox.format)
                if frame is None:
                    frame = encoded[outbox.format] = outbox.format.reply(reply)
                self.push(outbox, frame)

    def announce_gap(self, gap: Subscribed) -> None:
        """Notify the subscribers of a channel, and clients that catch up, of lost messages."""
        for backlog in self._backlogs.get(gap.channel, ()):
            backlog.note_gap(gap)
        self.announce(gap.channel, gap)

    def push(self, outbox: Outbox, frame: bytes) -> None:
        """Push one frame to one connection, in order with its messages."""
        if outbox.push(frame):
            if not self._dirty:
                self._schedule(self.flush)
            self._dirty.append(outbox)

    def flush(self) -> None:
        """Write the frames of this loop turn."""
        dirty, self._dirty = self._dirty, []
        written = 0
        for outbox in dirty:
            outbox.flush()
            written += outbox.written
            outbox.written = 0
            self.unsent.note(outbox)
            if outbox.state is State.TOO_SLOW:
                outbox.close()
                self._on_too_slow(outbox)
        self._on_written(written)
        self.unsent.relieve()
