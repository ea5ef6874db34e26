"""Fan-out: which connections hear a channel, and one encoding of each message for all of them."""

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
from eventbus_edge.delivery.wire import Wire
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    PresenceChanged,
    Reply,
    Subscribed,
)

__all__ = ["Backlog", "Hub"]


_NOBODY: Final[dict[str, Outbox]] = {}
_NOTHING: Final = b""


class Backlog:
    """The messages of a channel that pass while somebody reads its history; bounded in bytes."""

    def __init__(self, channel: str, limit: int) -> None:
        self.channel = channel
        self.messages: list[ChannelMessage | PresenceChanged | Subscribed] = []
        """With the news of gaps between them."""
        self.overflowed = False
        self._room = limit

    def add(self, message: ChannelMessage | PresenceChanged) -> None:
        """Keep a message; beyond the limit none, and `overflowed` says so."""
        self._room -= message.size
        if self._room < 0:
            self.overflowed = True
            self.messages.clear()
        if not self.overflowed:
            self.messages.append(message)

    def note_gap(self, gap: Subscribed) -> None:
        """Keep the news that messages are lost for good before what comes next."""
        if not self.overflowed:
            self.messages.append(gap)


class Hub:
    """Channels to outboxes. Pure: it arranges its flush through the `schedule` that it is given.

    `schedule` gets `flush` once for each loop turn in which something was pushed; `on_too_slow`
    gets each outbox that passed its bound, after the fan-out; `on_written` how many bytes a flush
    has given to all. `unsent` keeps what is unsent to all of them within a bound.
    """

    def __init__(
        self,
        schedule: Callable[[Callable[[], None]], object],
        on_too_slow: Callable[[Outbox], None],
        on_written: Callable[[int], None] = lambda _: None,
        *,
        unsent: Unsent | None = None,
    ) -> None:
        self.unsent = unsent or Unsent(sys.maxsize)
        self._schedule = schedule
        self._on_too_slow = on_too_slow
        self._on_written = on_written
        self._channels: dict[str, dict[str, Outbox]] = {}
        self._dirty: list[Outbox] = []
        self._backlogs: dict[str, list[Backlog]] = {}
        self._ahead: dict[str, dict[str, Position]] = {}
        self.on_use: Callable[[str, bool], None] = lambda _channel, _is_heard: None
        """Gets each channel that begins, or ceases, to be heard by anybody."""

    def add(self, channel: str, outbox: Outbox, *, ahead: Position | None = None) -> None:
        """Let a connection hear a channel; twice is as once.

        A history may be read before the bus has brought its last messages: `ahead` is up to where
        the connection has them already.
        """
        if ahead is not None:
            self._ahead.setdefault(channel, {})[outbox.connection_id] = ahead
        outboxes = self._channels.get(channel)
        if outboxes is None:
            outboxes = self._channels[channel] = {}
            self.on_use(channel, True)
        outboxes[outbox.connection_id] = outbox

    def remove(self, channel: str, connection_id: str) -> None:
        """End that; a channel that nobody hears is forgotten."""
        if (ahead := self._ahead.get(channel)) is not None:
            ahead.pop(connection_id, None)
            if not ahead:
                del self._ahead[channel]
        outboxes = self._channels.get(channel)
        if outboxes is not None:
            outboxes.pop(connection_id, None)
            if not outboxes:
                del self._channels[channel]
                self.on_use(channel, False)

    def hold(self, channel: str, limit: int) -> Backlog:
        """Keep the channel's messages from now on, until `release`, for who catches up."""
        backlog = Backlog(channel, limit)
        self._backlogs.setdefault(channel, []).append(backlog)
        return backlog

    def release(self, backlog: Backlog) -> None:
        """Keep no more of a channel's messages."""
        backlogs = self._backlogs[backlog.channel]
        backlogs.remove(backlog)
        if not backlogs:
            del self._backlogs[backlog.channel]

    def hears(self, channel: str, connection_id: str) -> bool:
        """Whether a connection hears a channel."""
        return connection_id in self._channels.get(channel, _NOBODY)

    def count(self, channel: str) -> int:
        """How many connections hear a channel."""
        return len(self._channels.get(channel, _NOBODY))

    def listeners(self, channel: str) -> Iterable[Outbox]:
        """Those that hear a channel, as they are now."""
        return tuple(self._channels.get(channel, _NOBODY).values())

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def channels(self) -> Iterable[str]:
        """The channels that somebody hears."""
        return self._channels.keys()

    def deliver(self, message: ChannelMessage | PresenceChanged) -> int:
        """Push a message to all that hear its channel; returns how many got it."""
        for backlog in self._backlogs.get(message.channel, ()):
            backlog.add(message)
        outboxes = self._channels.get(message.channel)
        if not outboxes:
            return 0
        to: Iterable[Outbox] = outboxes.values()
        if self._ahead or message.exclude is not None:
            to = _without(outboxes, message.exclude, self._have(message))
        return self.fan_out(to, lambda wire: wire.message(message))

    def fan_out(self, to: Iterable[Outbox], encode: Callable[[Wire], bytes | None]) -> int:
        """Push to each outbox what `encode` makes for its wire; returns how many got something.

        `encode` is called once for each wire. It gives None where there is nothing to send.
        """
        frames: dict[Wire, bytes] = {}
        push = self.push
        sent = 0
        for outbox in to:
            wire = outbox.format
            frame = frames.get(wire)
            if frame is None:
                frame = frames[wire] = encode(wire) or _NOTHING
            if frame:
                push(outbox, frame)
                sent += 1
        return sent

    def _have(self, message: ChannelMessage | PresenceChanged) -> Collection[str]:
        """Those that have the message from the history; who has no later one is forgotten here."""
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
        """Push a system event to all that hear a channel, in order with its messages."""
        outboxes = self._channels.get(channel, _NOBODY)
        self.fan_out(_without(outboxes, exclude), lambda wire: wire.reply(reply))

    def announce_gap(self, gap: Subscribed) -> None:
        """Tell all that hear a channel, and those that catch up, that messages are lost."""
        for backlog in self._backlogs.get(gap.channel, ()):
            backlog.note_gap(gap)
        self.announce(gap.channel, gap)

    def push(self, outbox: Outbox, frame: bytes | None) -> None:
        """Push one frame to one connection, in order with what the hub delivers to it.

        None is nothing: the connection's protocol does not have it.
        """
        if frame is not None and outbox.push(frame):
            if not self._dirty:
                self._schedule(self.flush)
            self._dirty.append(outbox)

    def flush(self) -> None:
        """Write what this turn has gathered."""
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


def _without(
    outboxes: dict[str, Outbox], exclude: str | None, have: Collection[str] = ()
) -> Iterable[Outbox]:
    """All but the excluded connection and those that have the message already."""
    if have or exclude in outboxes:
        return [
            outbox
            for connection_id, outbox in outboxes.items()
            if connection_id != exclude and connection_id not in have
        ]
    return outboxes.values()
