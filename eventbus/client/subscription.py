"""A subscription to one channel, or to the channels of a pattern; several may share it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from eventbus.attempts import is_power_of_two
from eventbus.client.cursor import Phase
from eventbus.client.frames import ClientMessage, Frame, HistoryPage, Member
from eventbus.client.handlers import ANY, Handlers
from eventbus.client.inbox import Ended, Inbox
from eventbus.client.joined import JoinedChannel
from eventbus.client.requests import members_in
from eventbus.errors import ClientError
from eventbus.events import Event
from eventbus.messages import encode_data
from eventbus.tasks import CANCEL_GRACE_S

__all__ = ["ChannelHandlers", "Subscription", "SubscriptionOwner"]

_log = logging.getLogger(__name__)

Handler = Callable[..., Any]
ChannelHandlers = Handler | Mapping[str | type[Event], Handler]
"""A handler for every message, or handlers by event name or type."""


class SubscriptionOwner(Protocol):
    """What a subscription needs of its client."""

    async def ask(self, action: str, **fields: Any) -> Frame:
        """Send an action to the edge; returns its answer. Raises ClientError."""

    async def presence(self, channel: str) -> list[Member]:
        """The members of a channel."""

    async def history(self, channel: str, limit: int, *, since: int | None) -> HistoryPage:
        """Stored messages of a channel."""

    async def leave(self, subscription: "Subscription") -> None:
        """End a subscription; leave the channel with the last one."""

    def settle(self, joined: JoinedChannel) -> None:
        """Join or leave the channel at the edge, as its phase says."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[Any] | None":
        """Run a subscription's handlers in the background; None in a closed client."""


class Subscription:
    """Delivers a channel's messages to handlers, to `async for message in subscription`, or both.

    It outlives connections. Its handlers run one after another, in the order of the messages, and
    independently of other subscriptions, those to the same channel included.
    """

    def __init__(
        self, client: SubscriptionOwner, joined: JoinedChannel, *, buffer: int = 1000
    ) -> None:
        """Use `EdgeClient.subscribe` instead."""
        self.channel = joined.channel
        self.pattern = joined.pattern
        self.overflows = 0
        """How many times its slow consumer made the client leave messages in the stream."""
        self.dropped = 0
        """Unstored messages lost to a slow consumer, and messages that nobody consumed."""
        self.error: ClientError | None = None
        """Why it ended, unless this side ended it."""
        self.of_channel = joined
        """The channel as the edge has it, shared with other subscriptions."""
        self._client = client
        self._gaps_before = joined.cursor.gaps
        self._is_ended = False
        self._name = joined.name
        self._handlers = Handlers(self._name)
        self._limit = buffer
        self._for_handlers = Inbox(buffer, self._make_room)
        self._for_iteration = Inbox(buffer, self._make_room)
        self._is_iterated = False
        self._worker: asyncio.Task[Any] | None = None

    @property
    def is_active(self) -> bool:
        """Whether the subscription receives messages now."""
        return not self._is_ended and self.of_channel.cursor.phase is Phase.ACTIVE

    @property
    def recovered(self) -> bool | None:
        """Whether the last reconnect recovered all messages; None before the first one."""
        return self.of_channel.cursor.recovered

    @property
    def gaps(self) -> int:
        """How many times messages were lost for good."""
        return self.of_channel.cursor.gaps - self._gaps_before

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
        messages are delivered anyway. Raises TypeError for what cannot be a handler and for a
        `type` that cannot be decoded, and EventDefinitionError for an Event that cannot be read.
        """
        remove = self._handlers.add(event, handler, type, self.channel)
        if self._worker is None and not self._is_ended:
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
        if info is not None:
            data = msgspec.Raw(encode_data(dict(info), "the info of a member"))
            answer = await self._client.ask("presence", channel=self.channel, data=data)
            return members_in(answer)
        return await self._client.presence(self.channel)

    async def history(self, limit: int = 100, *, since: int | None = None) -> HistoryPage:
        """The first `limit` stored messages after the offset `since`; without it, the last ones.

        Raises as `whisper` does.
        """
        return await self._client.history(self.channel, limit, since=since)

    async def unsubscribe(self) -> None:
        """End this subscription, and leave the channel if it is the last one to it.

        Messages that wait for handlers are dropped; those that wait for iteration are not. Calling
        it again is harmless.
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

    # For the channel

    @property
    def has_room(self) -> bool:
        """Whether enough room is free to go on after a slow phase."""
        return self._for_handlers.has_room and self._for_iteration.has_room

    def has_room_for(self, frame: Frame) -> bool:
        """Whether a message fits."""
        if self._handlers.handles(frame.event, is_system=False) and (
            len(self._for_handlers) >= self._limit
        ):
            return False
        return not self._is_iterated or len(self._for_iteration) < self._limit

    def offer(self, message: ClientMessage) -> None:
        """Take a message, for handlers and for iteration."""
        if self._handlers.handles(message.event, is_system=False):
            self._for_handlers.offer(message)
        is_wanted = self._is_iterated or not self._handlers.take_messages
        if is_wanted and not self._for_iteration.offer(
            message
        ):  # nobody iterates: keep the newest messages
            self._for_iteration.drop_oldest()
            self._for_iteration.offer(message)
            self._count_dropped()

    def offer_event(self, frame: Frame) -> None:
        """Take an edge's own event about the channel."""
        if self._handlers.handles(frame.event, is_system=True):
            event = msgspec.structs.replace(frame, channel=frame.channel or self.channel)
            if not self._for_handlers.offer(ClientMessage.of(event)):
                self._count_dropped()

    def fell_behind(self) -> None:
        """Its slow consumer makes the channel leave messages in the stream."""
        self.overflows += 1
        _log.warning(
            "the consumer of the %s is too slow: %d messages wait, later ones stay in the stream",
            self._name,
            self._limit,
        )

    def dropped_unstored(self) -> None:
        """A message that no stream stores was dropped, because a consumer is too slow."""
        self.dropped += 1

    def end(self, error: ClientError | None) -> None:
        """End it; `error` is the reason, unless this side ended it."""
        if self._is_ended:
            return
        self._is_ended = True
        self.error = error
        self._for_iteration.end(error)
        self._for_handlers.end(error)

    async def aclose(self) -> None:
        """End it, and cancel the running handler, unless that is the caller."""
        self.end(None)
        worker, self._worker = self._worker, None
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()
            await asyncio.wait({worker}, timeout=CANCEL_GRACE_S)  # its owner reports its faults

    def _count_dropped(self) -> None:
        self.dropped += 1
        if is_power_of_two(self.dropped):
            _log.warning(
                "the %s drops messages that nobody consumes: %d so far", self._name, self.dropped
            )

    def _make_room(self) -> None:
        if self.of_channel.waits_for_room:
            self.of_channel.cursor.wait()
            self._client.settle(self.of_channel)

    def _begin_work(self) -> None:
        self._worker = self._client.start(self._work(), f"eventbus {self._name}")
        if self._worker is not None:
            self._worker.add_done_callback(self._resume_work)

    def _resume_work(self, worker: "asyncio.Task[Any]") -> None:
        """Handle messages in a new task if a handler has cancelled the task that ran it."""
        if worker is self._worker and worker.cancelled() and not self._is_ended:
            self._handlers.count_failure()
            _log.error("a handler of %s cancelled the task that runs it", self._name)
            self._begin_work()

    async def _work(self) -> None:
        with contextlib.suppress(Ended):
            while True:
                await self._handlers.call(await self._for_handlers.take())
