"""All subscriptions of a driver, and what they wait for: who the stream is, and what was missed."""

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import Final

from eventbus.drivers.base_marks import nanoseconds
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_evidence import Place
from eventbus.drivers.nats_history import StreamReader
from eventbus.drivers.nats_stream import EventStream, Point, StreamState
from eventbus.drivers.nats_subscription import NatsSubscription
from eventbus.errors import EventBusError
from eventbus.tasks import Tasks

__all__ = ["NatsListeners"]

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_READS: Final = 16
_FILTER_READS: Final = 10_000
"""Messages that are read for a filter after one loss; of more, the newest are what counts."""
_PAUSE_S: Final = 5.0
_RETRY_S: Final = 0.2


class NatsListeners:
    """Keeps each subscription's messages in order, whole, and of one stream.

    After the loss of a connection, and where a message tells that the one before it never came,
    what was missed is read from the stream before anything further is delivered.
    """

    def __init__(
        self,
        connection: Callable[[], NatsConnection],
        stream: Callable[[], EventStream],
        reader: Callable[[], StreamReader],
        *,
        note_s: float,
    ) -> None:
        """`connection`, `stream` and `reader` are those of an opened driver.

        Each `note_s` seconds, the stream is asked how far it is, where anybody listens.
        """
        self.certain = True
        """False from the loss of a connection until the stream is known to be the same."""
        self.losses = 0
        """How often the connection was lost."""
        self.filled = 0
        """How many missed messages were read from the stream."""
        self.gaps = 0
        """How often messages were missed that the stream may not have any more."""
        self._connection = connection
        self._stream = stream
        self._reader = reader
        self._note_s = note_s
        self._changes = 0
        """How often the connection was lost, or the stream has become another one."""
        self._all: set[NatsSubscription] = set()
        self._doubting: set[NatsSubscription] = set()
        self._doubted = asyncio.Event()
        self._slots = asyncio.Semaphore(_READS)
        self._filling: set[NatsSubscription] = set()
        self._tasks = Tasks()

    def add(self, subscription: NatsSubscription) -> None:
        """Look after a subscription until it leaves."""
        self._all.add(subscription)

    async def leave(self, subscription: NatsSubscription) -> None:
        """Unsubscribe at the server."""
        self._all.discard(subscription)
        self._doubting.discard(subscription)
        if subscription.listening is not None:
            await self._connection().unlisten(subscription.listening)

    def doubt(self, subscription: NatsSubscription) -> None:
        """Ask the stream who it is, read what was missed, then call `subscription.release`."""
        self._doubting.add(subscription)
        self._doubted.set()

    def on_lost(self) -> None:
        """The connection is lost: nothing that comes later is certain."""
        self.losses += 1
        self._changes += 1
        self.certain = False

    def on_back(self) -> None:
        """There is a connection again."""
        self._doubted.set()

    def on_new_epoch(self, same: int) -> None:
        """The stream is another one, which is as it was up to an offset."""
        for subscription in self._all:
            subscription.restart(self._stream().epoch, same)
        self._changes += 1
        self.certain = False  # what came since may have passed for what was known
        self._doubted.set()

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back, in nanoseconds of the server's time."""
        return self._stream().watched_since

    @property
    def count(self) -> int:
        """How many subscriptions there are."""
        return len(self._all)

    def seen(self) -> Point | None:
        """The last message of the stream that any subscription got; None before the first."""
        return max((one.seen for one in self._all if one.seen.time), default=None)

    async def run(self) -> None:
        """Settle doubts until cancelled."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            # Those that doubt from here on wait for the next answer: this one may be too old.
            held, self._doubting = self._doubting, set()
            lost, changes = not self.certain, self._changes
            if held:
                self._stream().doubt()  # an offset that is not as expected may show another stream
            try:
                state = await (self._stream().ensure() if lost else self._stream().state())
            except EventBusError as exc:
                _log.error("%s", exc)
                self._again(held)
                await asyncio.sleep(_PAUSE_S)
                continue
            except Exception:
                self._again(held)  # they hold their messages until the next answer
                raise
            if lost or not self.certain:  # it may be found out by the answer
                held |= {each for each in self._all if each.hold_if_behind(state)}
            if changes == self._changes:
                self.certain = True
            for subscription in held:
                if subscription in self._filling:
                    continue  # it looks itself whether the connection was lost meanwhile
                if subscription.is_behind(state):
                    self._start_filling(subscription, state, changes)
                else:
                    subscription.release(state)

    async def aclose(self) -> None:
        """Stop all, without a word to the server, whose connection is closing."""
        await self._tasks.aclose()
        for subscription in self._all:
            subscription.detach()
        self._all.clear()
        self._doubting.clear()

    def _again(self, held: set[NatsSubscription]) -> None:
        self._doubting |= held & self._all
        self._doubted.set()

    def _start_filling(
        self, subscription: NatsSubscription, state: StreamState, changes: int
    ) -> None:
        self._filling.add(subscription)
        self._tasks.start(
            self._fill(subscription, state, changes), f"reading what {subscription.subject} missed"
        )

    async def _fill(self, subscription: NatsSubscription, state: StreamState, changes: int) -> None:
        """Deliver what was missed, then what was held."""
        try:
            async with self._slots:
                read = self._read if subscription.is_exact else self._read_filter
                await read(subscription, state.epoch)
        except Exception as exc:  # noqa: BLE001 - tried again, or it would hold messages for ever
            _log.warning(
                "reading what %s missed: %s",
                subscription.subject,
                exc,
                exc_info=None if isinstance(exc, EventBusError) else exc,
            )
            await asyncio.sleep(_RETRY_S)
            changes = -1
        finally:
            self._filling.discard(subscription)
        if changes != self._changes:  # what is held may have a gap of its own
            asyncio.get_running_loop().call_soon(self._again, {subscription})
            return
        # What was held may be newer than the state that was asked for before.
        subscription.release(StreamState(state.epoch, max(state.last, subscription.last)))

    async def _read(self, subscription: NatsSubscription, epoch: str) -> None:
        while True:
            last, seen = subscription.last, subscription.seen
            is_own = last == seen.offset
            time = nanoseconds(seen.time) if is_own else None
            page = await self._reader().read(
                subscription.subject, after=Place(last, time, is_own), limit=_PAGE, whole=True,
                known=subscription.noted,
            )  # fmt: skip
            if page.position.epoch != epoch:
                return  # made anew meanwhile: the release that follows finds new offsets
            if not page.complete:
                self.gaps += 1
                subscription.has_gap = True
                _log.warning("messages of %s were missed and are gone", subscription.subject)
            for i, delivery in enumerate(page.messages):
                # The stream does not say what came before the first: it is what was delivered last.
                subscription.catch_up(
                    delivery._replace(previous=seen.offset) if i == 0 else delivery
                )
            self.filled += len(page.messages)
            if len(page.messages) < _PAGE:
                subscription.has_read(page.position.offset)
                return

    async def _read_filter(self, subscription: NatsSubscription, epoch: str) -> None:
        """Read what all subjects of a filter have, and tell where some of it may be gone."""
        found: collections.Counter[str] = collections.Counter()
        start = max(subscription.last, subscription.noted)
        is_told = False
        while True:
            page = await self._reader().read_filter(
                subscription.subject, after=subscription.last, limit=_PAGE
            )
            if page.state.stream.epoch != epoch:
                return  # made anew meanwhile: the release that follows finds new offsets
            found.update(delivery.subject for delivery in page.messages)
            self.filled += len(page.messages)
            is_long = found.total() >= _FILTER_READS and len(page.messages) == _PAGE
            # A subject that gave up messages is full, and gives up its oldest first.
            is_full = 0 < page.state.limit <= max(found.values(), default=0)
            if not is_told and (is_long or is_full or not await page.has_all_after(start)):
                is_told = True
                self.gaps += 1
                _log.warning("messages of %s were missed in part", subscription.subject)
                subscription.tell_gap()
            for delivery in page.messages:
                subscription.catch_up(delivery)
            if is_long or len(page.messages) < _PAGE:
                subscription.has_read(page.state.stream.last)
                return

    async def note(self) -> None:
        """Tell subscriptions now and then up to where all has come, until cancelled."""
        before: StreamState | None = None
        while True:
            await asyncio.sleep(self._note_s)
            changes = self._changes
            try:
                state = await self._stream().state() if self._all and self.certain else None
            except EventBusError as exc:
                _log.info("%s", exc)  # it is asked again
                state = None
            if state is not None and changes == self._changes and self.certain:
                # What the stream had the last time has come by now, from whatever server.
                if before is not None and before.epoch == state.epoch:
                    for each in self._all:
                        each.note(before.last)
                before = state
            else:
                before = None
