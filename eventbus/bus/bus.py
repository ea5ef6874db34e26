"""The bus: owns a driver from its opening to its close, and publishes events and plain messages.

A dispatched event takes one way down. `EventBus.dispatch` checks and encodes it (in
events/encoding.py, or in queue/jobs.py for a queued event), `Sender` publishes the result
through the driver (sending.py), and `Listeners` call the listeners in this process
(events/listeners.py).
"""

import asyncio
import collections
import concurrent.futures
import enum
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, overload

import msgspec

from eventbus import tracing
from eventbus.attempts import is_power_of_two
from eventbus.bus.sending import Sender, Sent
from eventbus.channels import Subjects, validate_channel
from eventbus.cluster import (
    LASTING_S,
    ChannelMembers,
    ClusterService,
    Disconnected,
    Duration,
    Inquiry,
    ListQuery,
    Moment,
    Stats,
    disconnection,
    revoke,
    unrevoke,
)
from eventbus.config import Settings
from eventbus.drivers import (
    NO_HEADERS,
    Driver,
    Headers,
    OtherDrivers,
    QueueStore,
    create_driver,
    register,
)
from eventbus.errors import BusStateError, NoListener, NotSupported
from eventbus.events import (
    ChannelPosition,
    Dispatcher,
    Event,
    Held,
    HistoryPage,
    Listeners,
    Outgoing,
    Prepared,
    PublishOptions,
    Rescues,
    ShouldBroadcast,
    ShouldQueue,
    Transaction,
    current,
    default_listeners,
    encode_messages,
    event_definition,
    hold,
    holders_around,
    qualified_name,
    read_history,
    read_position,
    rescue_counter,
    waits_for_commit,
)
from eventbus.messages import (
    HEADER_EXCEPT,
    Message,
    Receipt,
    check_headers,
    check_id,
)
from eventbus.queue import Job, job_of
from eventbus.subscriptions import (
    EventSubscription,
    Handler,
    SubscribeDecorator,
    SubscribeOptions,
    Subscriptions,
)
from eventbus.tasks import Shutdown
from eventbus.user_code import call_plain, guarded

__all__ = ["BusState", "EventBus", "Using"]

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
E1 = TypeVar("E1")
E2 = TypeVar("E2")
R = TypeVar("R")

MAX_BACKGROUND: Final = 1000
"""How many commits may wait at once for the sending of what they released."""


class BusState(enum.StrEnum):
    """A bus goes through these once, in this order."""

    UNOPENED = "unopened"
    OPEN = "open"
    CLOSED = "closed"


class EventBus:
    """Publishes through one driver, from `open` until `aclose`, in one event loop.

    async with EventBus.from_env() as bus:
        await UserRegistered(user_id="7", name="Ada").dispatch()
        await bus.publish("general", "announcement", {"text": "hello"})
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver | None = None,
        *,
        listeners: Listeners = default_listeners,
        rescues: Rescues | None = None,
    ) -> None:
        """Create the driver that the settings name, unless one is given; nothing connects yet.

        `listeners` run in addition to the bus's own; by default those of the process. Buses that
        replace each other share `rescues`. Raises ConfigError.
        """
        self.settings = settings
        self.subjects = Subjects(settings.namespace)
        self._is_own_driver = driver is None
        self._rescues = rescues or Rescues()
        self._use(create_driver(settings) if driver is None else driver)
        self.listeners = Listeners(listeners)
        self.subscriptions = Subscriptions(self.subjects)
        self._background: set[concurrent.futures.Future[None]] = set()
        self._unheard: collections.Counter[str] = collections.Counter()
        self._state = BusState.UNOPENED
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shutdown = Shutdown(self.subscriptions)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A bus with the settings of `environ`, the process's environment when None."""
        return cls(Settings.from_env(environ))

    def _use(self, driver: Driver) -> None:
        """Use `driver` as the bus's own, before the bus opens."""
        self.driver = driver
        self._cluster = ClusterService(driver, self.subjects)
        self._others = OtherDrivers(self.settings, driver)
        self._sender = Sender(driver, self._others, self.subjects, self._rescues, self._fake_for)

    @property
    def state(self) -> BusState:
        """The stage of its life that the bus is in."""
        return self._state

    @property
    def rescued(self) -> int:
        """How many messages and jobs could not be sent without an error to their dispatch.

        They are those of events with `rescue=True`, those of `broadcast(…).rescue()`, and those
        that the commit of a database's transaction released.
        """
        return self._rescues.count

    async def open(self) -> None:
        """Connect, become the current bus of this event loop, and start the subscriptions.

        Raises what the driver raises when it cannot open; the bus is closed then, and another
        attempt takes a new bus. Raises BusStateError when it was opened before, or when another
        task closes it meanwhile.

        Within a test's `fake()` of all events, it opens a memory driver in place of its own.
        """
        if self._loop is not None or self.state is not BusState.UNOPENED:
            raise BusStateError(f"the bus cannot be opened twice: it is {self._stage()}")
        self._loop = asyncio.get_running_loop()
        tracing.load()
        rescue_counter()
        if self._is_own_driver and self._fake_for(None) is not None:
            # Nothing is sent in this test: no broker is needed, nor a server in the own folder.
            self._use(create_driver(msgspec.structs.replace(self.settings, driver="memory")))
        try:
            async with self._shutdown.opening(
                lambda: BusStateError("the bus was closed while it was opening")
            ):
                with guarded():
                    await self.driver.open()
                self._state = BusState.OPEN
                current.enter(self)
                await self.subscriptions.open(self.driver)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the subscriptions, refuse new messages, wait for those in flight, close the driver.

        Handlers of subscriptions may finish, and publish, for up to 10 seconds; messages in flight
        have `settings.publish_timeout`. Closing again, or before opening, is harmless: all callers
        wait for the same close, which also completes when a caller is cancelled. A handler of a
        subscription may close its own bus.
        """
        await self._shutdown.run(self._close)

    async def _close(self) -> None:
        try:
            await self.subscriptions.aclose()
            if self._background:
                await asyncio.wait(
                    map(asyncio.wrap_future, self._background),
                    timeout=self.settings.publish_timeout,
                )
        finally:
            self._state = BusState.CLOSED
            current.leave(self)
            try:
                await self._sender.drain(self.settings.publish_timeout)
                await self._cluster.aclose()
            finally:
                await self._close_drivers()

    async def _close_drivers(self) -> None:
        if self._loop is None:
            return
        try:
            await self._others.aclose()
        finally:
            with guarded():
                await self.driver.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def using(self, driver: str) -> "Using":
        """The same bus through another driver, by name: `bus.using("log").publish(…)`.

        The bus opens it with its own settings on first use, and closes it with itself. Raises
        ConfigError for an unknown driver.
        """
        self._others.check(driver)
        return Using(self, driver)

    register_driver = staticmethod(register)

    @overload
    def listen(
        self, what: type[E1], /, *, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[E1], R]], Callable[[E1], R]]: ...

    @overload
    def listen(
        self, one: type[E1], other: type[E2], /, *, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[E1 | E2], R]], Callable[[E1 | E2], R]]: ...

    @overload
    def listen(
        self, *what: type | str, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]: ...

    def listen(
        self, *what: type | str, priority: int = 0, stop_on_error: bool = False
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]:
        """Register a listener, which takes the events that this bus dispatches in this process.

        `@bus.listen(OrderShipped)`, `@bus.listen("order.*")`: for arguments and errors see
        `Listeners.listen`. The module's `listen` does the same for every bus of the process.
        """
        return self.listeners.listen(*what, priority=priority, stop_on_error=stop_on_error)

    def forget(self, what: type | str, handler: Callable[[Any], Any] | None = None) -> int:
        """Remove the bus's listeners to exactly this type, name or pattern; returns how many.

        With `handler`, only that one.
        """
        return self.listeners.forget(what, handler)

    def has_listeners(self, what: type | str) -> bool:
        """Whether the bus or the process has a listener to events of this type or name."""
        return self.listeners.has_listeners(what)

    async def until(self, event: Event) -> Any:
        """Call one listener after the other; returns the first answer that is not None, or None.

        Nothing is broadcast; see `Listeners.until`.
        """
        return await self.listeners.until(event)

    @overload
    def subscribe(
        self, event: type[E], /, **options: Unpack[SubscribeOptions]
    ) -> SubscribeDecorator[E]: ...

    @overload
    def subscribe(
        self, event: type[E], handler: Handler[E], /, **options: Unpack[SubscribeOptions]
    ) -> EventSubscription[E]: ...

    def subscribe(
        self,
        event: type[E],
        handler: Handler[E] | None = None,
        /,
        **options: Unpack[SubscribeOptions],
    ) -> EventSubscription[E] | SubscribeDecorator[E]:
        """Receive the events of a type from the broker, from any publisher.

        As a decorator it returns the handler; with a handler, a subscription that can be awaited
        and closed: `await bus.subscribe(OrderShipped, handler)`. The handler, async or plain, takes
        the event, and an EventContext if it has a second parameter. A subscription made before the
        bus opens starts with it, and `open` raises its error; one made later starts in the
        background: `await bus.ready()`, or await it. While the broker cannot be reached, that one
        is tried again, and waited for; once it has failed otherwise, it can be made again.

        Raises EventDefinitionError for a type that cannot be subscribed to, InvalidName for a bad
        group, ConfigError for other bad options, and when it starts, DriverError.
        """
        if handler is None:
            return self.subscriptions.decorator(event, options)
        return self.subscriptions.add(event, handler, options)

    async def ready(self) -> None:
        """Wait until every subscription receives; raises the first error of those that failed."""
        await self.subscriptions.ready()

    async def dispatch(
        self, *events: Event, raise_errors: bool = False, via: str | None = None
    ) -> tuple[Receipt, ...]:
        """Publish events on the channels they name; returns when every message is stored and every
        listener in this process has run.

        An event that is ShouldQueue is stored in its queue instead, and a worker does the rest; its
        receipt names the queue.

        Returns one receipt per message, in order: none for an event that is not ShouldBroadcast,
        or whose `broadcast_when()` is false. All events are checked before any is sent, and all
        messages are sent concurrently. The error of a single message is raised as it is; with
        several messages, DispatchFailed holds the error of each channel. Dispatching the same
        objects again is safe: they keep their ids, and no message is stored twice.

        Listeners run after that, event by event, also for events that are not broadcast. If
        anything could not be published, none of them runs. Their exceptions are logged, and with
        `raise_errors` raised at the end, as an ExceptionGroup (see `Listeners.run`).

        Within a transaction (see `transaction`), events with `after_commit=True` are checked and
        encoded now, and sent after the commit: they have no receipts, and `raise_errors` does not
        apply to their listeners. If the rest of the dispatch fails, they are dropped.

        Messages and jobs of events with `rescue=True` that the broker does not take are logged and
        counted (`rescued`); they have no receipts, and their listeners run.

        `via` names another driver to publish through, as `using` does. A queued event takes none:
        its worker publishes it.

        Raises EventFieldError, EncodingError, InvalidChannel, InvalidEventName (nothing was sent),
        DriverError, DispatchFailed, BusStateError.
        """
        self._require_open()
        # `call_plain`, because an event's methods are the application's code.
        if len(events) == 1 and self._is_direct(events[0]):
            (event,) = events  # the most common case, in two thirds of the time
            messages = call_plain(encode_messages, event, via)
            if len(messages) == 1:
                receipts: tuple[Receipt, ...] = (await self._sender.send(messages[0]),)
            else:
                receipts = await self._sender.send_all(messages)
            if self.listeners.matching(type(event)):
                await self.listeners.run(event, raise_errors=raise_errors)
            return receipts
        checked, waits = call_plain(self._prepare, events, via)
        holders = holders_around(self) if any(waits) else ()
        sent = Sent()
        if not holders:
            receipts = await self._sender.send_prepared(checked, sent)
        else:
            with hold(self, list(itertools.compress(checked, waits)), holders):
                now = [each for each, later in zip(checked, waits, strict=True) if not later]
                receipts = await self._sender.send_prepared(now, sent)
        await self.listeners.run(*sent.heard_here, raise_errors=raise_errors)
        return receipts

    async def send_held(self, held: Sequence[Held]) -> None:
        """Send what a block of `transaction` has released, and run the listeners.

        Raises as `dispatch` does.
        """
        self._require_open()
        sent = Sent()
        await self._sender.send_prepared([one for each in held for one in each.prepared], sent)
        await self.listeners.run(*sent.heard_here)

    async def send_committed(self, held: Sequence[Held]) -> None:
        """The same after the commit of a database's transaction, which no error can undo.

        What cannot be sent is logged and counted, and its listeners do not run.
        """
        try:
            self._require_open()
            sent = Sent(is_committed=True)
            await self._sender.send_prepared([one for each in held for one in each.prepared], sent)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the transaction has committed
            self.report_lost(held, exc)
        else:
            await self.listeners.run(*sent.heard_here)

    def send_soon(self, held: Sequence[Held], loop: asyncio.AbstractEventLoop) -> None:
        """Do so in the background, in the bus's own `loop`. `aclose` waits for it.

        Raises BusStateError if too much waits already.
        """
        if len(self._background) >= MAX_BACKGROUND:
            raise BusStateError(
                f"{MAX_BACKGROUND} commits already wait for their events to be sent"
            )
        future = asyncio.run_coroutine_threadsafe(self.send_committed(held), loop)
        self._background.add(future)
        future.add_done_callback(self._background.discard)

    def report_lost(self, held: Sequence[Held], error: Exception) -> None:
        """Log and count what a commit has released and cannot be sent."""
        self._sender.report_lost([one for each in held for one in each.prepared], error)

    def report_rescued(self, event: str, destination: str, error: Exception) -> None:
        """Log and count what `broadcast(…).rescue()` could not send."""
        self._rescues.rescued(event, destination, error)

    def _is_direct(self, event: Event) -> bool:
        """Whether a dispatch sends the event now, as it is, and raises what that raises."""
        definition = event.__event_definition__
        return (
            not (definition.queue or definition.after_commit or definition.rescue)
            and self._fake_for(type(event)) is None
        )

    @staticmethod
    def _prepare(events: Sequence[Event], via: str | None) -> tuple[list[Prepared], list[bool]]:
        """Check events and encode what their dispatch sends, and which wait for a commit."""
        return (
            [
                Prepared(
                    event,
                    [_job_of(event, via)]
                    if isinstance(event, ShouldQueue)
                    else encode_messages(event, via),
                )
                for event in events
            ],
            [waits_for_commit(event) for event in events],
        )

    async def process(self, event: Event) -> tuple[Receipt, ...]:
        """Do what a worker does with an event: publish it and run its listeners, without queueing.

        All listeners run, and what they raised is raised at the end, as an ExceptionGroup. Raises
        as `dispatch` does, and NoListener where the settings say so.
        """
        self._require_open()
        if not isinstance(event, ShouldBroadcast) and not self.has_listeners(type(event)):
            self._report_unheard(event)
        sends = call_plain(encode_messages, event)
        fake = self._fake_for(type(event))
        receipts = await self._sender.send_all(
            sends if fake is None else fake.keep(event, sends, dispatched=False)
        )
        await self.listeners.run(event, raise_errors=True)
        return receipts

    def _report_unheard(self, event: Event) -> None:
        """Report an event that this worker can do nothing for. Raises NoListener."""
        name = event_definition(type(event)).name
        what = (
            f"event {name!r} of {qualified_name(type(event))} has no listener in this worker: "
            "import the module that has it (eventbus queue work --app <module>)"
        )
        if self.settings.queue_no_listener == "fail":
            raise NoListener(what)
        self._unheard[name] += 1
        if is_power_of_two(self._unheard[name]):
            _log.warning("%s; the job counts as done (%d so far)", what, self._unheard[name])

    async def queues(self, connection: str | None = None) -> QueueStore:
        """The queues of a driver: the bus's own, or the one called `connection`.

        Raises NotSupported for a driver without queues, ConfigError, ConnectionFailed.
        """
        return await self._sender.queues(connection)

    def transaction(self) -> Transaction:
        """`async with bus.transaction():` holds events with `after_commit=True`.

        They are sent when the block ends, and dropped when it raises.
        """
        return Transaction(self)

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        volatile: bool = False,
        except_connection: str | None = None,
        id: str | None = None,  # noqa: A002 - the field's name on the wire
        headers: Headers = NO_HEADERS,
        via: str | None = None,
    ) -> Receipt:
        """Publish one message; returns when it is stored, or sent if it is volatile.

        `data` is anything that msgspec encodes as JSON. `except_connection` is the id of a client
        connection that must not receive it. A message whose `id` was recently published on this
        channel is not stored again. `headers` reach subscribers on the bus, never clients; names
        that begin with Nats- or Eb- are refused (one of them would purge a stream). `via` names
        another driver to publish through, as `using` does.

        Raises InvalidChannel, InvalidEventName, InvalidName (id or header), EncodingError,
        DriverError, BusStateError.
        """
        self._require_open()
        validate_channel(channel)
        if id is not None:
            check_id("a message's id", id)
        extra = check_headers(headers)
        if except_connection is not None:
            extra[HEADER_EXCEPT] = check_id("a connection's id", except_connection)
        message = Message.create(channel, event, data, id=id)
        outgoing = Outgoing(message, volatile, extra, via)
        fake = self._fake_for(None)
        return await self._sender.send(outgoing) if fake is None else fake.keep(None, [outgoing])[0]

    async def position(self, channel: str) -> ChannelPosition:
        """The end of a channel's stream: everything published there from now on is stored after it.

        For pages that show the state of something, and follow its changes: take the position,
        then read the state from the database, then let the client subscribe with the position. It
        receives the changes that the state does not have, and some that it has already.

        Raises InvalidChannel, NotSupported (the driver stores nothing), DriverError, BusStateError.
        """
        self._require_open()
        return await read_position(self.driver, self.subjects.live(validate_channel(channel)))

    async def history(
        self, channel: str, *, limit: int = 100, since: int | ChannelPosition | None = None
    ) -> HistoryPage:
        """Stored messages: the first `limit` after an offset or position, or without one the last.

        At most 1,000. For all messages, start with `since=0`, and continue with the `position` of
        each page while it `has_more`. With a position, `complete` also says whether the stream is
        still the same one.

        Raises InvalidChannel, ValueError (limit), NotSupported, DriverError, BusStateError.
        """
        self._require_open()
        live = self.subjects.live(validate_channel(channel))
        return await read_history(self.driver, channel, live, limit, since)

    async def cluster(self) -> Inquiry:
        """The edge nodes on this bus, for questions beside those below.

        They have a second to answer. The first question of a bus always takes it, since any number
        of nodes may answer; later ones end when the known nodes have answered.

        Raises DriverError, BusStateError.
        """
        self._require_open()
        return await self._cluster.opened()

    async def members(self, channel: str) -> ChannelMembers:
        """The users who are present in a presence channel, on all edge nodes.

        `missing` names nodes that did not answer in time. Raises NoEdge when none did,
        InvalidChannel (also if it is not a presence channel), ClusterBusy, DriverError,
        BusStateError.
        """
        return await (await self.cluster()).members(validate_channel(channel))

    async def stats(self, *, pattern: str = ">", limit: int = 1000) -> Stats:
        """The edge nodes, their connections, and up to `limit` channels with subscribers.

        Channels that match `pattern`, those with most connections first. `missing` names nodes
        that did not answer in time. Raises NoEdge when none did, InvalidPattern, ValueError
        (limit), ClusterBusy, DriverError, BusStateError.
        """
        query = ListQuery.checked(pattern, limit)
        cluster = await self.cluster()
        stats = await cluster.stats(query)
        if not stats.nodes:
            raise cluster.no_edge(stats.missing)
        return stats

    async def disconnect(
        self,
        *,
        user: str | None = None,
        jti: str | None = None,
        connection: str | None = None,
        channel: str | None = None,
        reconnect: bool = False,
    ) -> Disconnected:
        """Close the connections of a user or a token, or one connection, on all nodes.

        Their clients do not come back by themselves, unless `reconnect`. Nothing keeps them out:
        `revoke` does. With a channel, its subscriptions are ended and the connections stay open.

        Returns how many connections it was, and the nodes that did not answer in time. Raises
        NoEdge when none did, ValueError, InvalidChannel, ClusterBusy, DriverError, BusStateError.
        """
        whom = disconnection(
            user=user, jti=jti, connection=connection, channel=channel, reconnect=reconnect
        )
        return await (await self.cluster()).disconnect(whom)

    async def revoke(
        self,
        *,
        user: str | None = None,
        jti: str | None = None,
        channel: str | None = None,
        lasting: Duration = LASTING_S,
        issued_before: Moment | None = None,
    ) -> None:
        """Refuse the tokens of a user, or one token, on all nodes, and close their connections.

        With a channel, access to that channel is revoked: for the user or the token, or without one
        for everybody. `lasting`, in seconds, should be the lifetime of tokens or more. A user can
        come back with a token that was issued JWT_LEEWAY seconds after the call or later; with
        `issued_before`, whose `iat` is at that time or later, by the issuer's clock.

        It is stored, so nodes that start later know it. Without nodes it is stored all the same; a
        driver that keeps no state reaches the running nodes only. Raises ValueError,
        InvalidChannel, DriverError (it may hold in part: call it again), BusStateError.
        """
        self._require_open()
        await revoke(
            self.driver, self.subjects, user=user, jti=jti, channel=channel, lasting=lasting,
            issued_before=issued_before,
        )  # fmt: skip

    async def unrevoke(
        self, *, user: str | None = None, jti: str | None = None, channel: str | None = None
    ) -> bool:
        """Undo the revocation of the same user, token or channel; returns whether there was one.

        Raises ValueError, InvalidChannel, NotSupported (the driver keeps no state), DriverError,
        BusStateError.
        """
        self._require_open()
        return await unrevoke(self.driver, self.subjects, user=user, jti=jti, channel=channel)

    async def send(self, prepared: Outgoing | Job) -> Receipt:
        """Publish what was checked and encoded earlier, such as a row of an outbox.

        No listener runs. Raises DriverError, EncodingError (too large), BusStateError.
        """
        self._require_open()
        if isinstance(prepared, Outgoing):
            validate_channel(prepared.message.channel)
        return await self._sender.send(prepared)

    def _fake_for(self, event: type | None) -> current.Fake | None:
        """The test's fake that takes events of this type (None: plain messages), if any."""
        return current.fake_for(event)

    def _require_open(self) -> None:
        if self._state is not BusState.OPEN:
            raise BusStateError(
                f"the bus is {self._stage()}: publish within `async with EventBus.from_env()`"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise BusStateError("the bus was opened in another event loop than the running one")

    def _stage(self) -> str:
        if self._state is BusState.UNOPENED:
            return "opening" if self._loop else "not open yet"
        return str(self._state)


def _job_of(event: Event, via: str | None) -> Job:
    """The job that a queued event's dispatch stores. Raises NotSupported for another driver."""
    if via is not None:
        raise NotSupported(
            f"event {event_definition(type(event)).name!r} is queued: its worker publishes it, "
            "through the worker's own driver, and no other can be chosen here",
            driver=via,
        )
    return job_of(event)


class Using:
    """A bus, through one of its other drivers."""

    def __init__(self, bus: Dispatcher, driver: str) -> None:
        self._bus = bus
        self._driver = driver

    async def publish(
        self, channel: str, event: str, data: Any, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one message; see `EventBus.publish`."""
        return await self._bus.publish(channel, event, data, via=self._driver, **options)

    async def dispatch(self, *events: Event, raise_errors: bool = False) -> tuple[Receipt, ...]:
        """Dispatch events; see `EventBus.dispatch`."""
        return await self._bus.dispatch(*events, raise_errors=raise_errors, via=self._driver)
