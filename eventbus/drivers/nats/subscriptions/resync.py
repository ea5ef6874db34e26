"""All subscriptions of a driver, kept in order, complete, and of one stream."""

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import (
    Final,
)

from eventbus.attempts import RateLimitedLog
from eventbus.drivers.marks import (
    nanoseconds,
)
from eventbus.drivers.nats.connection import (
    NatsConnection,
)
from eventbus.drivers.nats.errors import is_denied
from eventbus.drivers.nats.history import (
    ReaderPosition,
    StreamReader,
)
from eventbus.drivers.nats.identity import SeenMessage, StreamState
from eventbus.drivers.nats.stream import EventStream
from eventbus.drivers.nats.subscriptions.repeats import Repeats
from eventbus.drivers.nats.subscriptions.subscription import NatsSubscription
from eventbus.errors import EventBusError
from eventbus.tasks import Tasks

__all__ = ["Subscriptions"]

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_READS: Final = 16
_FILTER_READS: Final = 10_000
"""Messages that are read for a filter after one loss; beyond, live messages matter more."""
_PAUSE_S: Final = 5.0
_RETRY_S: Final = 0.2


class Subscriptions:
    """Keeps the messages of all subscriptions in order, complete, and of one stream.

    After a lost connection, or when a message shows a gap before it, missed messages are read from
    the stream before anything else is delivered.
    """

    def __init__(
        self,
        connection: Callable[[], NatsConnection],
        stream: Callable[[], EventStream],
        reader: Callable[[], StreamReader],
        *,
        confirm_s: float,
    ) -> None:
        """`connection`, `stream` and `reader` return those of an open driver.

        While there are subscriptions, the stream is queried every `confirm_s` seconds.
        """
        self.is_verified = True
        """False from the loss of a connection until the stream is known to be the same."""
        self.repeats = Repeats()
        self.losses = 0
        """How often the connection was lost."""
        self.filled = 0
        """How many missed messages were read from the stream."""
        self.gaps = 0
        """How often messages were missed that the stream may no longer have."""
        self._connection = connection
        self._stream = stream
        self._reader = reader
        self._confirm_s = confirm_s
        self._changes = 0
        """How often the connection was lost, or the stream was replaced."""
        self._all: set[NatsSubscription] = set()
        self._unsynced: set[NatsSubscription] = set()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(_READS)
        self._filling: set[NatsSubscription] = set()
        self._tasks = Tasks()
        self._log = RateLimitedLog(_log)

    def add(self, subscription: NatsSubscription) -> None:
        """Manage a subscription until it leaves."""
        self._all.add(subscription)

    async def leave(self, subscription: NatsSubscription) -> None:
        """Unsubscribe at the server."""
        self._all.discard(subscription)
        self._unsynced.discard(subscription)
        if subscription.at_server is not None:
            await self._connection().unlisten(subscription.at_server)

    def resync(self, subscription: NatsSubscription) -> None:
        """Query the stream, read missed messages, then call `subscription.release`."""
        self._unsynced.add(subscription)
        self._wake.set()

    def on_lost(self) -> None:
        """The connection was lost: verify the stream before delivering more."""
        self.losses += 1
        self._changes += 1
        self.is_verified = False
        self.repeats.on_lost()

    def on_reconnected(self) -> None:
        """Verify the stream on the new connection."""
        self._wake.set()

    def on_new_epoch(self, unchanged: int) -> None:
        """The stream was replaced, or has gone back and is unchanged up to an offset."""
        for subscription in self._all:
            subscription.restart(self._stream().identity.epoch, unchanged)
        self._changes += 1
        self.is_verified = False  # messages since then may have been taken for known ones
        self._wake.set()

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back; nanoseconds of the server's time."""
        return self._stream().identity.watched_since

    def __len__(self) -> int:
        return len(self._all)

    def seen(self) -> SeenMessage | None:
        """The last message of the stream that any subscription got; None before the first."""
        return max((one.seen for one in self._all if one.seen.time), default=None)

    async def run(self) -> None:
        """Verify the stream whenever a subscription needs it, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Later ones wait for the next answer: this one may be too old for them.
            stale, self._unsynced = self._unsynced, set()
            lost, changes = not self.is_verified, self._changes
            if stale:
                # An unexpected offset may come from a different stream.
                self._stream().identity.invalidate()
            try:
                state = await (self._stream().ensure() if lost else self._stream().state())
            except EventBusError as exc:
                _log.error("%s", exc)
                self._again(stale)
                await asyncio.sleep(_PAUSE_S)
                continue
            except Exception:
                self._again(stale)  # their messages are pending until the next answer
                raise
            if lost or not self.is_verified:  # the answer itself may have shown it
                stale |= {each for each in self._all if each.hold_if_behind(state)}
            if changes == self._changes:
                self.is_verified = True
            for subscription in stale:
                if subscription in self._filling:
                    continue  # which itself notices a connection that was lost meanwhile
                if subscription in self._unsynced:
                    continue  # what made it ask again may be newer than this answer
                if subscription.is_behind(state):
                    self._start_filling(subscription, state, changes)
                else:
                    subscription.release(state)

    async def aclose(self) -> None:
        """Stop all subscriptions without telling the server; the connection is closing."""
        await self._tasks.aclose()
        for subscription in self._all:
            subscription.detach()
        self._all.clear()
        self._unsynced.clear()

    def _again(self, stale: set[NatsSubscription]) -> None:
        self._unsynced |= stale & self._all
        self._wake.set()

    def _start_filling(
        self, subscription: NatsSubscription, state: StreamState, changes: int
    ) -> None:
        self._filling.add(subscription)
        self._tasks.start(
            self._fill(subscription, state, changes),
            f"reading missed messages of {subscription.subject}",
        )

    async def _fill(self, subscription: NatsSubscription, state: StreamState, changes: int) -> None:
        """Deliver missed messages, then pending ones."""
        try:
            async with self._slots:
                read = self._read if subscription.is_exact else self._read_filter
                await read(subscription, state.epoch, changes)
        except Exception as exc:  # noqa: BLE001 - tried again, or it would hold messages for ever
            if isinstance(exc, EventBusError) and is_denied(exc):
                self._give_up_missed(subscription, exc)
            else:
                self._log.log(
                    logging.WARNING,
                    "reading missed messages of %s: %s",
                    subscription.subject,
                    exc,
                    exc_info=None if isinstance(exc, EventBusError) else exc,
                )
                await asyncio.sleep(_RETRY_S)
                changes = -1
        finally:
            self._filling.discard(subscription)
        if changes != self._changes:  # there may be a gap in the pending messages, too
            asyncio.get_running_loop().call_soon(self._again, {subscription})
            return
        # Pending messages may be newer than the state, which was queried before.
        subscription.release(StreamState(state.epoch, max(state.last, subscription.last)))

    def _give_up_missed(self, subscription: NatsSubscription, exc: EventBusError) -> None:
        self.gaps += 1
        self._log.log(
            logging.ERROR,
            "messages may have been missed, and the NATS user has no permission to read them: %s",
            exc,
            kind="denied",
        )
        subscription.give_up_missed()

    async def _read(self, subscription: NatsSubscription, epoch: str, changes: int) -> None:
        """Read the missed messages of a subject, as long as there are no `changes` meanwhile."""
        while True:
            last, seen = subscription.last, subscription.seen
            is_own = last == seen.offset
            time = nanoseconds(seen.time) if is_own else None
            page = await self._reader().read(
                subscription.subject,
                after=ReaderPosition(last, time, is_own),
                limit=_PAGE,
                whole=True,
                known=subscription.confirmed,
            )
            if page.position.epoch != epoch or changes != self._changes:
                return  # what was read may be of another history than what was delivered
            if not page.complete:
                self.gaps += 1
                subscription.show_gap()
                _log.warning("messages of %s were missed and are gone", subscription.subject)
            for i, delivery in enumerate(page.messages):
                # The stream does not know what precedes the first: it is the last delivered one.
                subscription.catch_up(
                    delivery._replace(previous=seen.offset) if i == 0 else delivery
                )
            self.filled += len(page.messages)
            if len(page.messages) < _PAGE:
                subscription.has_read(page.position.offset)
                return

    async def _read_filter(self, subscription: NatsSubscription, epoch: str, changes: int) -> None:
        """Read the missed messages of all subjects of a filter; report when some may be gone."""
        found: collections.Counter[str] = collections.Counter()
        start = max(subscription.last, subscription.confirmed)
        is_reported = False
        while True:
            page = await self._reader().read_filter(
                subscription.subject, after=subscription.last, limit=_PAGE
            )
            found.update(delivery.subject for delivery in page.messages)
            is_long = found.total() >= _FILTER_READS and len(page.messages) == _PAGE
            # A subject with evictions is full, and its oldest messages go first.
            is_full = 0 < page.state.limit <= max(found.values(), default=0)
            is_missing = not is_reported and (
                is_long or is_full or not await page.has_all_after(start)
            )
            if page.state.stream.epoch != epoch or changes != self._changes:
                return  # what was read may be of another history than what was delivered
            self.filled += len(page.messages)
            if is_missing:
                is_reported = True
                self.gaps += 1
                _log.warning("some messages of %s were missed and are gone", subscription.subject)
                subscription.report_gap()
            for delivery in page.messages:
                subscription.catch_up(delivery)
            if is_long or len(page.messages) < _PAGE:
                subscription.has_read(page.state.stream.last)
                return

    async def confirm(self) -> None:
        """Regularly confirm to subscriptions what has arrived, until cancelled."""
        before: StreamState | None = None
        while True:
            await asyncio.sleep(self._confirm_s)
            changes = self._changes
            try:
                state = await self._stream().state() if self._all and self.is_verified else None
            except EventBusError as exc:
                _log.info("%s", exc)  # the next round asks again
                state = None
            if state is not None and changes == self._changes and self.is_verified:
                # The end of the previous round has arrived by now, from any server.
                if before is not None and before.epoch == state.epoch:
                    for each in self._all:
                        each.confirm(before.last)
                before = state
            else:
                before = None
