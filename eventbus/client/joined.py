"""One channel or pattern as the edge has it: joined once, for all subscriptions of the client."""

import asyncio
import enum
import logging
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from eventbus.channels import Pattern
from eventbus.client.cursor import Cursor, Phase
from eventbus.client.frames import ClientMessage, Frame
from eventbus.errors import ClientClosed, ClientError, ClientRefused
from eventbus.messages import json_decoder

__all__ = ["Claim", "Consumer", "JoinedChannel"]

_log = logging.getLogger(__name__)


class Consumer(Protocol):
    """What a subscription offers to its channel."""

    @property
    def has_room(self) -> bool:
        """Whether enough room is free to go on after a slow phase."""

    def has_room_for(self, frame: Frame) -> bool:
        """Whether a message fits."""

    def offer(self, message: ClientMessage) -> None:
        """Take a message."""

    def offer_event(self, frame: Frame) -> None:
        """Take an edge's own event about the channel."""

    def fell_behind(self) -> None:
        """The channel stops reading, because the consumer of this subscription is too slow."""

    def dropped_unstored(self) -> None:
        """A message that no stream stores was dropped, because a consumer is too slow."""

    def end(self, error: ClientError | None) -> None:
        """The channel has ended, and why, unless this side ended it."""


class Claim(enum.Enum):
    """Whether a message is for a channel or pattern that it matches."""

    MINE = enum.auto()
    OTHERS = enum.auto()
    """It is for a later pattern."""
    DONE = enum.auto()
    """It was delivered already, or will be when the channel is resumed."""


class _Position(msgspec.Struct):
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    recovered: bool | None = None


_decode_position: Final = json_decoder(_Position)


class JoinedChannel:
    """Knows the position in the channel, and gives each message to all subscriptions.

    It outlives connections. If the consumer of one subscription is too slow, all wait: the channel
    is left, and resumed from its position when there is room.
    """

    def __init__(self, channel: str, *, history: int = 0) -> None:
        """Raises InvalidPattern."""
        self.channel = channel
        self.pattern = Pattern(channel)
        self.name = f"subscription to {channel}"
        self.cursor = Cursor(history=history, is_pattern=not self.pattern.is_exact)
        self.is_held = False
        """Whether the edge has this subscription, on the current connection."""
        self._consumers: dict[Consumer, None] = {}
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joined.add_done_callback(_retrieve)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(list(self._consumers))

    def __len__(self) -> int:
        return len(self._consumers)

    def add(self, consumer: Consumer) -> None:
        """Give messages to a subscription from now on."""
        self._consumers[consumer] = None

    def discard(self, consumer: Consumer) -> None:
        """Give no more messages to a subscription."""
        self._consumers.pop(consumer, None)

    @property
    def waits_for_room(self) -> bool:
        """Whether it can be joined again, after all slow consumers have made room."""
        return self.cursor.phase is Phase.BEHIND and all(each.has_room for each in self)

    async def joined(self) -> None:
        """Wait for the first answer of the edge. Raises ClientRefused, ClientClosed."""
        await asyncio.shield(self._joined)

    def subscribed(self, frame: Frame) -> bool:
        """Take the edge's answer to the join; False if this side has left in the meantime."""
        start = _decode_position(frame.data)
        self.is_held = True
        if self.cursor.phase is not Phase.ASKED:
            return False
        self.cursor.subscribed(
            start.offset, start.epoch, recovered=start.recovered, mark=start.mark
        )
        if self.cursor.recovered is False:
            self._log_gap()
        if not self._joined.done():
            self._joined.set_result(None)
        self._offer_event(frame)
        return True

    def receive(self, frame: Frame) -> bool:
        """Take a frame of the channel; False if the channel has to be left, because it is full."""
        if frame.is_system:
            if frame.event == "eb:subscribed":
                self._note_gap(_decode_position(frame.data))
            self._offer_event(frame)
            return True
        has_left = False
        if self.cursor.phase is Phase.ACTIVE:
            slow = [each for each in self if not each.has_room_for(frame)]
            if slow:
                has_left = True
                self.cursor.fall_behind()
            for each in slow:
                each.fell_behind()
        if self.cursor.phase is Phase.BEHIND:
            if not self.cursor.compares(frame.offset):
                for each in self:
                    each.dropped_unstored()
            return not has_left
        if self.cursor.take(frame.offset, frame.epoch, frame.mark):
            message = ClientMessage.of(frame, after_gap=self.cursor.take_gap())
            for each in self:
                each.offer(message)
        return True

    def judge(self, frame: Frame) -> "Claim":
        """Whether a message that matches is for this channel or pattern.

        See docs/wire-protocol.md, "One message, several subscriptions".
        """
        offset, epoch, cursor = frame.offset, frame.epoch, self.cursor
        if offset is None or not cursor.compares(offset):
            return Claim.MINE if self.is_held else Claim.OTHERS
        if not cursor.covers(offset, epoch):
            return Claim.OTHERS
        if cursor.has(offset, epoch):
            return Claim.DONE
        if self.is_held:
            return Claim.MINE
        return Claim.DONE if self.pattern.is_exact else Claim.OTHERS

    def left(self) -> None:
        """The edge no longer has this subscription."""
        self.is_held = False

    def lost(self) -> None:
        """The connection was lost."""
        self.left()
        self.cursor.lost()

    def end(self, error: ClientError | None) -> None:
        """End it and its subscriptions; `error` is the reason, unless this side ended it."""
        if self.cursor.phase is Phase.ENDED:
            return
        self.cursor.end()
        if not self._joined.done():
            self._joined.set_exception(
                error or ClientClosed(f"the {self.name} was ended", close_code=1000)
            )
        for each in self:
            each.end(error)

    def refuse(self, error: ClientRefused) -> None:
        """The edge refuses the subscription, or has ended it."""
        if self._joined.done():
            _log.warning("the %s has ended: %s", self.name, error)
        self.end(error)

    def _offer_event(self, frame: Frame) -> None:
        for each in self:
            each.offer_event(frame)

    def _note_gap(self, start: _Position) -> None:
        # A channel that is behind asks again from its own position.
        if start.recovered is False and self.cursor.phase is Phase.ACTIVE:
            self.cursor.missed(start.offset, start.epoch, start.mark)
            self._log_gap()

    def _log_gap(self) -> None:
        _log.warning("the %s has lost messages that cannot be recovered", self.name)


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Mark the exception as seen: callers of `joined` raise it, and there may be none."""
    if not future.cancelled():
        future.exception()
