"""Fan-out: the subscribers of each channel, and one encoding of a message for all of them.

`Hub.deliver` and `Hub.flush` are the hot path. Per message, they may encode once for each wire, and
append to a list. Per subscriber, they may push once for each run of messages, and write once for
each turn of the event loop. They may not await, log, or allocate for each subscriber.
"""

import sys
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
)
from typing import Final, TypeAlias

from eventbus.drivers import Position
from eventbus_edge.delivery.outbox import (
    Outbox,
    State,
    Unsent,
)
from eventbus_edge.delivery.wire import Wire
from eventbus_edge.protocols import (
    ChannelMessage,
    PresenceChanged,
    Reply,
    Subscribed,
    SubscribedPattern,
)

__all__ = ["Backlog", "Hub", "Passed"]


_NOBODY: Final[dict[str, Outbox]] = {}
_NOTHING: Final = b""
_TOO_SLOW: Final = State.TOO_SLOW  # an attribute of an enumeration takes longer to find
MAX_RUN_BYTES: Final = 64 * 1024
"""A run that has more is pushed before the end of the turn."""


Passed: TypeAlias = ChannelMessage | PresenceChanged | Subscribed | SubscribedPattern
"""What passed while a client caught up: messages, and notices of gaps."""


class Backlog:
    """The live messages of a channel while a client reads its history; limited in bytes.

    Or those of a pattern; `channel` is its filter then.
    """

    def __init__(self, channel: str, limit: int) -> None:
        self.channel = channel
        self.messages: list[Passed] = []
        """With notices of gaps between them."""
        self.overflowed = False
        self._room = limit

    def add(self, message: ChannelMessage | PresenceChanged) -> None:
        """Keep a message; beyond the limit all are dropped, and `overflowed` is set."""
        self._room -= message.size
        if self._room < 0:
            self.overflowed = True
            self.messages.clear()
        if not self.overflowed:
            self.messages.append(message)

    def note_gap(self, gap: Subscribed | SubscribedPattern) -> None:
        """Keep the notice that messages before the next one are lost for good."""
        if not self.overflowed:
            self.messages.append(gap)


class _Subscribers:
    """The subscribers of one channel."""

    __slots__ = ("_groups", "outboxes")

    def __init__(self) -> None:
        self.outboxes: dict[str, Outbox] = {}
        self._groups: list[tuple[Wire, list[Outbox]]] | None = None

    def add(self, outbox: Outbox) -> None:
        """Add a connection; does nothing the second time."""
        self.outboxes[outbox.connection_id] = outbox
        self._groups = None

    def remove(self, connection_id: str) -> None:
        """Remove a connection, if it is one of them."""
        self.outboxes.pop(connection_id, None)
        self._groups = None

    def groups(self) -> list[tuple[Wire, list[Outbox]]]:
        """The outboxes by their wires. They are grouped when the first message follows a change."""
        if self._groups is None:
            self._groups = list(_by_wire(self.outboxes.values()).items())
        return self._groups


class _Run:
    """Messages of one channel that came one after another: their frames are joined once per wire.

    A run ends before its subscribers change, and before anything else is pushed to anyone.
    """

    __slots__ = ("_groups", "size", "subscribers")

    def __init__(self, subscribers: _Subscribers) -> None:
        self.subscribers = subscribers
        self.size = 0
        self._groups: list[tuple[Wire, list[Outbox], list[bytes]]] = [
            (wire, outboxes, []) for wire, outboxes in subscribers.groups()
        ]

    def add(self, message: ChannelMessage | PresenceChanged) -> int:
        """Encode a message for each wire; returns the number of its recipients."""
        clients = 0
        for wire, outboxes, frames in self._groups:
            if frame := wire.message(message):
                frames.append(frame)
                self.size += len(frame)
                clients += len(outboxes)
        return clients

    def joined(self) -> Iterator[tuple[bytes, int, list[Outbox]]]:
        """The joined frames of each wire, their number, and who gets them."""
        for wire, outboxes, frames in self._groups:
            if frames:
                count = len(frames)
                wire.count(count * len(outboxes))
                yield frames[0] if count == 1 else b"".join(frames), count, outboxes


class Hub:
    """Channels to outboxes. Pure: it arranges its flush through `schedule`.

    `schedule` gets `flush` once per loop turn in which something was pushed. `on_too_slow` gets
    each outbox that exceeded its limit, after the fan-out. `on_written` gets the number of bytes
    that a flush wrote to all. `on_use` gets each channel with True when its first subscriber is
    added, and with False when the last one is removed. `on_change` gets each channel whose number
    of subscribers may have changed. `unsent` limits the unsent bytes of all.
    """

    def __init__(
        self,
        schedule: Callable[[Callable[[], None]], object],
        on_too_slow: Callable[[Outbox], None],
        on_written: Callable[[int], None] = lambda _: None,
        *,
        unsent: Unsent | None = None,
        on_use: Callable[[str, bool], None] = lambda _channel, _is_heard: None,
        on_change: Callable[[str], None] = lambda _channel: None,
    ) -> None:
        self.unsent = unsent or Unsent(sys.maxsize)
        self._schedule = schedule
        self._on_too_slow = on_too_slow
        self._on_written = on_written
        self._on_use = on_use
        self._on_change = on_change
        self._channels: dict[str, _Subscribers] = {}
        self._run: _Run | None = None
        self._dirty: list[Outbox] = []
        self._is_scheduled = False
        self._backlogs: dict[str, list[Backlog]] = {}
        self._ahead: dict[str, dict[str, Position]] = {}

    def add(self, channel: str, outbox: Outbox, *, ahead: Position | None = None) -> None:
        """Subscribe a connection to a channel. Does nothing the second time.

        A history may contain messages that the bus delivers later: up to `ahead`, the connection
        has them already.
        """
        if ahead is not None:
            self._ahead.setdefault(channel, {})[outbox.connection_id] = ahead
        self.settle()
        subscribers = self._channels.get(channel)
        if subscribers is None:
            subscribers = self._channels[channel] = _Subscribers()
            self._on_use(channel, True)
        subscribers.add(outbox)
        self._on_change(channel)

    def remove(self, channel: str, connection_id: str) -> None:
        """Unsubscribe a connection; a channel without subscribers is dropped."""
        if (ahead := self._ahead.get(channel)) is not None:
            ahead.pop(connection_id, None)
            if not ahead:
                del self._ahead[channel]
        self.settle()
        subscribers = self._channels.get(channel)
        if subscribers is not None:
            subscribers.remove(connection_id)
            if not subscribers.outboxes:
                del self._channels[channel]
                self._on_use(channel, False)
            self._on_change(channel)

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

    def is_subscribed(self, channel: str, connection_id: str) -> bool:
        """Whether a connection is subscribed to a channel."""
        return connection_id in self._outboxes(channel)

    def count(self, channel: str) -> int:
        """How many connections are subscribed to a channel."""
        return len(self._outboxes(channel))

    def subscribers(self, channel: str) -> Iterable[Outbox]:
        """The outboxes of a channel's subscribers at this moment."""
        return tuple(self._outboxes(channel).values())

    def _outboxes(self, channel: str) -> dict[str, Outbox]:
        subscribers = self._channels.get(channel)
        return _NOBODY if subscribers is None else subscribers.outboxes

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def channels(self) -> Iterable[str]:
        """The channels that have subscribers."""
        return self._channels.keys()

    def deliver(self, message: ChannelMessage | PresenceChanged) -> int:
        """Push a message to all subscribers of its channel; returns their number."""
        if self._backlogs:
            for backlog in self._backlogs.get(message.channel, ()):
                backlog.add(message)
        subscribers = self._channels.get(message.channel)
        if subscribers is None:
            return 0
        if self._ahead or message.exclude is not None:
            to = _without(subscribers.outboxes, message.exclude, self._already_received(message))
            return self.send(message, to)
        if len(subscribers.outboxes) == 1:  # a channel per user or per entity mostly has one
            [outbox] = subscribers.outboxes.values()
            wire = outbox.format
            if not (frame := wire.message(message)):
                return 0
            self.push(outbox, frame)
            wire.count(1)
            return 1
        run = self._run
        if run is None or run.subscribers is not subscribers or run.size > MAX_RUN_BYTES:
            self.settle()
            run = self._run = _Run(subscribers)
            if not self._is_scheduled:
                self._flush_later()
        return run.add(message)

    def send(self, message: ChannelMessage | PresenceChanged, to: Iterable[Outbox]) -> int:
        """Push a message to these connections; returns how many got it."""
        sent = 0
        for wire, outboxes in _by_wire(to).items():
            if frame := wire.message(message):
                for outbox in outboxes:
                    self.push(outbox, frame)
                wire.count(len(outboxes))
                sent += len(outboxes)
        return sent

    def fan_out(self, to: Iterable[Outbox], encode: Callable[[Wire], bytes | None]) -> int:
        """Push to each outbox what `encode` makes for its wire; returns how many got something.

        `encode` is called once for each wire. It returns None if there is nothing to send.
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

    def _already_received(self, message: ChannelMessage | PresenceChanged) -> Collection[str]:
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
        to = _without(self._outboxes(channel), exclude)
        self.fan_out(to, lambda wire: wire.reply(reply))

    def announce_gap(self, gap: Subscribed) -> None:
        """Notify the subscribers of a channel, and clients that are catching up, of lost messages.

        Clients whose history reaches beyond the gap are left out. They miss nothing, and an earlier
        position would make them receive messages again when they resume.
        """
        for backlog in self._backlogs.get(gap.channel, ()):
            backlog.note_gap(gap)
        ahead, position = self._ahead.get(gap.channel, {}), gap.position
        beyond = {
            connection_id
            for connection_id, at in ahead.items()
            if position is not None and at.epoch == position.epoch and at.offset > position.offset
        }
        to = _without(self._outboxes(gap.channel), None, beyond)
        self.fan_out(to, lambda wire: wire.reply(gap))

    def push(self, outbox: Outbox, frame: bytes | None, frames: int = 1) -> None:
        """Push one frame to one connection, in order with its messages.

        None does nothing: the connection's protocol has no such frame. It may be several `frames`,
        joined.
        """
        if frame is not None:
            if self._run is not None:
                self.settle()
            if outbox.push(frame, frames):
                self._dirty.append(outbox)
                if not self._is_scheduled:
                    self._flush_later()

    def settle(self) -> None:
        """Push all messages that were delivered to the outboxes, before one of them is closed."""
        if self._run is not None:
            run, self._run = self._run, None
            for data, count, outboxes in run.joined():
                self._dirty += [outbox for outbox in outboxes if outbox.push(data, count)]

    def _flush_later(self) -> None:
        self._is_scheduled = True
        self._schedule(self.flush)

    def flush(self) -> None:
        """Write the frames of this loop turn."""
        self._is_scheduled = False
        run, self._run = self._run, None
        dirty, self._dirty = self._dirty, []
        unsent, written = self.unsent, 0
        if run is not None:  # mostly nothing else was pushed
            for data, count, outboxes in run.joined():
                rest = [outbox for outbox in outboxes if not outbox.send(data, count)]
                written += len(data) * (len(outboxes) - len(rest))
                dirty += rest
        for outbox in dirty:
            outbox.flush()
            written += outbox.written
            outbox.written = 0
            if outbox.unsent or unsent.total:
                unsent.note(outbox)
            if outbox.state is _TOO_SLOW:
                outbox.close()
                self._on_too_slow(outbox)
        self._on_written(written)
        unsent.relieve()


def _by_wire(outboxes: Iterable[Outbox]) -> dict[Wire, list[Outbox]]:
    groups: dict[Wire, list[Outbox]] = {}
    for outbox in outboxes:
        group = groups.get(outbox.format)
        if group is None:
            group = groups[outbox.format] = []
        group.append(outbox)
    return groups


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
