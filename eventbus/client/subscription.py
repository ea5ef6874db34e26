"""A subscription of the client: to one channel, or to the channels of a pattern."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from eventbus.channels import Pattern
from eventbus.client.cursor import Cursor, Phase
from eventbus.client.frames import ClientMessage, Frame, HistoryPage, Member
from eventbus.client.handlers import ANY, Handlers
from eventbus.client.inbox import Ended, Inbox
from eventbus.errors import ClientClosed, ClientError, ClientRefused
from eventbus.events import Event
from eventbus.messages import encode_data
from eventbus.tasks import STUBBORN_S

__all__ = ["ChannelHandlers", "Subscription", "SubscriptionOwner"]

_log = logging.getLogger(__name__)

Handler = Callable[..., Any]
ChannelHandlers = Handler | Mapping[str | type[Event], Handler]
"""A handler for every message, or handlers by event name or type."""


class SubscriptionOwner(Protocol):
    """What a subscription needs of its client."""

    async def ask(self, action: str, **fields: Any) -> Frame:
        """Send an action to the edge; returns its answer. Raises ClientError."""

    async def leave(self, subscription: "Subscription") -> None:
        """End a subscription, here and at the edge."""

    def settle(self, subscription: "Subscription") -> None:
        """Join or leave the channel at the edge, as the subscription's phase says."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[Any] | None":
        """Run a subscription's handlers in the background; None in a closed client."""


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
    """Delivers a channel's messages to handlers, to `async for message in subscription`, or both.

    It outlives connections. Its handlers run one after another, in the order of the messages, and
    independently of other subscriptions.
    """

    def __init__(
        self, client: SubscriptionOwner, channel: str, *, history: int = 0, buffer: int = 1000
    ) -> None:
        """Use `EdgeClient.subscribe` instead. Raises InvalidPattern."""
        self.channel = channel
        self.pattern = Pattern(channel)
        self.cursor = Cursor(history=history, resumable=self.pattern.is_exact)
        self.overflows = 0
        """How many times a slow consumer made the subscription leave messages in the stream."""
        self.dropped = 0
        """Unstored messages lost to a slow consumer, and messages that nobody consumed."""
        self.error: ClientError | None = None
        """Why it ended, unless this side ended it."""
        self.is_held = False
        """Whether the edge has this subscription, on the current connection."""
        self._client = client
        self._name = f"subscription to {channel}"
        self._handlers = Handlers(self._name)
        self._limit = buffer
        self._for_handlers = Inbox(buffer, self._make_room)
        self._for_iteration = Inbox(buffer, self._make_room)
        self._is_iterated = False
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joined.add_done_callback(_retrieve)
        self._worker: asyncio.Task[Any] | None = None

    @property
    def is_active(self) -> bool:
        """Whether the subscription receives messages now."""
        return self.cursor.phase is Phase.ACTIVE

    @property
    def recovered(self) -> bool | None:
        """Whether the last reconnect recovered all messages; None before the first one."""
        return self.cursor.recovered

    @property
    def gaps(self) -> int:
        """How many times messages were lost for good."""
        return self.cursor.gaps

    @property
    def failures(self) -> int:
        """How many times a handler raised, or data did not fit its type."""
        return self._handlers.failures

    def on(
        self,
        event: str | type[Event],
        handler: Handler,
        *,
        type: Any = None,  # noqa: A002 - as msgspec calls it
    ) -> Callable[[], None]:
        """Call `handler` for each event of that name or type; returns a function that removes it.

        For an Event type it is called as `handler(event)` or `handler(event, context)`, with an
        EventContext. For a name it is called as `handler(data)` or `handler(data, message)`; with
        `type`, the data is a value of that type. `*` means every message of the application. The
        edge's own events have names too: `eb:subscribed`, `eb:unsubscribed`,
        `eb:presence.joined`, …

        A handler may be a coroutine function. Its exceptions are logged and counted, and later
        messages are delivered all the same. Raises TypeError if it is not callable, and
        EventDefinitionError for an Event that cannot be read.
        """
        remove = self._handlers.add(event, handler, type, self.channel)
        if self._worker is None and self.cursor.phase is not Phase.ENDED:
            self._begin_work()
        return remove

    def add(self, handlers: ChannelHandlers | None) -> None:
        """Add the handlers that `EdgeClient.subscribe` takes."""
        if callable(handlers):
            self.on(ANY, handlers)
        elif handlers is not None:
            for event, handler in handlers.items():
                self.on(event, handler)

    async def whisper(self, event: str, data: Any = None) -> None:
        """Send a client event to the channel's other connections; they get `client-<event>`.

        Raises ClientRefused, ClientDisconnected, ClientClosed, and EncodingError for data that is
        not JSON.
        """
        raw = msgspec.Raw(encode_data(data, f"the data of client event {event!r}"))
        await self._client.ask("whisper", channel=self.channel, event=event, data=raw)

    async def presence(self, info: Mapping[str, Any] | None = None) -> list[Member]:
        """The members of a presence channel; `info` is merged into this member's own first.

        Raises as `whisper` does.
        """
        data = None
        if info is not None:
            data = msgspec.Raw(encode_data(dict(info), "the info of a member"))
        answer = await self._client.ask("presence", channel=self.channel, data=data)
        return list(msgspec.json.decode(answer.data, type=_Members).members)

    async def history(self, limit: int = 100, *, since: int | None = None) -> HistoryPage:
        """The first `limit` stored messages after the offset `since`; without it, the last ones.

        Raises as `whisper` does.
        """
        data = {"limit": limit} if since is None else {"limit": limit, "since": since}
        answer = await self._client.ask("history", channel=self.channel, data=data)
        page = msgspec.json.decode(answer.data, type=_Page)
        messages = tuple(ClientMessage.of(frame) for frame in page.messages)
        return HistoryPage(messages=messages, offset=page.offset, epoch=page.epoch)

    async def unsubscribe(self) -> None:
        """Leave the channel. Messages that wait for handlers are dropped.

        Those that wait for iteration are not. Leaving again is harmless.
        """
        await self._client.leave(self)

    async def messages(self) -> AsyncIterator[ClientMessage]:
        """The application's messages, in order, until the subscription ends.

        Raises ClientRefused when the edge ends the subscription, ClientClosed when the edge closes
        the client. It simply ends when this side ended it.
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
        """Take the edge's answer to the join."""
        start = _decode_position(frame.data)
        self.is_held = True
        if self.cursor.phase is not Phase.ASKED:  # this side has left meanwhile
            self._client.settle(self)
            return
        self.cursor.subscribed(
            start.offset, start.epoch, recovered=start.recovered, mark=start.mark
        )
        if self.cursor.recovered is False:
            self._log_gap()
        if not self._joined.done():
            self._joined.set_result(None)
        self._offer_event(frame)

    def _log_gap(self) -> None:
        _log.warning("the %s has lost messages that cannot be recovered", self._name)

    def receive(self, frame: Frame) -> None:
        """Take a frame of the channel."""
        if frame.is_system:
            if frame.event == "eb:subscribed":
                self._note_gap(_decode_position(frame.data))
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
        if is_wanted and not self._for_iteration.offer(
            message
        ):  # nobody iterates: keep the newest messages
            self._for_iteration.drop_oldest()
            self._for_iteration.offer(message)
            self._count_dropped()

    def _note_gap(self, start: _Position) -> None:
        # A subscription that is behind asks again from its own position.
        if start.recovered is False and self.cursor.phase is Phase.ACTIVE:
            self.cursor.missed(start.offset, start.epoch, start.mark)
            self._log_gap()

    def lost(self) -> None:
        """The connection was lost."""
        self.is_held = False
        self.cursor.lost()

    def end(self, error: ClientError | None) -> None:
        """End it; `error` is the reason, unless this side ended it."""
        if self.cursor.phase is Phase.ENDED:
            return
        self.cursor.phase = Phase.ENDED
        self.error = error
        if not self._joined.done():
            self._joined.set_exception(
                error or ClientClosed(f"the {self._name} was ended", close_code=1000)
            )
        self._for_iteration.end(error)
        self._for_handlers.end(error)

    async def aclose(self) -> None:
        """End it, and cancel the running handler, unless that is the caller."""
        self.end(None)
        worker, self._worker = self._worker, None
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()
            await asyncio.wait({worker}, timeout=STUBBORN_S)  # its owner reports its faults

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
            _log.warning(
                "the %s drops messages that nobody consumes: %d so far", self._name, self.dropped
            )

    def _fall_behind(self) -> None:
        self.overflows += 1
        self.cursor.fall_behind()
        _log.warning(
            "the consumer of the %s is too slow: %d messages wait, later ones stay in the stream",
            self._name,
            self._limit,
        )
        self._client.settle(self)

    def _make_room(self) -> None:
        inboxes: Iterable[Inbox] = (self._for_handlers, self._for_iteration)
        if self.cursor.phase is Phase.BEHIND and all(inbox.has_room for inbox in inboxes):
            self.cursor.wait()
            self._client.settle(self)

    def _begin_work(self) -> None:
        self._worker = self._client.start(self._work(), f"eventbus {self._name}")
        if self._worker is not None:
            self._worker.add_done_callback(self._resume_work)

    def _resume_work(self, worker: "asyncio.Task[Any]") -> None:
        """Handle messages in a new task if a handler has cancelled the task that ran it."""
        if worker is self._worker and worker.cancelled() and self.cursor.phase is not Phase.ENDED:
            self._handlers.failures += 1
            _log.error("a handler of %s cancelled the task that runs it", self._name)
            self._begin_work()

    async def _work(self) -> None:
        with contextlib.suppress(Ended):
            while True:
                await self._handlers.call(await self._for_handlers.take())

    def refuse(self, error: ClientRefused) -> None:
        """The edge refuses the subscription, or has ended it."""
        if self._joined.done():
            _log.warning("the %s has ended: %s", self._name, error)
        self.end(error)


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Mark the exception as seen: callers of `joined` raise it, and there may be none."""
    if not future.cancelled():
        future.exception()
