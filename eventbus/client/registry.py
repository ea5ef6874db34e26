"""The subscriptions of a client: whom a frame is for, and what is to be joined or left."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from eventbus.client.cursor import Phase
from eventbus.client.frames import Frame
from eventbus.client.requests import OnAnswer
from eventbus.client.subscription import Subscription
from eventbus.errors import ClientDisconnected, ClientRefused

__all__ = ["Ask", "Registry", "names"]

JOINS_AT_ONCE: Final = 8
"""Joins that may be under way: an edge bounds the actions of a connection."""
_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 5.0
_LATER: Final = frozenset({"unavailable", "rate_limited", "token_expired"})
"""Refusals that pass."""

Ask = Callable[[str, dict[str, Any], OnAnswer | None], Awaitable[Frame]]
"""Sends an action and waits for its answer. Raises ClientRefused, ClientDisconnected."""


class _Told(msgspec.Struct):
    """What an event of the edge's own says of a subscription."""

    pattern: str | None = None
    reason: str = "unsubscribed"


_decode_told: Final = msgspec.json.Decoder(_Told).decode


class Registry:
    """Subscriptions by their channels and patterns."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, Subscription] = {}
        self._unsettled: dict[Subscription, None] = {}
        self._has_unsettled = asyncio.Event()

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._subscriptions.values()))

    def get(self, channel: str) -> Subscription | None:
        """The subscription to a channel or pattern."""
        return self._subscriptions.get(channel)

    def add(self, subscription: Subscription) -> None:
        """Keep a subscription, and join it as soon as can be."""
        self._subscriptions[subscription.channel] = subscription
        self.settle(subscription)

    def discard(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        if self._subscriptions.get(subscription.channel) is subscription:
            del self._subscriptions[subscription.channel]

    def clear(self) -> None:
        """Forget all."""
        self._subscriptions.clear()

    def settle(self, subscription: Subscription) -> None:
        """A subscription is to be joined or left at the edge, as its phase says."""
        self._unsettled[subscription] = None
        self._has_unsettled.set()

    # A connection

    def connected(self) -> None:
        """There is a new connection: all are to be joined."""
        self._unsettled = dict.fromkeys(self._subscriptions.values())
        self._has_unsettled.set()

    def lost(self) -> None:
        """The connection has ended."""
        for subscription in self:
            subscription.lost()

    async def run(self, ask: Ask) -> None:
        """Join and leave what is to be joined and left, a few at a time, until cancelled."""
        pause_s = _PAUSE_S
        while True:
            await self._has_unsettled.wait()
            batch = list(self._unsettled)[:JOINS_AT_ONCE]
            for subscription in batch:
                del self._unsettled[subscription]
            if not self._unsettled:
                self._has_unsettled.clear()
            if all(await asyncio.gather(*(self._settle(ask, each) for each in batch))):
                pause_s = _PAUSE_S
                continue
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _settle(self, ask: Ask, subscription: Subscription) -> bool:
        """Bring the edge's side of a subscription in line with ours; False to try again later."""
        cursor, fields = subscription.cursor, names(subscription)
        try:
            if subscription.is_held and cursor.phase is not Phase.ACTIVE:
                if self._subscriptions.get(subscription.channel, subscription) is subscription:
                    await ask("unsubscribe", fields, None)
                subscription.is_held = False
            if cursor.phase is Phase.WAITING:
                fields["data"] = cursor.ask()
                await ask("subscribe", fields, subscription.subscribed)
        except ClientRefused as exc:
            if exc.code in _LATER:
                return self._again(subscription)
            self.discard(subscription)
            subscription.refuse(exc)
        except ClientDisconnected:
            return self._again(subscription)
        return True

    def _again(self, subscription: Subscription) -> bool:
        if subscription.cursor.phase is Phase.ASKED:
            subscription.cursor.wait()
        self.settle(subscription)
        return False

    # What comes

    def receive(self, frame: Frame) -> None:
        """Hand a message to whom it is for: as the edge has it, its channel or the first pattern.

        A ValueError is the edge's fault.
        """
        if (subscription := self._receiver(frame.channel or "")) is not None:
            subscription.receive(frame)

    def _receiver(self, channel: str) -> Subscription | None:
        exact = self._subscriptions.get(channel)
        if exact is not None and exact.is_held:
            return exact
        for each in self._subscriptions.values():
            if not each.pattern.is_exact and each.pattern.match(channel) is not None:
                return each
        return None

    def hear(self, frame: Frame) -> None:
        """An event of the edge's own about a channel. Raises ValueError for what is none."""
        if frame.event == "eb:unsubscribed":
            self._take_away(frame)
        elif (subscription := self._subscriptions.get(_name_in(frame))) is not None:
            subscription.receive(frame)

    def _take_away(self, frame: Frame) -> None:
        told = _decode_told(frame.data)
        name = _name_in(frame)
        if (subscription := self._subscriptions.pop(name, None)) is not None:
            subscription.receive(frame)
            subscription.is_held = False
            message = f"the edge has ended the subscription to {name}: {told.reason}"
            subscription.refuse(ClientRefused(message, code=told.reason, channel=name))


def _name_in(frame: Frame) -> str:
    """The channel or pattern that an event of the edge's own is about; empty for neither."""
    return frame.channel or _decode_told(frame.data).pattern or ""


def names(subscription: Subscription) -> dict[str, Any]:
    """The fields of an action that name a subscription's channel or pattern."""
    field = "channel" if subscription.pattern.is_exact else "pattern"
    return {field: subscription.channel}
