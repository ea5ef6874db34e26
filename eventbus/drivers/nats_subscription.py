"""A subscription's place in the stream: what is delivered, what waits, what came before it."""

import collections
import logging
from typing import Final, Protocol

from eventbus.drivers.base import Delivery, Handler, Position
from eventbus.drivers.base_gaps import OnGap
from eventbus.drivers.base_marks import ANY_CHANNEL, end_of, mark_of, nanoseconds
from eventbus.drivers.nats_connection import Listening
from eventbus.drivers.nats_stream import Point, StreamState
from eventbus.drivers.nats_wire import PROBE, Stamp, WireHeaders
from eventbus.user_code import must_pass

__all__ = ["NatsSubscription", "Place"]

_log = logging.getLogger(__name__)

MAX_HELD: Final = 10_000
"""Messages that wait while the stream's identity is asked for; the oldest are dropped beyond, which
a listener sees by `Delivery.previous`."""
_MAX_DOUBTS: Final = 3
_PROBE_END: Final = f".{PROBE}"

_Held = tuple[str, bytes, WireHeaders, Stamp]


class Place(Protocol):
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
        self, place: Place, subject: str, handler: Handler, stream: bytes, *, group: str = ""
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
