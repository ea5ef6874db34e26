"""A subscription's place in each channel: what is delivered, what waits, what was missed."""

import collections
import logging
from collections.abc import (
    Callable,
    Iterable,
)
from typing import Final

from eventbus.channels import Pattern
from eventbus.drivers.base import (
    Delivery,
    Handler,
    OnGap,
    Page,
    Position,
)
from eventbus.drivers.redis.script import START_STEP
from eventbus.drivers.redis.wire import glob_of
from eventbus.user_code import must_pass

__all__ = ["Cursor", "RedisSubscription"]


_log = logging.getLogger(__name__)

MAX_HELD: Final = 10_000
"""Messages of one channel that wait while the stream is read; beyond, the oldest are dropped, and
read from the stream too."""
MAX_CHANNELS: Final = 10_000
"""Channels whose place a filter remembers; it forgets those longest without a message, and cannot
tell what it missed of them while it was disconnected."""


class Cursor:
    """A place in one channel. A stored message passes it once, and in order."""

    __slots__ = ("_deliver", "_doubt", "epoch", "held", "last", "subject", "tell_gap")

    def __init__(
        self,
        subject: str,
        deliver: Callable[[Delivery], None],
        doubt: Callable[["Cursor"], None],
        tell_gap: OnGap,
    ) -> None:
        """`doubt` asks for the stream to be read, and the cursor then brought up to date.

        `tell_gap` is called where some of it is gone.
        """
        self.subject = subject
        self.tell_gap = tell_gap
        self.epoch = ""
        """Empty until it is known where the cursor begins."""
        self.last = 0
        self.held: collections.deque[Delivery] | None = None
        self._deliver = deliver
        self._doubt = doubt

    @property
    def position(self) -> Position:
        """Up to where all is delivered."""
        return Position(self.last, self.epoch)

    def hold(self) -> None:
        """Keep what comes until the stream was read."""
        if self.held is None:
            self.held = collections.deque(maxlen=MAX_HELD)
        self._doubt(self)

    def receive(self, delivery: Delivery) -> None:
        """Take a message as it comes. What does not follow the last one is looked up first."""
        position = delivery.position
        if self.held is not None:
            self.held.append(delivery)
        elif position is None:
            self._deliver(delivery)
        elif position.epoch == self.epoch and position.offset <= self.last:
            return  # known from the stream
        elif position.epoch == self.epoch and self._follows(delivery.previous):
            self.last = position.offset
            self._deliver(delivery)
        else:
            self.hold()
            self.receive(delivery)

    def _follows(self, previous: int | None) -> bool:
        return previous == self.last or (not previous and self.last % START_STEP == 0)

    def take_held(self) -> list[Delivery]:
        """What is held. Whatever of it is stored will be in a page that is read after this."""
        held, self.held = self.held, collections.deque(maxlen=MAX_HELD)
        return list(held or ())

    def put_back(self, held: Iterable[Delivery]) -> None:
        """Hold again what `take_held` has given, before what came meanwhile."""
        later = self.held or ()
        self.held = collections.deque((*held, *later), maxlen=MAX_HELD)

    def begin_again(self, page: Page) -> bool:
        """The stream has another epoch, as this page shows; whether the page is what follows.

        It is where both epochs have the same first part: then offsets go on, see redis_script.
        Otherwise the stream is to be read from its beginning.
        """
        goes_on = page.position.epoch.partition("-")[0] == self.epoch.partition("-")[0]
        self.last = min(self.last, page.position.offset) if goes_on else 0
        self.epoch = page.position.epoch
        return goes_on

    def fill(self, page: Page) -> None:
        """Deliver what was read after `last`."""
        for delivery in page.messages:
            assert delivery.position is not None
            if delivery.position.offset > self.last:
                self.last = delivery.position.offset
                self._deliver(delivery)

    def release(self, last: int, volatile: Iterable[Delivery] = ()) -> None:
        """Go on with what was held; all up to `last` is delivered, or is kept no more.

        `volatile` are messages that no stream has, and that were held before the others.
        """
        self.last = max(self.last, last)
        for delivery in volatile:
            self._deliver(delivery)
        held, self.held = self.held, None
        for delivery in held or ():
            self.receive(delivery)


class RedisSubscription:
    """One listener, to a subject or to a filter."""

    __slots__ = (
        "__weakref__", "_cursors", "_doubt", "_handler", "_leave", "_live", "command", "name",
        "on_gap", "pattern", "position", "subject",
    )  # fmt: skip

    def __init__(
        self,
        pattern: Pattern,
        handler: Handler,
        live: str,
        *,
        doubt: Callable[[Cursor], None],
        leave: Callable[["RedisSubscription"], None],
    ) -> None:
        """`live` is how the subjects of streams begin."""
        self.subject = pattern.text
        self.pattern = pattern
        self.position: Position | None = None
        self.on_gap: OnGap | None = None
        self.command = "SUBSCRIBE" if pattern.is_exact else "PSUBSCRIBE"
        self.name = pattern.text.encode() if pattern.is_exact else glob_of(pattern)
        self._handler: Handler | None = handler
        self._live = live
        self._doubt = doubt
        self._leave = leave
        self._cursors: collections.OrderedDict[str, Cursor] = collections.OrderedDict()
        if pattern.is_exact and pattern.text.startswith(live):
            self._cursors[pattern.text] = Cursor(
                pattern.text, self._hand_over, doubt, self.tell_gap
            )
            self._cursors[pattern.text].held = collections.deque(maxlen=MAX_HELD)

    @property
    def key(self) -> tuple[str, bytes]:
        """What the server is asked for."""
        return self.command, self.name

    @property
    def cursor(self) -> Cursor | None:
        """The place in the one stream of an exact subscription; None for others."""
        return self._cursors.get(self.subject)

    def receive(self, delivery: Delivery) -> None:
        """Take a message of a subject that the subscription's name or glob has."""
        if self._handler is None:
            return
        if (cursor := self._cursors.get(delivery.subject)) is not None:
            if not self.pattern.is_exact:
                self._cursors.move_to_end(delivery.subject)
            cursor.receive(delivery)
        elif self.pattern.is_exact:
            self._hand_over(delivery)
        elif self.pattern.match(delivery.subject) is not None:
            if delivery.position is not None:
                self._follow(delivery.subject, delivery.position)
            self._hand_over(delivery)

    def hold(self) -> None:
        """The server may send things that this one has not heard of: read them first."""
        for cursor in self._cursors.values():
            cursor.hold()

    def tell_gap(self) -> None:
        """Messages may have been missed for good; of one subject, the history may be another."""
        if self.cursor is not None:
            self.position = self.cursor.position
        if self._handler is not None and self.on_gap is not None:
            self.on_gap()

    async def aclose(self) -> None:
        """Stop: the handler is not called once this is called."""
        if self._handler is not None:
            self.detach()
            self._leave(self)

    def detach(self) -> None:
        """Stop without a word to the server."""
        self._handler = None
        self._cursors.clear()

    def _follow(self, subject: str, position: Position) -> None:
        cursor = Cursor(subject, self._hand_over, self._doubt, self.tell_gap)
        cursor.epoch, cursor.last = position.epoch, position.offset
        self._cursors[subject] = cursor
        if len(self._cursors) > MAX_CHANNELS:
            self._cursors.popitem(last=False)

    def _hand_over(self, delivery: Delivery) -> None:
        if self._handler is None:
            return
        try:
            self._handler(delivery)
        except BaseException as exc:  # a handler may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", delivery.subject)
