"""The node's subscriptions on the bus: one exact subscription per channel in use."""

import asyncio
import functools
import logging
from collections.abc import Callable

from eventbus.attempts import SharedAttempt
from eventbus.channels import Subjects
from eventbus.drivers import (
    Delivery,
    Driver,
    FollowingSubscription,
    GapSubscription,
    MarkedPosition,
    Position,
    Subscription,
)
from eventbus.errors import DriverError
from eventbus.tasks import Tasks

__all__ = ["Interest"]


_log = logging.getLogger(__name__)

OnDelivery = Callable[[str, Delivery], None]
OnGap = Callable[[str, Position], None]


class _Channel:
    """One channel's subscription, and the number of its holders."""

    __slots__ = (
        "attempt", "began", "holders", "is_expiring", "left_at", "mark", "position", "subscription",
    )  # fmt: skip

    def __init__(self) -> None:
        self.holders = 0
        self.left_at = 0.0
        self.attempt = SharedAttempt()
        """To subscribe or unsubscribe."""
        self.subscription: Subscription | None = None
        self.began: Position | None = None
        """The last known position of the subscription itself, which only a driver moves."""
        self.position: Position | None = None
        self.mark: str | None = None
        """The mark of the message at the position, once one has arrived."""
        self.is_expiring = False

    @property
    def marked(self) -> Position | None:
        """The position with its mark."""
        if self.position is None or self.mark is None:
            return self.position
        return MarkedPosition(*self.position, self.mark)


class Interest:
    """Subscribes for the first holder of a channel, and unsubscribes some time after the last one.

    The wait saves calls to the bus when a page reloads or a single client reconnects.
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
        """`on_gap` is called before the first delivery after lost messages.

        It gets the position from which the channel continues. Drivers read missed messages again,
        so it is called only if the broker no longer stores them. For filters instead of channels,
        `subject_of` gives the subject of a filter, and `on_filter_gap` gets each filter whose
        messages may have been lost.
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
        """Subscribe to a channel; each success needs one `release`.

        Returns the position after which deliveries continue for callers that act before their next
        await; None if the bus keeps no history. Raises a DriverError.
        """
        if self.acquire_active(channel):
            return self.position(channel)
        entry = self._channels.get(channel)
        if entry is None:
            entry = self._channels[channel] = _Channel()
        entry.holders += 1
        try:
            async with entry.attempt.turn():
                if entry.subscription is None:
                    # The previous subscription may have set them until it ended.
                    entry.position = entry.mark = None
                    await self._subscribe(channel, entry)
        except BaseException:
            self.release(channel)
            raise
        return entry.marked

    def acquire_active(self, channel: str) -> bool:
        """The same for a channel that is subscribed to; False for any other."""
        entry = self._channels.get(channel)
        if entry is None or entry.subscription is None or entry.attempt.is_taken:
            return False
        entry.holders += 1
        return True

    async def _subscribe(self, channel: str, entry: _Channel) -> None:
        on_delivery = self._on_delivery

        def receive(delivery: Delivery) -> None:
            _, _, _, position, previous, time = delivery
            if position is not None:
                last = entry.position
                if last is not None and self._on_gap and _is_gap(position, previous, last):
                    self._on_gap(channel, Position(position.offset - 1, position.epoch))
                entry.position, entry.mark = position, time
            on_delivery(channel, delivery)

        subscription = await self._driver.subscribe(self._subject_of(channel), receive)
        if isinstance(subscription, GapSubscription):
            if self._on_filter_gap is not None:
                subscription.on_gap = functools.partial(
                    self._report_filter_gap, channel, entry, subscription
                )
            else:
                subscription.on_gap = functools.partial(
                    self._report_new_history, channel, entry, subscription
                )
        entry.subscription, entry.began = subscription, subscription.position
        # Messages that came while subscribing have moved the position already.
        entry.position = entry.position or subscription.position

    def _report_new_history(
        self, channel: str, entry: _Channel, subscription: Subscription
    ) -> None:
        """Report a replaced history at once: its next message may come much later."""
        position, before = subscription.position, entry.position
        if position == entry.began:
            return  # the driver does not know the position in the new history yet
        entry.began = position
        if position is not None and before is not None and position.epoch != before.epoch:
            if position.offset != before.offset:
                entry.mark = None
            entry.position = position
            if self._on_gap is not None:
                self._on_gap(channel, position)

    def _report_filter_gap(self, filter_: str, entry: _Channel, subscription: Subscription) -> None:
        position, before = subscription.position, entry.position
        if position is not None and before is not None and position.epoch != before.epoch:
            entry.position, entry.mark = position, None
        if self._on_filter_gap is not None:
            self._on_filter_gap(filter_)

    def position(self, channel: str) -> Position | None:
        """The position of a subscribed channel; None if the bus keeps no history."""
        entry = self._channels.get(channel)
        return entry.marked if entry else None

    def has_nothing_after(self, channel: str, position: Position) -> bool:
        """Whether a subscribed channel certainly had no message after a position."""
        entry = self._channels.get(channel)
        subscription: object = None if entry is None else entry.subscription
        if not isinstance(subscription, FollowingSubscription):
            return False
        return subscription.has_nothing_after(position)

    def release(self, channel: str) -> None:
        """Undo one `acquire`; after `aclose` there is nothing to do."""
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
        async with entry.attempt.alone():
            entry.is_expiring = False
            if entry.holders:
                return
            subscription, entry.subscription = entry.subscription, None
            entry.position = entry.mark = None
            try:
                if subscription is not None:
                    await self._close(channel, subscription)
            finally:
                # New holders wait for their turn, and then subscribe again.
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


def _is_gap(position: Position, previous: int | None, last: Position) -> bool:
    """Whether messages were stored since the last delivery, at `last`, and not delivered."""
    return position.epoch != last.epoch or (previous is not None and previous > last.offset)
