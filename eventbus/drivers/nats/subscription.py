"""A subscription's place in the stream: what is delivered, what waits, what came before it."""

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
    Listening,
    NatsConnection,
)
from eventbus.drivers.nats.history import (
    Place,
    StreamReader,
)
from eventbus.drivers.nats.stream import (
    EventStream,
    Point,
    StreamState,
)
from eventbus.errors import EventBusError
from eventbus.tasks import Tasks
from eventbus.user_code import must_pass

__all__ = ["NatsListeners", "NatsSubscription", "Owner"]


_log = logging.getLogger(__name__)

MAX_HELD: Final = 10_000
"""Messages that wait while the stream's identity is asked for; the oldest are dropped beyond, which
a listener sees by `Delivery.previous`."""
_MAX_DOUBTS: Final = 3
_PROBE_END: Final = f".{PROBE}"

_Held = tuple[str, bytes, WireHeaders, Stamp]


class Owner(Protocol):
    """What a subscription needs to know of its driver."""

    certain: bool
    """Whether the stream is known to be the one whose epoch is known."""

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back, in nanoseconds of the server's time."""

    def doubt(self, subscription: "NatsSubscription") -> None:
        """Ask the stream who it is, read what was missed, then call `subscription.release`."""

    async def leave(self, subscription: "NatsSubscription") -> None:
        """Unsubscribe at the server."""


class NatsSubscription:
    """One listener. A stored message is never delivered to it twice or out of order."""

    __slots__ = (
        "__weakref__", "_doubts", "_epoch", "_handler", "_held", "_place", "_reads",
        "_seen", "_stream", "_time", "_unsure", "has_gap", "is_exact", "last", "listening",
        "noted", "on_gap", "position", "subject",
    )  # fmt: skip

    def __init__(
        self, place: Owner, subject: str, handler: Handler, stream: bytes, *, group: str = ""
    ) -> None:
        """`stream` is the name of the stream whose messages come here; empty for none.

        A member of a `group` gets a part of the messages, and so cannot tell what it missed.
        """
        self.last = 0
        """No message up to this offset is delivered any more."""
        self.noted = 0
        """All up to this offset had come when the stream was asked last: see `note`."""
        self.subject = subject
        self.is_exact = "*" not in subject and ">" not in subject
        self.position: Position | None = None
        self.on_gap: OnGap | None = None
        self.listening: Listening | None = None
        self._place = place
        self._handler: Handler | None = handler
        self._stream = stream
        self._reads = bool(stream) and not group
        """Whether what is missed is read from the stream."""
        self._epoch = ""
        self._seen = 0
        """The offset delivered last, 0 before the first."""
        self._time = ""
        """When the stream stored that."""
        self.has_gap = False
        """Messages were missed for good, as the next delivery is to show."""
        self._doubts = 0
        """How often in a row a held message was not delivered for a gap before it."""
        self._unsure = False
        """The connection was lost, and the stream has grown since."""
        self._held: collections.deque[_Held] | None = None
        if stream:
            self._held = collections.deque(maxlen=MAX_HELD)  # until begin() says from where

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Take a message off the wire."""
        if self._handler is None or (not self.is_exact and subject.endswith(_PROBE_END)):
            return
        stamp = headers.stamp(self._stream) if self._stream else None
        if stamp is None:
            self._handler(Delivery(subject, payload, headers))
        elif self._held is not None:
            self._held.append((subject, payload, headers, stamp))
        elif (
            not self._place.certain
            or stamp.sequence <= self.last
            or (self._reads and stamp.previous > self.last)
            or (self._reads and self.is_exact and stamp.previous < self._seen)
        ):
            # An offset that goes back is a copy, or of a stream that was made anew. What a subject
            # retained beyond the last that came here was missed. What it retained going back is
            # expiry, or a stream made anew that has grown past the old one; a filter has many
            # subjects, of which each may retain anything older.
            self._held = collections.deque([(subject, payload, headers, stamp)], MAX_HELD)
            self._place.doubt(self)
        else:
            self.last = self._seen = stamp.sequence
            self._time = stamp.time
            delivery = self._delivery(subject, payload, headers, stamp)
            self._handler(self._after_gap(delivery) if self.has_gap else delivery)

    @property
    def seen(self) -> Point:
        """The message that was delivered last; of offset 0 before the first."""
        return Point(self._seen, self._time)

    def begin(self, state: StreamState) -> None:
        """Deliver from after the stream's state, which was asked for after subscribing."""
        self.position = end_of(state.last, state.epoch, state.time)
        self._epoch = state.epoch
        self.last = state.last
        self.release(state)

    def restart(self, epoch: str, same: int) -> None:
        """The stream is another one, and as it was up to an offset: 0 where it was made anew."""
        self._epoch = epoch
        self.last, self.noted = min(self.last, same), min(self.noted, same)
        if self._seen > same:
            self._seen, self._time = same, ""
        self.tell_gap()  # what was stored in the old one, and had not come, is gone

    def release(self, state: StreamState) -> None:
        """Deliver what was held, now that the stream's identity and last offset are known."""
        held, self._held = self._held, None
        self._unsure = False
        if not held:
            return
        if self.last > state.last:
            # No stream wrote the offset that we saw last: anyone may publish what looks like it.
            _log.warning("%s carried an offset that its stream does not have", self.subject)
            self.last = self._seen = held[0][3].sequence - 1
            self._time = ""
        while held and self._handler is not None:
            subject, payload, headers, stamp = held.popleft()
            if self._reads and stamp.previous > self.last and self._doubts < _MAX_DOUBTS:
                # Another was missed meanwhile; or the number is forged, and will never be true.
                self._doubts += 1
                held.appendleft((subject, payload, headers, stamp))
                self._held = held
                self._place.doubt(self)
                return
            self._doubts = 0
            if stamp.sequence > self.last:
                self.last = self._seen = stamp.sequence
                self._time = stamp.time
                self._call(self._delivery(subject, payload, headers, stamp))

    def is_behind(self, state: StreamState) -> bool:
        """Whether messages may have been missed: it is to be read after `last`, up to the state."""
        if not self._reads or self._handler is None or state.last <= self.last:
            return False
        return self._unsure or bool(self._held and self._held[0][3].previous > self.last)

    def hold_if_behind(self, state: StreamState) -> bool:
        """After a loss: hold what comes, if the stream has grown meanwhile."""
        if not self._reads or self._handler is None or state.last <= self.last:
            return False
        self._unsure = True
        if self._held is None:
            self._held = collections.deque(maxlen=MAX_HELD)
        return True

    def catch_up(self, delivery: Delivery) -> None:
        """Deliver a message that was read from the stream, while what comes live is held."""
        assert delivery.position is not None
        if self._handler is None or delivery.position.offset <= self.last:
            return
        self.last = self._seen = delivery.position.offset
        self._time = delivery.time or ""
        if not delivery.subject.endswith(_PROBE_END):
            self._call(delivery)

    def has_read(self, offset: int) -> None:
        """All that the stream has up to an offset was delivered: what is missing is gone."""
        self.last = max(self.last, offset)

    def note(self, offset: int) -> None:
        """All that the stream had up to an offset has come: nothing of it can be missed later.

        Where no message comes for long, `last` falls behind what the stream still has, which would
        look like a gap after the next loss.
        """
        self.noted = offset

    def has_nothing_after(self, position: Position) -> bool:
        """See FollowingSubscription."""
        if self.position is None or self._held is not None or self.has_gap or not self._reads:
            return False
        if not self._place.certain or position.epoch != self._epoch:
            return False
        followed = max(self.position.offset, self._seen)
        mark = mark_of(position)
        if position.offset < followed or mark is None:
            return False
        is_own = not mark.startswith(ANY_CHANNEL)
        time = nanoseconds(mark.removeprefix(ANY_CHANNEL))
        if is_own and (position.offset > followed or self._seen == followed):
            return position.offset == followed and time == nanoseconds(self._time)
        return time is not None and time >= self._place.watched_since

    def tell_gap(self) -> None:
        """Messages of a filter may have been missed for good."""
        if self._handler is not None and self.on_gap is not None:
            self.on_gap()

    async def aclose(self) -> None:
        """Stop: the handler is not called once this is called."""
        if self._handler is not None:
            self._handler = None
            self._held = None
            await self._place.leave(self)

    def detach(self) -> None:
        """Stop without a word to the server, whose connection is closing."""
        self._handler = None
        self._held = None

    def _delivery(
        self, subject: str, payload: bytes, headers: WireHeaders, stamp: Stamp
    ) -> Delivery:
        position = Position(stamp.sequence, self._epoch)
        return Delivery(subject, payload, headers, position, stamp.previous, stamp.time)

    def _after_gap(self, delivery: Delivery) -> Delivery:
        """A delivery that names a message before it which the listener cannot have seen."""
        assert delivery.position is not None
        self.has_gap = False
        return delivery._replace(previous=delivery.position.offset - 1)

    def _call(self, delivery: Delivery) -> None:
        """Call the handler outside of the client, which logs what a handler raises."""
        assert self._handler is not None
        if self.has_gap:
            delivery = self._after_gap(delivery)
        try:
            self._handler(delivery)
        except BaseException as exc:  # a handler may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", delivery.subject)


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
