"""A channel's stored messages for clients that resume; concurrent reads are shared."""

import asyncio
import collections
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import (
    Final,
    NamedTuple,
    cast,
)

from eventbus.attempts import SharedAttempt
from eventbus.channels import Pattern, Subjects
from eventbus.drivers import (
    Capability,
    Delivery,
    Driver,
    FollowedReads,
    HistoryDriver,
    MarkedPosition,
    Page,
    PatternHistoryDriver,
    Position,
    mark_of,
    read_from,
)
from eventbus.errors import ConnectionFailed, InvalidChannel
from eventbus_edge.delivery.hub import Backlog, Passed
from eventbus_edge.delivery.wire import Wire
from eventbus_edge.protocols import ChannelMessage, Subscribe, Subscribed, SubscribedPattern

__all__ = ["MAX_PAGE_BYTES", "CaughtUp", "History", "HistoryRead", "OnRead", "Stored", "ignore"]


PAGE: Final = 500
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
MAX_CATCH_UP_BYTES: Final = 64 * 1024 * 1024
"""What a node keeps in memory for one client that resumes; beyond, it is not recovered."""
MAX_PATTERN_MESSAGES: Final = 10_000
"""How many messages of a pattern a client may miss: with more, it is not recovered."""
FRESH_S: Final = 1.0
"""How long a read also serves later clients, while nothing is delivered on its channel."""
MAX_FRESH: Final = 1000
MAX_FRESH_BYTES: Final = 32 * 1024 * 1024
"""Of all fresh reads; further ones serve only the clients that wait for them."""
QUERIES: Final = 2
"""Pages read at once for clients that ask for history, however many do: joining goes first."""
_TURNS: Final = 16

ToMessage = Callable[[str, Delivery], ChannelMessage | None]
MostHistory = Callable[[str], int | None]
"""How many stored messages of a channel clients may read; None for all of them."""
PositionOf = Callable[[str], Position | None]
OnRead = Callable[[int], object]


class _Key(NamedTuple):
    """Which messages are read; equal reads are shared."""

    subject: str
    """A live subject, or the filter of a pattern."""
    after: Position | int | None
    mark: str | None
    """That of `after`, by which equal positions may differ."""
    limit: int
    is_pattern: bool = False


_FreshKey = tuple[_Key, Position | None, str | None]


def ignore(_messages: int) -> None:
    """An OnRead for reads that are not counted."""


class Stored(list[ChannelMessage]):
    """Stored messages, checked and encoded once for all clients that share a read."""

    __slots__ = ("_joined", "size")

    def __init__(self, messages: Iterable[ChannelMessage] = ()) -> None:
        super().__init__(messages)
        self.size = sum(len(message.body) for message in self)
        self._joined: dict[Wire, tuple[bytes, int]] = {}

    def joined(self, wire: Wire) -> tuple[bytes, int]:
        """The frames of all messages for a shared wire as one, and their number."""
        found = self._joined.get(wire)
        if found is None:
            frames = [frame for message in self if (frame := wire.message(message))]
            found = self._joined[wire] = b"".join(frames), len(frames)
        return found


class HistoryRead(NamedTuple):
    """Stored messages, and the position of the stream: None if none are stored."""

    messages: list[ChannelMessage]
    position: Position | None
    complete: bool
    """False if messages after the given offset are no longer stored, or may not be."""


class CaughtUp(NamedTuple):
    """Where a subscription begins, the stored messages after that, and whether none is missing."""

    start: Position | None
    messages: Stored
    recovered: bool | None
    """None when no resume was asked for."""
    last: int
    """Messages up to this offset are in `messages`, or before `start`."""

    def live(self, backlog: Backlog, live: Position | None) -> list[Passed]:
        """The backlog without what is in `messages`; volatile messages and gaps are included.

        A gap that ends before `last` is left out: the messages up to there were read. `live` is the
        channel's position. Once that is in the history of `start`, what came from an earlier one is
        left out, too: a client must not get it after a position in a later history. Until then,
        messages arrive as those of the earlier history, although `messages` may have them.
        """
        if not backlog.messages:
            return []
        start = self.start
        is_reached = start is not None and live is not None and live.epoch == start.epoch
        marks = {(each.position, each.mark) for each in self.messages if each.mark is not None}

        def is_new(passed: Passed) -> bool:
            position = passed.position
            if position is None or start is None:
                return True
            if position.epoch != start.epoch:
                known = Position(position.offset, start.epoch), getattr(passed, "mark", None)
                return not is_reached and known not in marks
            if isinstance(passed, SubscribedPattern):
                return True
            return position.offset + isinstance(passed, Subscribed) > self.last

        return [self._as_of_last(one) for one in backlog.messages if is_new(one)]

    def _as_of_last(self, passed: Passed) -> Passed:
        """A notice about a pattern does not say where its gap ends: it continues after `last`."""
        if not isinstance(passed, SubscribedPattern) or self.start is None:
            return passed
        position = passed.position
        if position is None or position.epoch != self.start.epoch or position.offset >= self.last:
            return passed
        return passed._replace(position=Position(self.last, self.start.epoch))

    def ahead_of(self, live: Position | None) -> Position | None:
        """The last position in `messages`, if the bus has not delivered up to there yet."""
        if self.start is None or live is None or live.epoch != self.start.epoch:
            return None
        return Position(self.last, live.epoch) if self.last > live.offset else None


class History:
    """Reads stored messages through the driver, if it stores any."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        to_message: ToMessage,
        most_history: MostHistory = lambda _channel: None,
        position: PositionOf = lambda _channel: None,
    ) -> None:
        """`to_message` checks a delivery, and returns None if it is not a message.

        `position` returns that of a subscribed channel, after which its messages are delivered.
        """
        able = driver.capabilities
        self._driver = cast(HistoryDriver, driver) if Capability.HISTORY in able else None
        self._patterns = (
            cast(PatternHistoryDriver, driver) if Capability.PATTERN_HISTORY in able else None
        )
        self._most_history = most_history
        self._subjects = subjects
        self._to_message = to_message
        self._position = position
        self._fresh: dict[_FreshKey, _Read] = {}
        self._fresh_bytes = 0
        self._joins, self._queries = _Queue(_TURNS), _Queue(QUERIES)

    async def page(
        self,
        channel: str,
        since: int | None,
        limit: int,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        on_read: OnRead = ignore,
    ) -> HistoryRead:
        """The first `limit` messages after the offset `since`; without it, the last `limit`.

        At most as many as fit into `max_bytes`, but at least one. `on_read` gets the number of
        messages of each page that is read. Raises an EventBusError.
        """
        if self._driver is None:
            return HistoryRead([], None, complete=True)
        key = _Key(self._subjects.live(channel), since, None, limit)
        page, messages = await self._read(key, on_read, self._queries)
        if since is None:
            fitting = _fitting(reversed(messages), max_bytes)[::-1]
        else:
            fitting = _fitting(messages, max_bytes)
        return HistoryRead(fitting, page.position, page.complete)

    async def catch_up(
        self,
        command: Subscribe,
        position: Position | None,
        *,
        most: int | None = None,
        on_read: OnRead = ignore,
    ) -> CaughtUp:
        """The first messages for a client that resumes, or asks for history.

        `position` is that of the channel. A client that missed more than `most` messages, or than
        MAX_CATCH_UP_BYTES, is not recovered. From before the call, the caller keeps live messages
        in a Backlog, so that none is lost in between. Raises an EventBusError.
        """
        resume = command.resume
        if self._driver is None or position is None:
            return CaughtUp(position, Stored(), None if resume is None else False, 0)
        if resume is not None and most == 0:
            return CaughtUp(position, Stored(), recovered=False, last=position.offset)
        if resume is None:
            return await self._last(command, position, on_read)
        return await self._after(command.channel, resume, most, position, on_read)

    async def catch_up_pattern(
        self,
        pattern: Pattern,
        resume: Position,
        position: Position | None,
        *,
        on_read: OnRead = ignore,
    ) -> CaughtUp:
        """The messages that a client has missed on all channels of a pattern since `resume`.

        `position` is that of the pattern. A client that missed more than MAX_PATTERN_MESSAGES, than
        MAX_CATCH_UP_BYTES, or than the rule of a channel allows, is not recovered. The caller keeps
        live messages as for `catch_up`. Raises an EventBusError.
        """
        if self._patterns is None or position is None:
            return CaughtUp(position, Stored(), recovered=False, last=0)
        filter_ = self._subjects.live_filter(pattern)
        key = _Key(filter_, resume, mark_of(resume), MAX_PATTERN_MESSAGES, is_pattern=True)
        page, messages = await self._read(key, on_read, self._joins)
        last = page.position
        if not page.complete or resume.offset > last.offset:
            return CaughtUp(last, Stored(), recovered=False, last=last.offset)
        start = _position(resume.offset, last.epoch, mark_of(resume))
        return CaughtUp(start, messages, recovered=True, last=last.offset)

    async def _last(self, command: Subscribe, at: Position, on_read: OnRead) -> CaughtUp:
        key = _Key(self._subjects.live(command.channel), None, None, command.history)
        page, messages = await self._read_at(at, key, on_read)
        last = page.position
        if not messages or messages[0].position is None:
            return CaughtUp(last, Stored(), None, last.offset)
        start = Position(messages[0].position.offset - 1, last.epoch)
        return CaughtUp(start, messages, None, last.offset)

    async def _after(
        self, channel: str, resume: Position, most: int | None, at: Position, on_read: OnRead
    ) -> CaughtUp:
        messages: Stored | None = None
        reached, mark = resume, mark_of(resume)
        subject = self._subjects.live(channel)
        while True:
            key = _Key(subject, reached, mark_of(reached), PAGE)
            page, new = await self._read_at(at, key, on_read)
            last = page.position
            # Checked for each page: messages may have been evicted since the previous one.
            if not page.complete or reached.offset > last.offset:
                return CaughtUp(last, Stored(), recovered=False, last=last.offset)
            messages = new if messages is None else Stored((*messages, *new))
            if messages.size > MAX_CATCH_UP_BYTES or (most is not None and len(messages) > most):
                return CaughtUp(last, Stored(), recovered=False, last=last.offset)
            if len(page.messages) < PAGE:
                start = _position(resume.offset, last.epoch, mark)
                return CaughtUp(start, messages, recovered=True, last=last.offset)
            final = page.messages[-1]
            assert final.position is not None, "a stored message has a position"
            reached = _position(*final.position, final.time)

    async def _read_at(self, at: Position, key: _Key, on_read: OnRead) -> "_Read":
        """A page for a client that joins while its channel's position is `at`.

        When many clients come back at once, one read serves those of a second: a page is as good as
        new as long as the channel is where it was before the page was read. Whatever was stored
        since then is still to be delivered.
        """
        fresh_key = key, at, mark_of(at)
        read = self._fresh.get(fresh_key)
        if read is not None:
            on_read(len(read.page.messages))
            return read
        read = await self._read(key, on_read, self._joins)
        size = read.messages.size
        is_full = fresh_key in self._fresh or len(self._fresh) >= MAX_FRESH
        if not is_full and self._fresh_bytes + size <= MAX_FRESH_BYTES:
            self._fresh[fresh_key] = read
            self._fresh_bytes += size
            asyncio.get_running_loop().call_later(FRESH_S, self._forget, fresh_key)
        return read

    def _forget(self, key: _FreshKey) -> None:
        self._fresh_bytes -= self._fresh.pop(key).messages.size

    async def _read(self, key: _Key, on_read: OnRead, queue: "_Queue") -> "_Read":
        """A page that is read after this call; concurrent calls for the same page share it."""
        task = queue.waiting.get(key)
        if task is None:
            task = queue.waiting[key] = asyncio.create_task(self._run(key, queue))
            task.add_done_callback(_retrieve)
        read = await asyncio.shield(task)
        on_read(len(read.page.messages))
        return read

    async def _run(self, key: _Key, queue: "_Queue") -> "_Read":
        task = asyncio.current_task()
        try:
            async with queue.turns[hash(key.subject) % len(queue.turns)].turn():
                del queue.waiting[key]  # too old for calls from here on
                page = await self._page(key, is_followed=queue is self._joins)
                messages = Stored(self._decode(key, page.messages))
                if key.after is None and len(messages) < len(page.messages):
                    # Earlier messages take the place of what is in quarantine.
                    page = await self._page(key._replace(limit=max(key.limit, PAGE)))
                    found = list(self._decode(key, page.messages))
                    messages = Stored(found[-key.limit :])
            if key.is_pattern and not self._is_allowed(messages):
                return _Read(page._replace(complete=False), Stored())
            return _Read(page, messages)
        finally:
            if queue.waiting.get(key) is task:  # it failed while it waited for its turn
                del queue.waiting[key]

    async def _page(self, key: _Key, *, is_followed: bool = False) -> Page:
        """A page; if the channel `is_followed`, those who asked for it get what follows live."""
        subject, after, _, limit, is_pattern = key
        assert self._driver is not None
        if after is None and is_followed and isinstance(self._driver, FollowedReads):
            # Not when it was asked for: what was delivered meanwhile must be in the page.
            followed = self._position(self._subjects.channel_of(subject))
            if followed is not None:
                return await self._driver.read_last(subject, limit, followed)
        if not isinstance(after, Position):
            return await self._driver.read(subject, after=after, limit=limit)
        if not is_pattern:
            return await read_from(self._driver, subject, after, limit)
        assert self._patterns is not None
        return await self._patterns.read_pattern(
            subject, after, limit=limit, max_bytes=MAX_CATCH_UP_BYTES
        )

    def _decode(self, key: _Key, deliveries: Sequence[Delivery]) -> Iterator[ChannelMessage]:
        """Check stored messages; those that clients do not get live either are left out."""
        channel = None if key.is_pattern else self._subjects.channel_of(key.subject)
        for delivery in deliveries:
            try:
                found = channel or self._subjects.channel_of(delivery.subject)
            except InvalidChannel:  # clients cannot join it
                continue
            message = self._to_message(found, delivery)
            if message is not None:
                yield message

    def _is_allowed(self, messages: Stored) -> bool:
        """Whether the rules let clients read that much of each channel."""
        counts = collections.Counter(message.channel for message in messages)
        return all(
            (most := self._most_history(channel)) is None or count <= most
            for channel, count in counts.items()
        )


class _Queue:
    """Reads that take turns by channel, so that calls in the meantime share the next one."""

    __slots__ = ("turns", "waiting")

    def __init__(self, at_once: int) -> None:
        self.turns = [SharedAttempt(ConnectionFailed) for _ in range(at_once)]
        self.waiting: dict[_Key, asyncio.Task[_Read]] = {}


class _Read(NamedTuple):
    page: Page
    messages: Stored


def _position(offset: int, epoch: str, mark: str | None) -> Position:
    return MarkedPosition(offset, epoch, mark) if mark else Position(offset, epoch)


def _fitting(messages: Iterable[ChannelMessage], room: int) -> list[ChannelMessage]:
    fitting: list[ChannelMessage] = []
    for message in messages:
        room -= len(message.body)
        if fitting and room < 0:
            break
        fitting.append(message)
    return fitting


def _retrieve(task: "asyncio.Task[_Read]") -> None:
    """Mark the exception as retrieved: else asyncio logs it if all waiters were cancelled."""
    if not task.cancelled():
        task.exception()
