"""The channels of a client: which one a frame is for, and which to join or leave."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from eventbus.attempts import Backoff
from eventbus.client.cursor import Phase
from eventbus.client.frames import Frame
from eventbus.client.joined import Claim, JoinedChannel
from eventbus.client.requests import OnAnswer
from eventbus.errors import ClientDisconnected, ClientRefused
from eventbus.messages import json_decoder

__all__ = ["Ask", "Registry", "names"]

JOINS_AT_ONCE: Final = 8
"""Joins in flight at most: an edge limits the actions of a connection."""
_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 5.0
_TEMPORARY: Final = frozenset({"unavailable", "rate_limited", "token_expired"})
"""Codes of temporary refusals."""

Ask = Callable[[str, dict[str, Any], OnAnswer | None], Awaitable[Frame]]
"""Sends an action and waits for its answer. Raises ClientRefused, ClientDisconnected."""


class _Notice(msgspec.Struct):
    """The fields that are read of an edge's own event about a channel."""

    pattern: str | None = None
    reason: str = "unsubscribed"


_decode_notice: Final = json_decoder(_Notice)


class Registry:
    """Channels and patterns by their names; patterns in the order in which they are joined."""

    def __init__(self) -> None:
        self._channels: dict[str, JoinedChannel] = {}
        self._unsettled: dict[JoinedChannel, None] = {}
        self._has_unsettled = asyncio.Event()

    def __iter__(self) -> Iterator[JoinedChannel]:
        return iter(list(self._channels.values()))

    def get(self, channel: str) -> JoinedChannel | None:
        """A channel or pattern, if it is one of them."""
        return self._channels.get(channel)

    def add(self, channel: JoinedChannel) -> None:
        """Add a channel, and join it as soon as possible."""
        self._channels[channel.channel] = channel
        self.settle(channel)

    def discard(self, channel: JoinedChannel) -> None:
        """Remove a channel."""
        if self._channels.get(channel.channel) is channel:
            del self._channels[channel.channel]

    def clear(self) -> None:
        """Remove all."""
        self._channels.clear()

    def settle(self, channel: JoinedChannel) -> None:
        """Join or leave a channel at the edge, as its phase says."""
        self._unsettled[channel] = None
        self._has_unsettled.set()

    # A connection

    def connected(self) -> None:
        """Join all over a new connection: channels, then patterns in their earlier order.

        So the edge can leave out missed messages of a pattern that a channel brings.
        """
        in_order = sorted(self._channels.values(), key=lambda each: not each.pattern.is_exact)
        self._unsettled = dict.fromkeys(in_order)
        self._has_unsettled.set()

    def lost(self) -> None:
        """The connection was lost."""
        for channel in self:
            channel.lost()

    def forget_positions(self) -> None:
        """Continue with new messages after the next join; the messages in between are lost."""
        for channel in self:
            channel.cursor.forget()

    async def run(self, ask: Ask) -> None:
        """Join and leave channels as needed, a few at a time, until cancelled."""
        backoff = Backoff(_PAUSE_S, _MAX_PAUSE_S)
        while True:
            await self._has_unsettled.wait()
            batch = self._next_batch()
            for channel in batch:
                del self._unsettled[channel]
            if not self._unsettled:
                self._has_unsettled.clear()
            if all(await asyncio.gather(*(self._settle(ask, each) for each in batch))):
                backoff.reset()
                continue
            await asyncio.sleep(backoff.next())

    def _next_batch(self) -> list[JoinedChannel]:
        """Channels first; then one pattern at a time, which keeps their order if one is refused."""
        if exact := [each for each in self._unsettled if each.pattern.is_exact]:
            return exact[:JOINS_AT_ONCE]
        in_order = (each for each in self._channels.values() if each in self._unsettled)
        first = next(in_order, None) or next(iter(self._unsettled), None)
        return [] if first is None else [first]

    async def _settle(self, ask: Ask, channel: JoinedChannel) -> bool:
        """Bring the edge's side of a channel in line with ours; False to try again later."""
        cursor, fields = channel.cursor, names(channel)
        try:
            if channel.is_held and cursor.phase is not Phase.ACTIVE:
                if self._channels.get(channel.channel, channel) is channel:
                    await ask("unsubscribe", fields, None)
                channel.left()
            if cursor.phase is Phase.WAITING:
                fields["data"] = cursor.ask()
                await ask("subscribe", fields, functools.partial(self._joined, channel))
        except ClientRefused as exc:
            if exc.code in _TEMPORARY:
                return self._again(channel)
            self.discard(channel)
            channel.refuse(exc)
        except ClientDisconnected:
            return self._again(channel)
        return True

    def _joined(self, channel: JoinedChannel, frame: Frame) -> None:
        if not channel.subscribed(frame):  # this side has left meanwhile
            self.settle(channel)

    def _again(self, channel: JoinedChannel) -> bool:
        if channel.cursor.phase is Phase.ASKED:
            channel.cursor.wait()
        self.settle(channel)
        return False

    # Incoming frames

    def receive(self, frame: Frame) -> None:
        """Deliver a message to its channel, or else to the first pattern that it is for.

        Raises ValueError for a frame that the edge must not send.
        """
        if (channel := self._channel_of(frame)) is not None:
            self._deliver(channel, frame)

    def _deliver(self, channel: JoinedChannel, frame: Frame) -> None:
        if not channel.receive(frame):  # it has no room
            self.settle(channel)

    def _channel_of(self, frame: Frame) -> JoinedChannel | None:
        name = frame.channel or ""
        exact = self._channels.get(name)
        if exact is not None and (claim := exact.judge(frame)) is not Claim.OTHERS:
            return exact if claim is Claim.MINE else None
        for each in self._channels.values():
            if each.pattern.is_exact or each.pattern.match(name) is None:
                continue
            if (claim := each.judge(frame)) is not Claim.OTHERS:
                return each if claim is Claim.MINE else None
        return None

    def handle_system(self, frame: Frame) -> None:
        """Handle an edge's own event about a channel. Raises ValueError for malformed data."""
        if frame.event == "eb:unsubscribed":
            self._end(frame)
        elif (channel := self._channels.get(_name_in(frame))) is not None:
            self._deliver(channel, frame)

    def _end(self, frame: Frame) -> None:
        notice = _decode_notice(frame.data)
        name = _name_in(frame)
        if (channel := self._channels.pop(name, None)) is not None:
            channel.receive(frame)
            channel.left()
            message = f"the edge has ended the subscription to {name}: {notice.reason}"
            channel.refuse(ClientRefused(message, code=notice.reason, channel=name))


def _name_in(frame: Frame) -> str:
    """The channel or pattern that an edge's own event is about; empty if it names neither."""
    return frame.channel or _decode_notice(frame.data).pattern or ""


def names(channel: JoinedChannel) -> dict[str, Any]:
    """The field of an action that names a channel or pattern."""
    field = "channel" if channel.pattern.is_exact else "pattern"
    return {field: channel.channel}
