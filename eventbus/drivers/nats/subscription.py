"""Subscriptions to live subjects: stored messages arrive in order, once, and without gaps.

`NatsSubscription` tracks how far one subscription is in the stream. `Subscriptions` queries the
stream when a message or a lost connection casts doubt on that, and fills gaps from history.
"""

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import (
    Final,
    Protocol,
)

from eventbus.drivers.base import (
    Delivery,
    Handler,
    OnGap,
    Position,
)
from eventbus.drivers.marks import (
    ANY_CHANNEL,
    end_of,
    mark_of,
    nanoseconds,
)
from eventbus.drivers.nats.client import (
    PROBE,
    Stamp,
    WireHeaders,
)
from eventbus.drivers.nats.connection import (
    NatsConnection,
    ServerSubscription,
)
from eventbus.drivers.nats.history import (
    ReaderPosition,
    StreamReader,
)
from eventbus.drivers.nats.stream import (
    EventStream,
    SeenMessage,
    StreamState,
)
from eventbus.errors import EventBusError
from eventbus.tasks import Tasks
from eventbus.user_code import must_pass

__all__ = ["NatsSubscription", "Owner", "Subscriptions"]


_log = logging.getLogger(__name__)

MAX_PENDING: Final = 10_000
"""Messages that wait while the stream is queried. Beyond, the oldest are dropped; the subscriber
detects that by `Delivery.previous`."""
_MAX_GAP_QUERIES: Final = 3
_PROBE_END: Final = f".{PROBE}"
_PAGE: Final = 500
_READS: Final = 16
_FILTER_READS: Final = 10_000
"""Messages that are read for a filter after one loss; beyond, live messages matter more."""
_PAUSE_S: Final = 5.0
_RETRY_S: Final = 0.2

_Pending = tuple[str, bytes, WireHeaders, Stamp]


class Owner(Protocol):
    """What a subscription needs of its driver."""

    is_verified: bool
    """Whether the stream is known to be the one with the known epoch."""

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back; nanoseconds of the server's time."""

    def resync(self, subscription: "NatsSubscription") -> None:
        """Query the stream, read missed messages, then call `subscription.release`."""

    async def leave(self, subscription: "NatsSubscription") -> None:
        """Unsubscribe at the server."""


class NatsSubscription:
    """One subscription. It never delivers a stored message twice or out of order."""

    __slots__ = (
        "__weakref__",
        "_epoch",
        "_gap_queries",
        "_handler",
        "_may_lag",
        "_owner",
        "_pending",
        "_reads",
        "_seen",
        "_stream",
        "_time",
        "at_server",
        "confirmed",
        "has_gap",
        "is_exact",
        "last",
        "on_gap",
        "position",
        "subject",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, subject: str, handler: Handler, stream: bytes, *, group: str = ""
    ) -> None:
        """`stream` is the name of the stream that stores the subject; empty for none.

        A member of a `group` gets some of the messages only, so it cannot detect gaps.
        """
        self.last = 0
        """Messages up to this offset are not delivered any more."""
        self.confirmed = 0
        """Everything up to this offset has arrived: see `confirm`."""
        self.subject = subject
        self.is_exact = "*" not in subject and ">" not in subject
        self.position: Position | None = None
        self.on_gap: OnGap | None = None
        self.at_server: ServerSubscription | None = None
        self._owner = owner
        self._handler: Handler | None = handler
        self._stream = stream
        self._reads = bool(stream) and not group
        """Whether missed messages are read from the stream."""
        self._epoch = ""
        self._seen = 0
        """The last delivered offset, 0 before the first."""
        self._time = ""
        """When the stream stored that message."""
        self.has_gap = False
        """Messages were missed for good; the next delivery has to show it."""
        self._gap_queries = 0
        """How many times in a row the same gap made a pending message wait."""
        self._may_lag = False
        """The connection was lost, and the stream has grown since then."""
        self._pending: collections.deque[_Pending] | None = None
        if stream:
            self._pending = collections.deque(
                maxlen=MAX_PENDING
            )  # until begin() knows where to start

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Handle a message from the connection."""
        if self._handler is None or (not self.is_exact and subject.endswith(_PROBE_END)):
            return
        stamp = headers.stamp(self._stream) if self._stream else None
        if stamp is None:
            self._handler(Delivery(subject, payload, headers))
        elif self._pending is not None:
            self._pending.append((subject, payload, headers, stamp))
        elif (
            not self._owner.is_verified
            or stamp.sequence <= self.last
            or (self._reads and stamp.previous > self.last)
            or (self._reads and self.is_exact and stamp.previous < self._seen)
        ):
            # An offset that goes back is a duplicate, or the stream was replaced. A retained
            # message beyond the last delivered one was missed. A retained message that goes back
            # means expiry, or a replaced stream that has grown past the old one; with a filter,
            # each of its subjects may retain any older message.
            self._pending = collections.deque([(subject, payload, headers, stamp)], MAX_PENDING)
            self._owner.resync(self)
        else:
            self.last = self._seen = stamp.sequence
            self._time = stamp.time
            delivery = self._delivery(subject, payload, headers, stamp)
            self._handler(self._after_gap(delivery) if self.has_gap else delivery)

    @property
    def seen(self) -> SeenMessage:
        """The last delivered message; with offset 0 before the first."""
        return SeenMessage(self._seen, self._time)

    def begin(self, state: StreamState) -> None:
        """Begin after the end of the stream, which was queried after subscribing."""
        self.position = end_of(state.last, state.epoch, state.time)
        self._epoch = state.epoch
        self.last = state.last
        self.release(state)

    def restart(self, epoch: str, unchanged: int) -> None:
        """The stream was replaced (0), or has gone back and is unchanged up to an offset."""
        self._epoch = epoch
        self.last, self.confirmed = min(self.last, unchanged), min(self.confirmed, unchanged)
        if self._seen > unchanged:
            self._seen, self._time = unchanged, ""
        self.report_gap()  # messages of the old history that had not arrived are gone

    def release(self, state: StreamState) -> None:
        """Deliver pending messages, now that the stream's identity and end are known."""
        pending, self._pending = self._pending, None
        self._may_lag = False
        if not pending:
            return
        if self.last > state.last:
            # Not written by the stream: anyone can publish a message with such headers.
            _log.warning("%s had an offset that its stream does not have", self.subject)
            self.last = self._seen = pending[0][3].sequence - 1
            self._time = ""
        while pending and self._handler is not None:
            subject, payload, headers, stamp = pending.popleft()
            if self._reads and stamp.previous > self.last and self._gap_queries < _MAX_GAP_QUERIES:
                # One more was missed meanwhile; or the header is forged and will never be true.
                self._gap_queries += 1
                pending.appendleft((subject, payload, headers, stamp))
                self._pending = pending
                self._owner.resync(self)
                return
            self._gap_queries = 0
            if stamp.sequence > self.last:
                self.last = self._seen = stamp.sequence
                self._time = stamp.time
                self._call(self._delivery(subject, payload, headers, stamp))

    def is_behind(self, state: StreamState) -> bool:
        """Whether messages between `last` and the end of the stream may have been missed."""
        if not self._reads or self._handler is None or state.last <= self.last:
            return False
        return self._may_lag or bool(self._pending and self._pending[0][3].previous > self.last)

    def hold_if_behind(self, state: StreamState) -> bool:
        """After a lost connection: keep messages pending if the stream has grown meanwhile."""
        if not self._reads or self._handler is None or state.last <= self.last:
            return False
        self._may_lag = True
        if self._pending is None:
            self._pending = collections.deque(maxlen=MAX_PENDING)
        return True

    def catch_up(self, delivery: Delivery) -> None:
        """Deliver a message that was read from the stream; live messages are pending."""
        assert delivery.position is not None
        if self._handler is None or delivery.position.offset <= self.last:
            return
        self.last = self._seen = delivery.position.offset
        self._time = delivery.time or ""
        if not delivery.subject.endswith(_PROBE_END):
            self._call(delivery)

    def has_read(self, offset: int) -> None:
        """Everything that the stream has up to an offset was delivered; the rest is gone."""
        self.last = max(self.last, offset)

    def confirm(self, offset: int) -> None:
        """Everything that the stream had up to an offset has arrived.

        On a quiet subject, `last` falls behind the oldest message of the stream. After the next
        lost connection that would look like a gap.
        """
        self.confirmed = offset

    def has_nothing_after(self, position: Position) -> bool:
        """See FollowingSubscription."""
        if self.position is None or self._pending is not None or self.has_gap or not self._reads:
            return False
        if not self._owner.is_verified or position.epoch != self._epoch:
            return False
        followed = max(self.position.offset, self._seen)
        mark = mark_of(position)
        if position.offset < followed or mark is None:
            return False
        is_own = not mark.startswith(ANY_CHANNEL)
        time = nanoseconds(mark.removeprefix(ANY_CHANNEL))
        if is_own and (position.offset > followed or self._seen == followed):
            return position.offset == followed and time == nanoseconds(self._time)
        return time is not None and time >= self._owner.watched_since

    def report_gap(self) -> None:
        """Report that messages of a filter may have been missed for good."""
        if self._handler is not None and self.on_gap is not None:
            self.on_gap()

    async def aclose(self) -> None:
        """Unsubscribe; the handler is not called after this is called."""
        if self._handler is not None:
            self._handler = None
            self._pending = None
            await self._owner.leave(self)

    def detach(self) -> None:
        """Stop without telling the server; the connection is closing."""
        self._handler = None
        self._pending = None

    def _delivery(
        self, subject: str, payload: bytes, headers: WireHeaders, stamp: Stamp
    ) -> Delivery:
        position = Position(stamp.sequence, self._epoch)
        return Delivery(subject, payload, headers, position, stamp.previous, stamp.time)

    def _after_gap(self, delivery: Delivery) -> Delivery:
        """A delivery whose `previous` the subscriber cannot have seen."""
        assert delivery.position is not None
        self.has_gap = False
        return delivery._replace(previous=delivery.position.offset - 1)

    def _call(self, delivery: Delivery) -> None:
        """Call the handler, and log what it raises: here, the client does not."""
        assert self._handler is not None
        if self.has_gap:
            delivery = self._after_gap(delivery)
        try:
            self._handler(delivery)
        except BaseException as exc:  # a handler may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", delivery.subject)


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

    def on_reconnected(self) -> None:
        """Verify the stream on the new connection."""
        self._wake.set()

    def on_new_epoch(self, unchanged: int) -> None:
        """The stream was replaced, or has gone back and is unchanged up to an offset."""
        for subscription in self._all:
            subscription.restart(self._stream().epoch, unchanged)
        self._changes += 1
        self.is_verified = False  # messages since then may have been taken for known ones
        self._wake.set()

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back; nanoseconds of the server's time."""
        return self._stream().watched_since

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
                self._stream().invalidate()  # an unexpected offset may come from a different stream
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
                await read(subscription, state.epoch)
        except Exception as exc:  # noqa: BLE001 - tried again, or it would hold messages for ever
            _log.warning(
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

    async def _read(self, subscription: NatsSubscription, epoch: str) -> None:
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
            if page.position.epoch != epoch:
                return  # replaced meanwhile: the following release sees the new offsets
            if not page.complete:
                self.gaps += 1
                subscription.has_gap = True
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

    async def _read_filter(self, subscription: NatsSubscription, epoch: str) -> None:
        """Read the missed messages of all subjects of a filter; report when some may be gone."""
        found: collections.Counter[str] = collections.Counter()
        start = max(subscription.last, subscription.confirmed)
        is_reported = False
        while True:
            page = await self._reader().read_filter(
                subscription.subject, after=subscription.last, limit=_PAGE
            )
            if page.state.stream.epoch != epoch:
                return  # replaced meanwhile: the following release sees the new offsets
            found.update(delivery.subject for delivery in page.messages)
            self.filled += len(page.messages)
            is_long = found.total() >= _FILTER_READS and len(page.messages) == _PAGE
            # A subject with evictions is full, and its oldest messages go first.
            is_full = 0 < page.state.limit <= max(found.values(), default=0)
            if not is_reported and (is_long or is_full or not await page.has_all_after(start)):
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
