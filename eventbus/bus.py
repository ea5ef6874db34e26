"""The bus: owns a driver from its opening to its close, and publishes events and plain messages.

A dispatched event takes one way down. `EventBus.dispatch` checks and encodes it (in
events/encoding.py, or in queue/jobs.py for a queued event), `Sender` publishes the result
(publishing.py, and then the driver), and `Listeners` call the listeners in this process
(events/listeners.py).
"""

import asyncio
import collections
import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from eventbus import tracing
from eventbus.channels import Subjects, validate_channel
from eventbus.config import Settings
from eventbus.drivers import create_driver
from eventbus.drivers.base import NO_HEADERS, Driver, Headers
from eventbus.drivers.queues import QueueStore
from eventbus.drivers.registry import register
from eventbus.errors import BusStateError, NoListener, NotSupported
from eventbus.events import (
    Event,
    Listeners,
    Outgoing,
    ShouldBroadcast,
    ShouldQueue,
    Transaction,
    current,
    default_listeners,
    encode_messages,
    event_definition,
    qualified_name,
)
from eventbus.messages import HEADER_EXCEPT, Message, Receipt, check_headers, check_id
from eventbus.publishing import OtherDrivers, Sender, Using
from eventbus.queue import Job, job_of
from eventbus.subscriptions import (
    EventSubscription,
    Handler,
    SubscribeDecorator,
    SubscribeOptions,
    Subscriptions,
)
from eventbus.tasks import Shutdown
from eventbus.user_code import guarded

__all__ = ["BusState", "EventBus"]

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
E1 = TypeVar("E1")
E2 = TypeVar("E2")
R = TypeVar("R")


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
    ) -> None:
        """Create the driver that the settings name, unless one is given; nothing connects yet.

        `listeners` run in addition to the bus's own; by default those of the process. Raises
        ConfigError.
        """
        self.settings = settings
        self.subjects = Subjects(settings.namespace)
        self.driver = create_driver(settings) if driver is None else driver
        self._others = OtherDrivers(settings, self.driver)
        self._sender = Sender(self.driver, self._others, self.subjects)
        self.listeners = Listeners(listeners)
        self.subscriptions = Subscriptions(self.driver, self.subjects)
        self._unheard: collections.Counter[str] = collections.Counter()
        self._state = BusState.UNOPENED
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shutdown = Shutdown(self.subscriptions)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A bus with the settings of `environ`, the process's environment when None."""
        return cls(Settings.from_env(environ))

    @property
    def state(self) -> BusState:
        """The stage of its life that the bus is in."""
        return self._state

    async def open(self) -> None:
        """Connect, become the current bus of this event loop, and start the subscriptions.

        Raises what the driver raises when it cannot open; the bus is closed then, and another
        attempt takes a new bus. Raises BusStateError when it was opened before.
        """
        if self._loop is not None or self.state is not BusState.UNOPENED:
            raise BusStateError(f"the bus cannot be opened twice: it is {self._stage()}")
        self._loop = asyncio.get_running_loop()
        tracing.load()
        try:
            with guarded():
                await self.driver.open()
        except BaseException:
            await self.aclose()
            raise
        if self._shutdown.has_begun:  # by another task, meanwhile
            await self.driver.aclose()
            raise BusStateError("the bus was closed while it was opening")
        self._state = BusState.OPEN
        current.enter(self)
        try:
            await self.subscriptions.open()
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
        finally:
            self._state = BusState.CLOSED
            current.leave(self)
            try:
                await self._sender.drain(self.settings.publish_timeout)
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

    def using(self, driver: str) -> Using:
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
        background: `await bus.ready()`, or await it.

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

        `via` names another driver to publish through, as `using` does. A queued event takes none:
        its worker publishes it.

        Raises EventFieldError, EncodingError, InvalidChannel, InvalidEventName (nothing was sent),
        DriverError, DispatchFailed, BusStateError.
        """
        self._require_open()
        checked = [(event, sends) for event in events
                   if (sends := self._encode(event, via)) is not None]  # fmt: skip
        outgoing: list[Outgoing | Job | Receipt] = []
        heard_here: list[Event] = []
        for event, sends in checked:
            fake = self._fake_for(type(event))
            outgoing += sends if fake is None else fake.keep(event, sends)
            if fake is None and not isinstance(event, ShouldQueue):
                heard_here.append(event)
        receipts = await self._sender.send_all(outgoing)
        await self.listeners.run(*heard_here, raise_errors=raise_errors)
        return receipts

    def _encode(self, event: Event, via: str | None) -> Sequence[Outgoing | Job] | None:
        """Check an event and encode what its dispatch sends; None if a transaction holds it."""
        with guarded():  # an event's methods are the application's code
            if not isinstance(event, ShouldQueue):
                return encode_messages(event, via)
            if via is not None:
                raise NotSupported(
                    f"event {event_definition(type(event)).name!r} is queued: its worker publishes "
                    "it, through the worker's own driver, and no other can be chosen here",
                    driver=via,
                )
            job = job_of(event)
            held = event.queue_after_commit() and Transaction.hold(self, event)
            return None if held else [job]

    async def process(self, event: Event) -> tuple[Receipt, ...]:
        """Do what a worker does with an event: publish it and run its listeners, without queueing.

        All listeners run, and what they raised is raised at the end, as an ExceptionGroup. Raises
        as `dispatch` does, and NoListener where the settings say so.
        """
        self._require_open()
        if not isinstance(event, ShouldBroadcast) and not self.has_listeners(type(event)):
            self._report_unheard(event)
        with guarded():
            sends = encode_messages(event)
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
        if self._unheard[name].bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
            _log.warning("%s; the job counts as done (%d so far)", what, self._unheard[name])

    async def queues(self, connection: str | None = None) -> QueueStore:
        """The queues of a driver: the bus's own, or the one called `connection`.

        Raises NotSupported for a driver without queues, ConfigError, ConnectionFailed.
        """
        return await self._sender.queues(connection)

    def transaction(self) -> Transaction:
        """`async with bus.transaction():` holds events that are queued `after_commit`.

        They are dispatched when the block ends, and dropped when it raises.
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
