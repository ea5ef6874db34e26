"""The subscriptions of a client: which one a frame is for, and which to join or leave."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from eventbus.backoff import Backoff
from eventbus.client.cursor import Phase
from eventbus.client.frames import Frame
from eventbus.client.requests import OnAnswer
from eventbus.client.subscription import Subscription
from eventbus.errors import ClientDisconnected, ClientRefused

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
    """The fields that are read of an edge's own event about a subscription."""

    pattern: str | None = None
    reason: str = "unsubscribed"


_decode_notice: Final = msgspec.json.Decoder(_Notice).decode


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
        """Add a subscription, and join its channel as soon as possible."""
        self._subscriptions[subscription.channel] = subscription
        self.settle(subscription)

    def discard(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        if self._subscriptions.get(subscription.channel) is subscription:
            del self._subscriptions[subscription.channel]

    def clear(self) -> None:
        """Remove all."""
        self._subscriptions.clear()

    def settle(self, subscription: Subscription) -> None:
        """Join or leave a channel at the edge, as the subscription's phase says."""
        self._unsettled[subscription] = None
        self._has_unsettled.set()

    # A connection

    def connected(self) -> None:
        """Join all channels over a new connection."""
        self._unsettled = dict.fromkeys(self._subscriptions.values())
        self._has_unsettled.set()

    def lost(self) -> None:
        """The connection was lost."""
        for subscription in self:
            subscription.lost()

    async def run(self, ask: Ask) -> None:
        """Join and leave channels as needed, a few at a time, until cancelled."""
        backoff = Backoff(_PAUSE_S, _MAX_PAUSE_S)
        while True:
            await self._has_unsettled.wait()
            batch = list(self._unsettled)[:JOINS_AT_ONCE]
            for subscription in batch:
                del self._unsettled[subscription]
            if not self._unsettled:
                self._has_unsettled.clear()
            if all(await asyncio.gather(*(self._settle(ask, each) for each in batch))):
                backoff.reset()
                continue
            await asyncio.sleep(backoff.next())

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
            if exc.code in _TEMPORARY:
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
        """Deliver a message to the subscription of its channel, or else of the first pattern.

        The edge chooses in the same way. Raises ValueError for a frame that the edge must not send.
        """
        if (subscription := self._subscription_of(frame.channel or "")) is not None:
            subscription.receive(frame)

    def _subscription_of(self, channel: str) -> Subscription | None:
        exact = self._subscriptions.get(channel)
        if exact is not None and exact.is_held:
            return exact
        for each in self._subscriptions.values():
            if not each.pattern.is_exact and each.pattern.match(channel) is not None:
                return each
        return None

    def handle_system(self, frame: Frame) -> None:
        """Handle an edge's own event about a channel. Raises ValueError for malformed data."""
        if frame.event == "eb:unsubscribed":
            self._end(frame)
        elif (subscription := self._subscriptions.get(_name_in(frame))) is not None:
            subscription.receive(frame)

    def _end(self, frame: Frame) -> None:
        notice = _decode_notice(frame.data)
        name = _name_in(frame)
        if (subscription := self._subscriptions.pop(name, None)) is not None:
            subscription.receive(frame)
            subscription.is_held = False
            message = f"the edge has ended the subscription to {name}: {notice.reason}"
            subscription.refuse(ClientRefused(message, code=notice.reason, channel=name))


def _name_in(frame: Frame) -> str:
    """The channel or pattern that an edge's own event is about; empty if it names neither."""
    return frame.channel or _decode_notice(frame.data).pattern or ""


def names(subscription: Subscription) -> dict[str, Any]:
    """The field of an action that names a subscription's channel or pattern."""
    field = "channel" if subscription.pattern.is_exact else "pattern"
    return {field: subscription.channel}
