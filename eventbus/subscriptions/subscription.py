"""One subscription: from deliveries, live or held, to a handler of typed events."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar, cast

from eventbus import tracing
from eventbus.channels import Subjects
from eventbus.drivers.base import Capability, Delivery, Driver, Headers, Subscription
from eventbus.drivers.consumers import (
    Consumer,
    ConsumerDriver,
    ConsumerSettings,
    GroupDriver,
    Held,
)
from eventbus.errors import (
    BusStateError,
    EventBusError,
    InvalidChannel,
    InvalidPayload,
    NotSupported,
)
from eventbus.events import Event, EventContext, EventReader
from eventbus.messages import HEADER_REASON
from eventbus.subscriptions.options import Options, consumer_name
from eventbus.tasks import (
    Pool,
    Work,
    complete,
)
from eventbus.user_code import call_guarded, guarded, takes_context

__all__ = ["EventSubscription", "Handler"]

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
Handler = Callable[[E], Any] | Callable[[E, EventContext], Any]

CLOSE_S: Final = 10.0
"""How long handlers may go on when the bus closes."""
_PAUSE_S: Final = 1.0
_BROKERS_OWN: Final = "nats-"


class EventSubscription(Generic[E]):
    """One handler of the events of one type. `await` it to know that it stands.

    It ends with `aclose`, or with its bus.
    """

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        reader: EventReader[E],
        handler: Handler[E],
        options: Options,
    ) -> None:
        self.reader = reader
        self.options = options
        self.consumer_name = consumer_name(subjects.namespace, options.group, self.reader.name)
        self.failures = 0
        """How many times the handler has raised, or taken too long."""
        self.quarantined = 0
        """Payloads put into quarantine."""
        self.dropped = 0
        """Live events that came while `buffer` others waited."""
        self._driver = driver
        self._subjects = subjects
        self._handler: Callable[..., Any] = handler
        self._with_context = takes_context(handler)
        self._told = f"subscription to {self.reader.name!r}" + (
            f" of group {options.group!r}" if options.group else ""
        )
        self._pool = Pool(options.concurrency, 0 if options.durable else options.buffer, self._told)
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._live: Subscription | None = None
        self._consumer: Consumer | None = None
        self._working: asyncio.Task[None] | None = None

    def __await__(self) -> "Generator[Any, None, EventSubscription[E]]":
        return self._ready().__await__()

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    @property
    def evicted(self) -> int:
        """How often messages of a channel were gone before a durable group had handled them.

        Of all members in this process, as far as the broker lets it be known: see docs/events.md.
        """
        return self._consumer.evicted if self._consumer is not None else 0

    def start(self) -> None:
        """Subscribe in the background."""
        self._starting = asyncio.create_task(self._start())
        self._starting.add_done_callback(self._tell)

    async def aclose(self, seconds: float = CLOSE_S) -> None:
        """Take no more events; handlers may finish within that time, then they are cancelled.

        What they did not finish is handed back where it is durable. Closing twice is harmless. A
        handler may close its own subscription.
        """
        await self.end(seconds, asyncio.current_task())

    async def end(self, seconds: float, caller: "asyncio.Task[Any] | None") -> None:
        """As `aclose`, called by that task."""
        if self._closed:
            return
        self._closed = True
        for task in (self._starting, self._working):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for source in (self._live, self._consumer):
            if source is not None:
                await source.aclose()
        if left := await self._pool.aclose(seconds, caller):
            _log.warning("%s: %d events were not handled before the close", self._told, left)

    async def _ready(self) -> "EventSubscription[E]":
        if self._starting is None:
            raise BusStateError(f"the {self._told} begins when its bus opens")
        await asyncio.shield(self._starting)
        return self

    def _tell(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("the %s does not stand: %s", self._told, exc)

    async def _start(self) -> None:
        subject = self._subjects.live_filter(self.reader.pattern)
        if self.options.durable:
            self._require(Capability.CONSUMERS, "durable=True")
            settings = ConsumerSettings(self.options.ack_wait, self.options.from_start)
            consumers = cast(ConsumerDriver, self._driver)
            self._consumer = await consumers.consume(self.consumer_name, subject, settings)
            self._working = asyncio.create_task(self._work(self._consumer))
        elif self.options.group:
            self._require(Capability.GROUPS, "group=...")
            groups = cast(GroupDriver, self._driver)
            self._live = await groups.subscribe_group(subject, self.consumer_name, self._receive)
        else:
            self._live = await self._driver.subscribe(subject, self._receive)

    def _require(self, capability: Capability, option: str) -> None:
        if capability not in self._driver.capabilities:
            raise NotSupported(
                f"the driver {self._driver.name} cannot subscribe with {option}: it lacks the "
                f"capability {capability.value}",
                driver=self._driver.name,
            )

    # Live

    def _receive(self, delivery: Delivery) -> None:
        try:
            received = self._read(delivery, 1)
        except InvalidPayload as exc:
            work: Work = functools.partial(self._quarantine, delivery, exc.reason, str(exc))
        else:
            if received is None:
                return
            work = functools.partial(self._handle, *received, delivery.headers)
        if not self._pool.offer(work):
            self.dropped += 1
            if self.dropped.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
                _log.warning(
                    "the %s drops events: %d waited for a handler (dropped until now: %d)",
                    self._told,
                    self.options.buffer,
                    self.dropped,
                )

    async def _handle(self, event: E, context: EventContext, headers: Headers) -> bool:
        """Whether the handler did it."""
        try:
            await self._call(event, context, headers)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - it may raise anything
            self._require_fault(exc)
            self._report(event, context, exc)
            return False
        return True

    def _require_fault(self, exc: BaseException) -> None:
        """Raise the cancellation of the close; without one, the handler has cancelled its task."""
        if isinstance(exc, asyncio.CancelledError) and self._closed:
            raise exc

    # Durable

    async def _work(self, consumer: Consumer) -> None:
        while not self._closed:
            await self._pool.room()
            try:
                with guarded():
                    taken = await consumer.take(self._pool.free)
                for held in taken:
                    self._pool.offer(functools.partial(self._settle, held))
            except Exception:  # noqa: BLE001 - other people's drivers may raise anything
                _log.exception("%s", self._told)
                await asyncio.sleep(_PAUSE_S)

    async def _settle(self, held: Held) -> None:
        """Handle one message and say what became of it."""
        options, delivery = self.options, held.delivery
        try:
            try:
                received = self._read(delivery, held.attempt)
            except InvalidPayload as exc:
                await complete(self._give_up(held, exc.reason, str(exc)))
                return
            if received is None:
                await held.ack()
            elif held.attempt > options.max_deliver:
                why = f"{options.max_deliver} deliveries ended without an answer"
                await complete(self._give_up(held, "max_deliver", why))
            elif await self._handle_in_time(*received, delivery.headers):
                await held.ack()
            elif held.attempt >= options.max_deliver:
                why = f"the handler failed {held.attempt} times"
                await complete(self._give_up(held, "handler_failed", why))
            else:
                await held.retry(self._pause(held.attempt))
        except asyncio.CancelledError:  # at the close
            with contextlib.suppress(EventBusError):  # then it comes again after ack_wait
                await held.retry()
            raise
        except EventBusError as exc:
            _log.warning("%s: a message comes again: %s", self._told, exc)

    async def _handle_in_time(self, event: E, context: EventContext, headers: Headers) -> bool:
        try:
            # Before the broker gives the message to another member.
            async with asyncio.timeout(0.95 * self.options.ack_wait):
                await self._call(event, context, headers)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - it may raise anything
            self._require_fault(exc)
            self._report(event, context, exc)
            return False
        return True

    def _pause(self, attempt: int) -> float:
        backoff = self.options.backoff
        return backoff[min(attempt, len(backoff)) - 1]

    async def _give_up(self, held: Held, reason: str, why: str) -> None:
        if await self._quarantine(held.delivery, reason, why):
            await held.discard()
        else:
            await held.retry(self._pause(held.attempt))

    # Both

    def _read(self, delivery: Delivery, attempt: int) -> tuple[E, EventContext] | None:
        try:
            channel = self._subjects.channel_of(delivery.subject)
        except InvalidChannel as exc:
            raise InvalidPayload("bad_channel", str(exc)) from None
        return self.reader.read(channel, delivery, attempt)

    async def _call(self, event: E, context: EventContext, headers: Headers) -> None:
        arguments = (event, context) if self._with_context else (event,)
        with (
            guarded(),
            tracing.processing(
                self._driver.name,
                context.channel,
                context.id,
                template=self.reader.pattern.text,
                headers=headers,
                group=self.options.group,
            ),
        ):
            await call_guarded(self._handler, *arguments)

    def _report(self, event: E, context: EventContext, exc: BaseException) -> None:
        self.failures += 1
        # The event's fields stay out of the log: they may be anybody's.
        _log.error(
            "the %s failed, delivery %d, id %s, channel %s",
            self._told,
            context.attempt,
            event.event_meta.id,
            context.channel,
            exc_info=exc,
        )

    async def _quarantine(self, delivery: Delivery, reason: str, why: str) -> bool:
        """Put the payload on its channel's quarantine subject; False when that failed."""
        self.quarantined += 1
        if self.quarantined.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
            _log.warning(
                "the %s puts payloads into quarantine (%d until now), the last: %s",
                self._told,
                self.quarantined,
                why,
            )
        own = {k: v for k, v in delivery.headers.items() if not k.lower().startswith(_BROKERS_OWN)}
        try:
            channel = self._subjects.channel_of(delivery.subject)
            await self._driver.publish(
                self._subjects.quarantine(channel), delivery.payload, {**own, HEADER_REASON: reason}
            )
        except InvalidChannel:  # there is no quarantine for what is no channel
            return True
        except EventBusError as exc:
            _log.warning("the %s cannot put a payload into quarantine: %s", self._told, exc)
            return False
        return True
