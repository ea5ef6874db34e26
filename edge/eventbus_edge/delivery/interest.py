"""What this node listens to on the bus: one exact subscription for each channel in use."""

import asyncio
import functools
import logging
from collections.abc import Callable

from eventbus.channels import Subjects
from eventbus.drivers.base import (
    Delivery,
    Driver,
    GapSubscription,
    Position,
    Subscription,
)
from eventbus.drivers.marks import (
    FollowingSubscription,
    MarkedPosition,
)
from eventbus.errors import DriverError
from eventbus.tasks import Tasks

__all__ = ["Interest"]


_log = logging.getLogger(__name__)

OnDelivery = Callable[[str, Delivery], None]
OnGap = Callable[[str, Position], None]


class _Channel:
    """One channel's subscription, and how many hold it."""

    __slots__ = ("holders", "is_expiring", "left_at", "lock", "mark", "position", "subscription")

    def __init__(self) -> None:
        self.holders = 0
        self.left_at = 0.0
        self.lock = asyncio.Lock()
        self.subscription: Subscription | None = None
        self.position: Position | None = None
        self.mark: str | None = None
        """That of the message at the position, where one has come."""
        self.is_expiring = False

    @property
    def marked(self) -> Position | None:
        """The position with its mark."""
        if self.position is None or self.mark is None:
            return self.position
        return MarkedPosition(*self.position, self.mark)


class Interest:
    """The first holder of a channel subscribes; some time after the last one has left, it ends.

    The wait spares the bus when a page reloads, or a lone client reconnects.
    """

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        on_delivery: OnDelivery,
        linger_s: float,
        *,
        on_gap: OnGap | None = None,
        on_filter_gap: Callable[[str], None] | None = None,
        subject_of: Callable[[str], str] | None = None,
    ) -> None:
        """`on_gap` is called before a delivery that comes after messages that were lost.

        It gets the position from which the channel goes on. Drivers read again what they missed:
        it is called where the broker does not have that any more. `subject_of` gives the subject
        of what is held, where that is no channel's name but a filter; and `on_filter_gap` is
        called with the filter where messages of its channels may have been lost.
        """
        self._driver = driver
        self._subject_of = subject_of or subjects.live
        self._on_delivery = on_delivery
        self._on_gap = on_gap
        self._on_filter_gap = on_filter_gap
        self._linger_s = linger_s
        self._channels: dict[str, _Channel] = {}
        self._tasks = Tasks()

    def __len__(self) -> int:
        return len(self._channels)

    async def acquire(self, channel: str) -> Position | None:
        """Hold a channel. Each success is ended by one `release`.

        Returns the position from which deliveries go on for whoever listens from this very moment
        (before the next await), None where the bus keeps no history. Raises a DriverError.
        """
        entry = self._channels.get(channel)
        if entry is None:
            entry = self._channels[channel] = _Channel()
        entry.holders += 1
        try:
            async with entry.lock:
                if entry.subscription is None:
                    entry.position = entry.mark = (
                        None  # the one before may have moved it to its very end
                    )
                    await self._subscribe(channel, entry)
        except BaseException:
            self.release(channel)
            raise
        return entry.marked

    async def _subscribe(self, channel: str, entry: _Channel) -> None:
        def receive(delivery: Delivery) -> None:
            position = delivery.position
            if position is not None:
                if self._on_gap and _is_gap(delivery, position, entry.position):
                    self._on_gap(channel, Position(position.offset - 1, position.epoch))
                entry.position, entry.mark = position, delivery.time
            self._on_delivery(channel, delivery)

        subscription = await self._driver.subscribe(self._subject_of(channel), receive)
        if isinstance(subscription, GapSubscription):
            if self._on_filter_gap is not None:
                subscription.on_gap = functools.partial(self._on_filter_gap, channel)
            else:
                subscription.on_gap = functools.partial(
                    self._begin_again, channel, entry, subscription
                )
        entry.subscription = subscription
        # Messages that came while the subscription was being made have moved the position already.
        entry.position = entry.position or subscription.position

    def _begin_again(self, channel: str, entry: _Channel, subscription: Subscription) -> None:
        """Report a history that was replaced, which may be long before its next message."""
        position, before = subscription.position, entry.position
        if position is not None and before is not None and position.epoch != before.epoch:
            entry.position = position
            if self._on_gap is not None:
                self._on_gap(channel, position)

    def position(self, channel: str) -> Position | None:
        """Where a held channel stands; None where the bus keeps no history."""
        entry = self._channels.get(channel)
        return entry.marked if entry else None

    def has_nothing_after(self, channel: str, position: Position) -> bool:
        """Whether it is certain that a held channel has had no message after a position."""
        entry = self._channels.get(channel)
        subscription: object = None if entry is None else entry.subscription
        if not isinstance(subscription, FollowingSubscription):
            return False
        return subscription.has_nothing_after(position)

    def release(self, channel: str) -> None:
        """Hold a channel no longer; after `aclose` there is nothing to do."""
        entry = self._channels.get(channel)
        if entry is None:
            return
        entry.holders -= 1
        entry.left_at = asyncio.get_running_loop().time()
        if entry.holders == 0 and not entry.is_expiring:
            entry.is_expiring = True
            self._tasks.start(self._expire(channel, entry), f"unsubscribing from {channel}")

    async def _expire(self, channel: str, entry: _Channel) -> None:
        now = asyncio.get_running_loop().time
        while (wait := entry.left_at + self._linger_s - now()) > 0:  # noqa: ASYNC110 - no poll
            await asyncio.sleep(wait)
        async with entry.lock:
            entry.is_expiring = False
            if entry.holders:
                return
            subscription, entry.subscription = entry.subscription, None
            entry.position = entry.mark = None
            try:
                if subscription is not None:
                    await self._close(channel, subscription)
            finally:
                # Somebody may hold the channel by now: they wait for the lock, and subscribe anew.
                if entry.holders == 0:
                    self._channels.pop(channel, None)

    async def _close(self, channel: str, subscription: Subscription) -> None:
        try:
            await subscription.aclose()
        except DriverError as exc:
            _log.warning("could not unsubscribe from %s: %s", channel, exc)

    async def aclose(self) -> None:
        """End all subscriptions, held or not."""
        channels, self._channels = self._channels, {}
        await self._tasks.aclose()
        for channel, entry in channels.items():
            if entry.subscription is not None:
                await self._close(channel, entry.subscription)


def _is_gap(delivery: Delivery, position: Position, last: Position | None) -> bool:
    """Whether messages that were stored between the last delivery and this one did not come."""
    if last is None:
        return False
    if position.epoch != last.epoch:
        return True
    return delivery.previous is not None and delivery.previous > last.offset
