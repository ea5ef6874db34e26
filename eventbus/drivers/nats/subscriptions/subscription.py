"""How far one subscription is in the stream: no message twice, none out of order, no hidden gap.

When a message or a lost connection casts doubt on that, new messages are pending until its owner
has queried the stream and read what was missed.
"""

import collections
import logging
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
    ServerSubscription,
)
from eventbus.drivers.nats.identity import SeenMessage, StreamState
from eventbus.drivers.nats.subscriptions.repeats import Repeats
from eventbus.user_code import must_pass

__all__ = ["NatsSubscription", "Owner"]


_log = logging.getLogger(__name__)

MAX_PENDING: Final = 10_000
"""Messages that wait while the stream is queried. Beyond, the oldest are dropped; the subscriber
detects that by `Delivery.previous`."""
_MAX_GAP_QUERIES: Final = 3
_MAX_SUBJECTS: Final = 4096
"""How many subjects of a filter are followed one by one; the count begins again beyond."""
_PROBE_END: Final = f".{PROBE}"

_new: Final = tuple.__new__
"""Makes a NamedTuple in half the time of its own constructor, which is a function of Python."""

_Pending = tuple[str, bytes, WireHeaders, Stamp]


class Owner(Protocol):
    """What a subscription needs of its driver."""

    is_verified: bool
    """Whether the stream is known to be the one with the known epoch."""
    repeats: Repeats
    """The volatile messages of all subscriptions."""

    @property
    def watched_since(self) -> int:
        """Since when the stream has not gone back; nanoseconds of the server's time."""

    def resync(self, subscription: "NatsSubscription") -> None:
        """Query the stream, read missed messages, then call `subscription.release`."""

    async def leave(self, subscription: "NatsSubscription") -> None:
        """Unsubscribe at the server."""


class NatsSubscription:
    """One subscription. It never delivers a message twice, or a stored one out of order."""

    __slots__ = (
        "__weakref__",
        "_epoch",
        "_gap_queries",
        "_handler",
        "_has_gap",
        "_known",
        "_may_lag",
        "_owner",
        "_pending",
        "_reads",
        "_seen",
        "_seen_of",
        "_stream",
        "_time",
        "at_server",
        "confirmed",
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
        self._has_gap = False
        """Messages were missed for good since the last delivery; an exact subscription's next one
        has to show it."""
        self._seen_of: dict[str, int] = {}
        """For a filter: the last delivered offset of each subject, if it is beyond `_known`."""
        self._known = 0
        """For a filter: up to this offset, no message counts as missed."""
        self._gap_queries = 0
        """How many times in a row the same gap made a pending message wait."""
        self._may_lag = False
        """The connection was lost, and the stream has grown since then."""
        self._pending: collections.deque[_Pending] | None = None
        if stream:
            self._pending = collections.deque(
                maxlen=MAX_PENDING
            )  # until begin() knows where to start

    def follow(self, at_server: ServerSubscription) -> None:
        """Note the subscription at the server, whose messages go to `receive`."""
        self.at_server = at_server

    def receive(self, subject: str, payload: bytes, headers: WireHeaders) -> None:
        """Handle a message from the connection."""
        if self._handler is None or (not self.is_exact and subject.endswith(_PROBE_END)):
            return
        stamp = headers.stamp(self._stream) if self._stream else None
        if stamp is None:
            if not self._owner.repeats.add(id(self), subject, payload):
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
            if not self.is_exact and self._reads:
                self._follow_subject(subject, stamp.sequence, stamp.previous)
            self.last = self._seen = stamp.sequence
            self._time = stamp.time
            delivery = self._delivery(subject, payload, headers, stamp)
            self._handler(self._after_gap(delivery) if self._has_gap else delivery)

    def _follow_subject(self, subject: str, offset: int, previous: int) -> None:
        """Report a gap if a subject's message before this one has not arrived.

        It may have been lost on its way although later ones of other subjects have arrived. Then it
        is too late to deliver it in order.
        """
        seen = self._seen_of
        if previous > seen.get(subject, self._known):
            self.report_gap()
        if len(seen) >= _MAX_SUBJECTS:
            seen.clear()
            self._known = self.last
        seen[subject] = offset

    @property
    def seen(self) -> SeenMessage:
        """The last delivered message; with offset 0 before the first."""
        return SeenMessage(self._seen, self._time)

    def resync(self) -> None:
        """Messages may have been missed: query the stream before more are delivered."""
        if self._reads and self._handler is not None:
            if self._pending is None:
                self._pending = collections.deque(maxlen=MAX_PENDING)
            self._may_lag = True
            self._owner.resync(self)

    def begin(self, state: StreamState) -> None:
        """Begin after the end of the stream, which was queried after subscribing."""
        self.position = end_of(state.last, state.epoch, state.time)
        self._epoch = state.epoch
        self.last = self._known = state.last
        self.release(state)

    def restart(self, epoch: str, unchanged: int) -> None:
        """The stream was replaced (0), or has gone back and is unchanged up to an offset."""
        self._epoch = epoch
        if self._pending is not None and self._reads:
            self._pending.clear()  # of either history; the owner reads those of the new one
            self._may_lag = True
        self.last, self.confirmed = min(self.last, unchanged), min(self.confirmed, unchanged)
        if self._seen > unchanged:
            self._seen, self._time = unchanged, ""
        self.position = Position(self.last, epoch)
        self._seen_of.clear()
        self._known = self.last
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
                if not self.is_exact and self._reads:
                    self._follow_subject(subject, stamp.sequence, stamp.previous)
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
        self._seen_of.clear()
        self._known = self.last

    def give_up_missed(self) -> None:
        """Messages may have been missed that cannot be read: show a gap, and continue after it."""
        if self._pending:
            self.has_read(self._pending[0][3].sequence - 1)
        if self.is_exact:
            self.show_gap()
        else:
            self.report_gap()

    def confirm(self, offset: int) -> None:
        """Everything that the stream had up to an offset has arrived.

        On a quiet subject, `last` falls behind the oldest message of the stream. After the next
        lost connection that would look like a gap.
        """
        self.confirmed = offset

    def has_nothing_after(self, position: Position) -> bool:
        """See FollowingSubscription."""
        if self.position is None or self._pending is not None or self._has_gap or not self._reads:
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

    def show_gap(self) -> None:
        """Messages were missed for good: the next delivery has to show it."""
        self._has_gap = True

    def report_gap(self) -> None:
        """Report that messages of a filter may have been missed for good."""
        if not self.is_exact:
            self._has_gap = True
        if self._handler is not None and self.on_gap is not None:
            self.on_gap()

    async def aclose(self) -> None:
        """Unsubscribe; the handler is not called after this is called."""
        if self._handler is not None:
            self._handler = None
            self._pending = None
            await self._owner.leave(self)
            self.at_server = None  # they refer to each other

    def detach(self) -> None:
        """Stop without telling the server; the connection is closing."""
        self._handler = None
        self._pending = None

    def _delivery(
        self, subject: str, payload: bytes, headers: WireHeaders, stamp: Stamp
    ) -> Delivery:
        sequence, previous, time, _ = stamp
        position = _new(Position, (sequence, self._epoch))
        return _new(Delivery, (subject, payload, headers, position, previous, time))

    def _after_gap(self, delivery: Delivery) -> Delivery:
        """The first delivery after a gap: `previous` is one that the subscriber cannot have seen.

        A filter's gaps are reported by `on_gap` instead.
        """
        assert delivery.position is not None
        self._has_gap = False
        if not self.is_exact:
            return delivery
        return delivery._replace(previous=delivery.position.offset - 1)

    def _call(self, delivery: Delivery) -> None:
        """Call the handler, and log what it raises: here, the client does not."""
        assert self._handler is not None
        if self._has_gap:
            delivery = self._after_gap(delivery)
        try:
            self._handler(delivery)
        except BaseException as exc:  # a handler may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", delivery.subject)
