"""A subscription and its position in each channel: what is delivered, waits, or was missed."""

import collections
import logging
from collections.abc import Callable, Iterable
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
"""Messages of one channel that wait while its stream is read; if there are more, the oldest are
dropped, and read from the stream."""
MAX_CHANNELS: Final = 10_000
"""Channels whose position the subscription to a filter remembers. It forgets the least recently
used ones, and cannot recover their messages after a lost connection."""


class Cursor:
    """A position in one channel. It delivers stored messages once, and in order."""

    __slots__ = (
        "_deliver",
        "_recheck",
        "epoch",
        "held",
        "is_closed",
        "last",
        "report_gap",
        "subject",
    )

    def __init__(
        self,
        subject: str,
        deliver: Callable[[Delivery], None],
        recheck: Callable[["Cursor"], None],
        report_gap: OnGap,
        begin: Position | None,
    ) -> None:
        """`recheck` requests a read of the stream, which then brings the cursor up to date.

        `report_gap` is called if messages are lost. Without a position to `begin` at, it holds
        messages until `begin_at`.
        """
        self.subject = subject
        self.report_gap = report_gap
        self.is_closed = False
        """Whether its subscription is closed, so that its stream need not be read any more."""
        self.held: collections.deque[Delivery] | None = None
        if begin is None:
            self.begin_at(Position(0, ""))
            self.held = collections.deque(maxlen=MAX_HELD)
        else:
            self.begin_at(begin)
        self._deliver = deliver
        self._recheck = recheck

    @property
    def position(self) -> Position:
        """The position up to which everything is delivered."""
        return Position(self.last, self.epoch)

    def begin_at(self, position: Position) -> None:
        """Begin after a position; its epoch is empty until the first one is known."""
        self.last, self.epoch = position

    def close(self) -> None:
        """Its subscription is closed."""
        self.is_closed = True

    def hold(self) -> None:
        """Hold new messages until the stream was read."""
        if self.held is None:
            self.held = collections.deque(maxlen=MAX_HELD)
        self._recheck(self)

    def receive(self, delivery: Delivery) -> None:
        """Take a message. If it does not follow the last one, read the stream first."""
        position = delivery.position
        if self.held is not None:
            self.held.append(delivery)
        elif position is None:
            self._deliver(delivery)
        elif position.epoch == self.epoch and position.offset <= self.last:
            return  # already read from the stream
        elif position.epoch == self.epoch and self._follows(delivery.previous):
            self.last = position.offset
            self._deliver(delivery)
        else:
            self.hold()
            self.receive(delivery)

    def _follows(self, previous: int | None) -> bool:
        return previous == self.last or (not previous and self.last % START_STEP == 0)

    def take_held(self) -> list[Delivery]:
        """Take the held messages. A page that is read after this contains the stored ones."""
        held, self.held = self.held, collections.deque(maxlen=MAX_HELD)
        return list(held or ())

    def put_back(self, held: Iterable[Delivery]) -> None:
        """Hold messages from `take_held` again, before those that arrived meanwhile."""
        later = self.held or ()
        self.held = collections.deque((*held, *later), maxlen=MAX_HELD)

    def begin_again(self, page: Page) -> bool:
        """Follow the stream to its new epoch; whether the page continues after the last offset.

        It does if both epochs have the same first part: then offsets continue, see `script`.
        Otherwise the stream must be read from its beginning.
        """
        continues = page.position.epoch.partition("-")[0] == self.epoch.partition("-")[0]
        self.last = min(self.last, page.position.offset) if continues else 0
        self.epoch = page.position.epoch
        return continues

    def fill(self, page: Page) -> None:
        """Deliver the messages of a page after `last`."""
        for delivery in page.messages:
            assert delivery.position is not None
            if delivery.position.offset > self.last:
                self.last = delivery.position.offset
                self._deliver(delivery)

    def release(self, last: int, volatile: Iterable[Delivery] = ()) -> None:
        """Deliver held messages; all stored ones up to `last` are delivered or evicted.

        `volatile` are unstored messages that were held before the others.
        """
        self.last = max(self.last, last)
        for delivery in volatile:
            self._deliver(delivery)
        held, self.held = self.held, None
        for delivery in held or ():
            self.receive(delivery)


class RedisSubscription:
    """A subscription to a subject or a filter."""

    __slots__ = (
        "__weakref__",
        "_cursors",
        "_handler",
        "_leave",
        "_live",
        "_recheck",
        "command",
        "name",
        "on_gap",
        "pattern",
        "position",
        "subject",
    )  # fmt: skip

    def __init__(
        self,
        pattern: Pattern,
        handler: Handler,
        live: str,
        *,
        exact: str,
        recheck: Callable[[Cursor], None],
        leave: Callable[["RedisSubscription"], None],
    ) -> None:
        """`live` is the prefix of the subjects of streams.

        `exact` is the command for exact subjects: SUBSCRIBE or SSUBSCRIBE.
        """
        self.subject = pattern.text
        self.pattern = pattern
        self.position: Position | None = None
        self.on_gap: OnGap | None = None
        self.command = exact if pattern.is_exact else "PSUBSCRIBE"
        self.name = pattern.text.encode() if pattern.is_exact else glob_of(pattern)
        self._handler: Handler | None = handler
        self._live = live
        self._recheck = recheck
        self._leave = leave
        self._cursors: collections.OrderedDict[str, Cursor] = collections.OrderedDict()
        if pattern.is_exact and pattern.text.startswith(live):
            self._cursors[pattern.text] = Cursor(
                pattern.text, self._deliver, recheck, self.report_gap, None
            )

    @property
    def key(self) -> tuple[str, bytes]:
        """The command and name of the subscription at the server."""
        return self.command, self.name

    @property
    def cursor(self) -> Cursor | None:
        """The cursor of an exact subscription to a stream; None for others."""
        return self._cursors.get(self.subject)

    def begin_at(self, position: Position) -> None:
        """Set the position where it begins."""
        self.position = position
        if self.cursor is not None:
            self.cursor.begin_at(position)

    def receive(self, delivery: Delivery) -> None:
        """Take a message that matches the subscription's name or glob at the server."""
        if self._handler is None:
            return
        if (cursor := self._cursors.get(delivery.subject)) is not None:
            if not self.pattern.is_exact:
                self._cursors.move_to_end(delivery.subject)
            cursor.receive(delivery)
        elif self.pattern.is_exact:
            self._deliver(delivery)
        elif self.pattern.match(delivery.subject) is not None:
            if delivery.position is not None:
                self._follow(delivery.subject, delivery.position)
            self._deliver(delivery)

    def hold(self) -> None:
        """Hold new messages until missed ones were read."""
        for cursor in self._cursors.values():
            cursor.hold()

    def report_gap(self) -> None:
        """Report that messages may be lost, or that the history of the subject was replaced."""
        if self.cursor is not None:
            self.position = self.cursor.position
        if self._handler is not None and self.on_gap is not None:
            self.on_gap()

    async def aclose(self) -> None:
        """Unsubscribe: the handler is not called any more."""
        if self._handler is not None:
            self.detach()
            self._leave(self)

    def detach(self) -> None:
        """Stop delivering, without unsubscribing at the server."""
        self._handler = None
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()

    def _follow(self, subject: str, position: Position) -> None:
        self._cursors[subject] = Cursor(
            subject, self._deliver, self._recheck, self.report_gap, position
        )
        if len(self._cursors) > MAX_CHANNELS:
            self._cursors.popitem(last=False)

    def _deliver(self, delivery: Delivery) -> None:
        if self._handler is None:
            return
        try:
            self._handler(delivery)
        except BaseException as exc:  # a handler may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", delivery.subject)
