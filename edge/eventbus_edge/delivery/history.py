"""A channel's stored messages for clients that resume; concurrent reads are shared."""

import asyncio
from collections.abc import (
    Callable,
    Iterable,
)
from typing import (
    Final,
    NamedTuple,
    cast,
)

from eventbus.channels import Subjects
from eventbus.drivers.base import (
    Capability,
    Delivery,
    Driver,
    HistoryDriver,
    Page,
    Position,
)
from eventbus.drivers.marks import (
    MarkedPosition,
    mark_of,
    read_from,
)
from eventbus_edge.delivery.hub import Backlog
from eventbus_edge.protocols.vocabulary import (
    ChannelMessage,
    PresenceChanged,
    Subscribe,
    Subscribed,
)

__all__ = ["MAX_PAGE_BYTES", "CaughtUp", "History", "HistoryRead", "OnRead", "ignore"]


PAGE: Final = 500
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
MAX_CATCH_UP_BYTES: Final = 64 * 1024 * 1024
"""What a node keeps in memory for one client that resumes; beyond, it is not recovered."""
_TURNS: Final = 16

_Key = tuple[str, Position | int | None, str | None, int]
ToMessage = Callable[[str, Delivery], ChannelMessage | None]
OnRead = Callable[[int], object]


def ignore(_messages: int) -> None:
    """An OnRead for reads that are not counted."""


class HistoryRead(NamedTuple):
    """Stored messages, and the position of the stream: None if none are stored."""

    messages: list[ChannelMessage]
    position: Position | None
    complete: bool
    """False if messages after the given offset are no longer stored, or may not be."""


class CaughtUp(NamedTuple):
    """Where a subscription begins, the stored messages after that, and whether none is missing."""

    start: Position | None
    messages: list[ChannelMessage]
    recovered: bool | None
    """None when no resume was asked for."""
    last: int
    """Messages up to this offset are in `messages`, or before `start`."""

    def live(self, backlog: Backlog) -> list[ChannelMessage | PresenceChanged | Subscribed]:
        """The backlog without what is in `messages`; volatile messages and gaps are included.

        A gap that ends before `last` is left out: the messages up to there were read.
        """
        return [one for one in backlog.messages if self._is_new(one)]

    def _is_new(self, passed: ChannelMessage | PresenceChanged | Subscribed) -> bool:
        position, start = passed.position, self.start
        if position is None or start is None or position.epoch != start.epoch:
            return True
        reached = position.offset + isinstance(passed, Subscribed)
        return reached > self.last

    def ahead_of(self, live: Position | None) -> Position | None:
        """The last position in `messages`, if the bus has not delivered up to there yet."""
        if self.start is None or live is None or live.epoch != self.start.epoch:
            return None
        return Position(self.last, live.epoch) if self.last > live.offset else None


class History:
    """Reads stored messages through the driver, if it stores any."""

    def __init__(self, driver: Driver, subjects: Subjects, to_message: ToMessage) -> None:
        """`to_message` checks a delivery, and returns None if it is not a message."""
        keeps = Capability.HISTORY in driver.capabilities
        self._driver = cast(HistoryDriver, driver) if keeps else None
        self._subjects = subjects
        self._to_message = to_message
        self._waiting: dict[_Key, asyncio.Task[Page]] = {}
        # The reads of a channel take turns, so that calls in the meantime share the next one.
        self._turns = [asyncio.Lock() for _ in range(_TURNS)]

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
        page = await self._read((channel, since, None, limit), on_read)
        messages = self._messages(channel, page)
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
            return CaughtUp(position, [], None if resume is None else False, 0)
        if resume is not None and most == 0:
            return CaughtUp(position, [], recovered=False, last=position.offset)
        if resume is None:
            return await self._last(command, on_read)
        return await self._after(command.channel, resume, most, on_read)

    async def _last(self, command: Subscribe, on_read: OnRead) -> CaughtUp:
        page = await self._read((command.channel, None, None, command.history), on_read)
        last = page.position
        if not page.messages or page.messages[0].position is None:
            return CaughtUp(last, [], None, last.offset)
        start = Position(page.messages[0].position.offset - 1, last.epoch)
        return CaughtUp(start, self._messages(command.channel, page), None, last.offset)

    async def _after(
        self, channel: str, resume: Position, most: int | None, on_read: OnRead
    ) -> CaughtUp:
        messages: list[ChannelMessage] = []
        place, room, mark = resume, MAX_CATCH_UP_BYTES, mark_of(resume)
        while True:
            page = await self._read((channel, place, mark_of(place), PAGE), on_read)
            last = page.position
            # Checked for each page: messages may have been evicted since the previous one.
            if not page.complete or place.offset > last.offset:
                return CaughtUp(last, [], recovered=False, last=last.offset)
            new = self._messages(channel, page)
            messages += new
            room -= sum(len(message.body) for message in new)
            if room < 0 or (most is not None and len(messages) > most):
                return CaughtUp(last, [], recovered=False, last=last.offset)
            if len(page.messages) < PAGE:
                start = _position(resume.offset, last.epoch, mark)
                return CaughtUp(start, messages, recovered=True, last=last.offset)
            final = page.messages[-1]
            assert final.position is not None, "a stored message has a position"
            place = _position(*final.position, final.time)

    def _messages(self, channel: str, page: Page) -> list[ChannelMessage]:
        made = (self._to_message(channel, delivery) for delivery in page.messages)
        return [message for message in made if message is not None]

    async def _read(self, key: _Key, on_read: OnRead) -> Page:
        """A page that is read after this call; concurrent calls for the same page share it."""
        task = self._waiting.get(key)
        if task is None:
            task = self._waiting[key] = asyncio.create_task(self._run(key))
            task.add_done_callback(_retrieve)
        page = await asyncio.shield(task)
        on_read(len(page.messages))
        return page

    async def _run(self, key: _Key) -> Page:
        channel, after, _, limit = key
        subject = self._subjects.live(channel)
        async with self._turns[hash(channel) % _TURNS]:
            del self._waiting[key]  # too old for calls from here on
            assert self._driver is not None
            if isinstance(after, Position):
                return await read_from(self._driver, subject, after, limit)
            return await self._driver.read(subject, after=after, limit=limit)


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


def _retrieve(task: "asyncio.Task[Page]") -> None:
    """Mark the exception as retrieved: else asyncio logs it if all waiters were cancelled."""
    if not task.cancelled():
        task.exception()
