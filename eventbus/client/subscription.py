"""One channel, or the channels of a pattern, as a client's user sees them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventbus.channels import Pattern
from eventbus.client.cursor import Cursor, Phase
from eventbus.client.frames import ClientMessage, Frame, HistoryPage, Member
from eventbus.client.handlers import ANY, Handlers
from eventbus.client.inbox import Ended, Inbox
from eventbus.errors import ClientClosed, ClientError, ClientRefused
from eventbus.events import Event
from eventbus.messages import encode_data

if TYPE_CHECKING:
    from eventbus.client.client import EdgeClient

__all__ = ["ChannelHandlers", "Subscription"]

_log = logging.getLogger(__name__)

Handler = Callable[..., Any]
ChannelHandlers = Handler | Mapping[str | type[Event], Handler]
"""A handler for every message, or handlers by event name or type."""


class _Position(msgspec.Struct):
    offset: int | None = None
    epoch: str | None = None
    mark: str | None = None
    recovered: bool | None = None


class _Members(msgspec.Struct):
    members: tuple[Member, ...] = ()


class _Page(msgspec.Struct):
    messages: tuple[Frame, ...] = ()
    offset: int | None = None
    epoch: str | None = None


_decode_position: Final = msgspec.json.Decoder(_Position).decode


class Subscription:
    """What a channel's messages go to: handlers, or `async for message in subscription`.

    It outlives connections. Handlers run one after another, in the messages' order; other
    subscriptions do not wait for them. It is read by handlers, or iterated over, or both.
    """

    def __init__(
        self, client: "EdgeClient", channel: str, *, history: int = 0, buffer: int = 1000
    ) -> None:
        """`EdgeClient.subscribe` makes one. Raises InvalidPattern."""
        self.channel = channel
        self.pattern = Pattern(channel)
        self.cursor = Cursor(history=history, resumable=self.pattern.is_exact)
        self.overflows = 0
        """How many times the consumer was so slow that messages had to be left in the stream."""
        self.dropped = 0
        """Messages lost to a slow consumer that no stream had, and those that nobody took."""
        self.error: ClientError | None = None
        """Why it has ended, unless by one's own wish."""
        self.is_held = False
        """Whether the edge has this subscription, on the present connection."""
        self._client = client
        self._told = f"subscription to {channel}"
        self._handlers = Handlers(self._told)
        self._limit = buffer
        self._for_handlers = Inbox(buffer, self._make_room)
        self._for_iteration = Inbox(buffer, self._make_room)
        self._is_iterated = False
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joined.add_done_callback(_retrieve)
        self._worker: asyncio.Task[None] | None = None

    @property
    def is_active(self) -> bool:
        """Whether messages come at this moment."""
        return self.cursor.phase is Phase.ACTIVE

    @property
    def recovered(self) -> bool | None:
        """Whether nothing was missed at the last reconnect; None before there was one."""
        return self.cursor.recovered

    @property
    def gaps(self) -> int:
        """How many times messages were missed that could not be had again."""
        return self.cursor.gaps

    @property
    def failures(self) -> int:
        """How many times a handler has raised, or data did not fit its type."""
        return self._handlers.failures

    def on(
        self,
        event: str | type[Event],
        handler: Handler,
        *,
        type: Any = None,  # noqa: A002 - as msgspec calls it
    ) -> Callable[[], None]:
        """Call `handler` for each event of that name or type; gives what ends it.

        By a type of Event, it is called as `handler(event)` or `handler(event, context)`, with an
        EventContext. By a name, as `handler(data)` or `handler(data, message)`; with `type`, the
        data are a value of it. `*` stands for every message, and the edge's own events have names
        too: `eb:subscribed`, `eb:unsubscribed`, `eb:presence.joined`, …

        It may be a coroutine function. What it raises is logged and counted, and stops nothing.
        Raises TypeError for no callable, EventDefinitionError for an Event that cannot be read.
        """
        remove = self._handlers.add(event, handler, type, self.channel)
        if self._worker is None and self.cursor.phase is not Phase.ENDED:
            self._begin_work()
        return remove

    def add(self, handlers: ChannelHandlers | None) -> None:
        """Add what `EdgeClient.subscribe` took."""
        if callable(handlers):
            self.on(ANY, handlers)
        elif handlers is not None:
            for event, handler in handlers.items():
                self.on(event, handler)

    async def whisper(self, event: str, data: Any = None) -> None:
        """Send a client event to the channel's other connections; they get `client-<event>`.

        Raises ClientRefused, ClientDisconnected, ClientClosed; EncodingError for data that are no
        JSON.
        """
        raw = msgspec.Raw(encode_data(data, f"the data of client event {event!r}"))
        await self._client.ask("whisper", channel=self.channel, event=event, data=raw)

    async def presence(self, info: Mapping[str, Any] | None = None) -> list[Member]:
        """Who is in a presence channel; `info` is merged into one's own first.

        Raises what `whisper` raises.
        """
        data = None
        if info is not None:
            data = msgspec.Raw(encode_data(dict(info), "the info of a member"))
        answer = await self._client.ask("presence", channel=self.channel, data=data)
        return list(msgspec.json.decode(answer.data, type=_Members).members)

    async def history(self, limit: int = 100, *, since: int | None = None) -> HistoryPage:
        """The first `limit` stored messages after the offset `since`; without it, the last ones.

        Raises what `whisper` raises.
        """
        data = {"limit": limit} if since is None else {"limit": limit, "since": since}
        answer = await self._client.ask("history", channel=self.channel, data=data)
        page = msgspec.json.decode(answer.data, type=_Page)
        messages = tuple(ClientMessage.of(frame) for frame in page.messages)
        return HistoryPage(messages=messages, offset=page.offset, epoch=page.epoch)

    async def unsubscribe(self) -> None:
        """Leave the channel. What waits for handlers is dropped, what waits for iteration is not.

        Leaving again is harmless.
        """
        await self._client.leave(self)

    async def messages(self) -> AsyncIterator[ClientMessage]:
        """The application's messages, in order, until the subscription ends.

        Raises ClientRefused when the edge takes the channel away, ClientClosed when the client
        is closed by the edge; it just ends when one's own side ended it.
        """
        self._is_iterated = True
        try:
            while True:
                yield await self._for_iteration.take()
        except Ended as ended:
            if ended.error is not None:
                raise ended.error from None
        finally:
            self._is_iterated = False

    def __aiter__(self) -> AsyncIterator[ClientMessage]:
        return self.messages()

    # For the client

    async def joined(self) -> None:
        """Wait for the first answer of the edge. Raises ClientRefused, ClientClosed."""
        await asyncio.shield(self._joined)

    def subscribed(self, frame: Frame) -> None:
        """The edge has answered the join."""
        told = _decode_position(frame.data)
        self.is_held = True
        if self.cursor.phase is not Phase.ASKED:  # one's own side has left meanwhile
            self._client.settle(self)
            return
        self.cursor.subscribed(told.offset, told.epoch, recovered=told.recovered, mark=told.mark)
        if self.cursor.recovered is False:
            self._log_gap()
        if not self._joined.done():
            self._joined.set_result(None)
        self._offer_event(frame)

    def _log_gap(self) -> None:
        _log.warning("the %s has missed messages that cannot be had again", self._told)

    def receive(self, frame: Frame) -> None:
        """Take a frame of the channel."""
        if frame.is_system:
            if frame.event == "eb:subscribed":
                self._take_news(_decode_position(frame.data))
            self._offer_event(frame)
            return
        has_room = self._has_room_for(frame)
        if not has_room and self.cursor.phase is Phase.ACTIVE:
            self._fall_behind()
        if self.cursor.phase is Phase.BEHIND:
            self.dropped += frame.offset is None or not self.pattern.is_exact
            return
        if not self.cursor.take(frame.offset, frame.epoch, frame.mark):
            return
        message = ClientMessage.of(frame, after_gap=self.cursor.take_gap())
        if self._handlers.wants(frame.event, is_system=False):
            self._for_handlers.offer(message)
        is_wanted = self._is_iterated or not self._handlers.take_messages
        if is_wanted and not self._for_iteration.offer(message):  # nobody iterates: keep the newest
            self._for_iteration.drop_oldest()
            self._for_iteration.offer(message)
            self._count_dropped()

    def _take_news(self, told: _Position) -> None:
        # Who is behind asks again from its own place.
        if told.recovered is False and self.cursor.phase is Phase.ACTIVE:
            self.cursor.missed(told.offset, told.epoch, told.mark)
            self._log_gap()

    def lost(self) -> None:
        """The connection has ended."""
        self.is_held = False
        self.cursor.lost()

    def end(self, error: ClientError | None) -> None:
        """It is over; `error` is why, where it is not one's own wish."""
        if self.cursor.phase is Phase.ENDED:
            return
        self.cursor.phase = Phase.ENDED
        self.error = error
        if not self._joined.done():
            self._joined.set_exception(
                error or ClientClosed(f"the {self._told} was ended", close_code=1000)
            )
        self._for_iteration.end(error)
        self._for_handlers.end(error)

    async def aclose(self) -> None:
        """End, and cancel the handler that runs, unless it is the caller."""
        self.end(None)
        worker, self._worker = self._worker, None
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    def _has_room_for(self, frame: Frame) -> bool:
        if self._handlers.wants(frame.event, is_system=False) and (
            len(self._for_handlers) >= self._limit
        ):
            return False
        return not self._is_iterated or len(self._for_iteration) < self._limit

    def _offer_event(self, frame: Frame) -> None:
        if self._handlers.wants(frame.event, is_system=True):
            event = msgspec.structs.replace(frame, channel=frame.channel or self.channel)
            if not self._for_handlers.offer(ClientMessage.of(event)):
                self._count_dropped()

    def _count_dropped(self) -> None:
        self.dropped += 1
        if self.dropped.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
            _log.warning("the %s drops messages that nobody takes: %d", self._told, self.dropped)

    def _fall_behind(self) -> None:
        self.overflows += 1
        self.cursor.fall_behind()
        _log.warning(
            "the %s is too slow: %d messages wait, the others stay in the stream for now",
            self._told,
            self._limit,
        )
        self._client.settle(self)

    def _make_room(self) -> None:
        inboxes: Iterable[Inbox] = (self._for_handlers, self._for_iteration)
        if self.cursor.phase is Phase.BEHIND and all(inbox.has_room for inbox in inboxes):
            self.cursor.wait()
            self._client.settle(self)

    def _begin_work(self) -> None:
        self._worker = self._client.start(self._work(), f"eventbus {self._told}")
        self._worker.add_done_callback(self._go_on)

    def _go_on(self, worker: asyncio.Task[None]) -> None:
        """Handle messages in a new task, where a handler has cancelled the one that called it."""
        if worker is self._worker and worker.cancelled() and self.cursor.phase is not Phase.ENDED:
            self._handlers.failures += 1
            _log.error("a handler of the %s cancelled the task that runs it", self._told)
            self._begin_work()

    async def _work(self) -> None:
        with contextlib.suppress(Ended):
            while True:
                await self._handlers.call(await self._for_handlers.take())

    def refuse(self, error: ClientRefused) -> None:
        """The edge does not let one in, or takes the channel away."""
        if self._joined.done():
            _log.warning("the %s has ended: %s", self._told, error)
        self.end(error)


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Mark the exception as seen: who waits raises it, and there may be nobody."""
    if not future.cancelled():
        future.exception()
