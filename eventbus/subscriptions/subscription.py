"""One subscription: from deliveries, live or durable, to a handler of typed events."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar, cast

from eventbus import tracing
from eventbus.attempts import Backoff, is_power_of_two
from eventbus.channels import Subjects
from eventbus.drivers import (
    Capability,
    Consumer,
    ConsumerDriver,
    ConsumerSettings,
    Delivery,
    Driver,
    GroupDriver,
    Headers,
    Subscription,
    UnackedDelivery,
)
from eventbus.errors import (
    BusStateError,
    ConnectionFailed,
    EventBusError,
    InvalidChannel,
    InvalidPayload,
    NotSupported,
    SubscribeDenied,
)
from eventbus.events import Event, EventContext, EventReader
from eventbus.messages import HEADER_REASON
from eventbus.subscriptions.options import Options, consumer_name
from eventbus.subscriptions.pool import Pool, Work
from eventbus.tasks import Shutdown, Tasks, complete
from eventbus.user_code import advice_on, call_guarded, guarded, takes_context, text_of

__all__ = ["EventSubscription", "Handler"]

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
Handler = Callable[[E], Any] | Callable[[E, EventContext], Any]

CLOSE_S: Final = 10.0
"""How long handlers may continue when the bus closes."""
_AGAIN: Final = Backoff(1.0, 1.0)
"""Before the next attempt to receive."""
_FIRST_START_PAUSE_S: Final = 0.2
_MAX_START_PAUSE_S: Final = 5.0
_BROKERS_OWN: Final = "nats-"


class EventSubscription(Generic[E]):
    """A handler of the events of one type. `await` it until it receives events.

    It ends with `aclose`, or with its bus. One that failed to start has ended.
    """

    def __init__(
        self,
        subjects: Subjects,
        reader: EventReader[E],
        handler: Handler[E],
        options: Options,
    ) -> None:
        self.reader = reader
        self.options = options
        self.consumer_name = consumer_name(subjects.namespace, options.group, self.reader.name)
        self.failures = 0
        """How many times the handler raised, or took too long."""
        self.quarantined = 0
        """Payloads put into quarantine."""
        self.dropped = 0
        """Live events that arrived while `buffer` others waited."""
        self._driver: Driver
        self._subjects = subjects
        self.handler: Callable[..., Any] = handler
        self._with_context = takes_context(handler)
        self._name = f"subscription to {self.reader.name!r}" + (
            f" of group {options.group!r}" if options.group else ""
        )
        self._pool = Pool(options.concurrency, 0 if options.durable else options.buffer, self._name)
        self._started: asyncio.Future[None] | None = None
        self._has_failed = False
        self._tasks = Tasks()
        self._shutdown = Shutdown(self._pool)
        self._live: Subscription | None = None
        self._consumer: Consumer | None = None

    def __await__(self) -> "Generator[Any, None, EventSubscription[E]]":
        return self._ready().__await__()

    def __contains__(self, task: object) -> bool:
        """Whether that task runs the handler."""
        return task in self._pool

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._shutdown.has_begun

    def is_replaced_by(self, other: "EventSubscription[Any]") -> bool:
        """Whether it failed to start, and `other` is another attempt at the same."""
        is_same_handler = bool(self.options.group) or self.handler == other.handler
        return self._has_failed and self.consumer_name == other.consumer_name and is_same_handler

    @property
    def evicted(self) -> int:
        """How often messages of a channel were evicted before a durable group had handled them.

        Counts all members in this process, as far as the broker reports it: see docs/events.md.
        """
        return self._consumer.evicted if self._consumer is not None else 0

    def start(self, driver: Driver, *, is_patient: bool) -> None:
        """Subscribe in the background.

        With `is_patient`, a broker that cannot be reached is tried again until it can.
        """
        self._driver = driver
        self._started = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(_retrieve)
        begin = self._begin(self._started, is_patient=is_patient)
        self._tasks.start(begin, f"the start of the {self._name}")

    async def aclose(self, seconds: float = CLOSE_S) -> None:
        """Take no more events; handlers may finish within that time, then they are cancelled.

        Durable events that they did not finish are handed back. Closing twice is harmless; all
        callers wait for the same close. A handler may close its own subscription.
        """
        await self._shutdown.run(lambda: self._close(seconds))

    async def _close(self, seconds: float) -> None:
        try:
            await self._tasks.aclose()
            for source in (self._live, self._consumer):
                if source is not None:
                    await source.aclose()
        finally:
            if left := await self._pool.aclose(seconds):
                _log.warning("%s: %d events were not handled before the close", self._name, left)

    async def _ready(self) -> "EventSubscription[E]":
        if self._started is None:
            raise BusStateError(f"the {self._name} starts when its bus opens")
        await asyncio.shield(self._started)
        return self

    async def _begin(self, started: "asyncio.Future[None]", *, is_patient: bool) -> None:
        backoff = Backoff(_FIRST_START_PAUSE_S, _MAX_START_PAUSE_S)
        since, is_late = time.monotonic(), False
        try:
            with guarded():
                while not await self._try_to_start(is_patient=is_patient):
                    is_late = True
                    await asyncio.sleep(backoff.next())
            if is_late:
                _log.warning(
                    "the %s has started, after %.1f s", self._name, time.monotonic() - since
                )
        except asyncio.CancelledError:
            started.set_exception(BusStateError(f"the {self._name} was closed while it started"))
            raise
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything
            _log.error("the %s failed to start: %s", self._name, text_of(exc))
            self._has_failed = True
            started.set_exception(exc)
        else:
            started.set_result(None)

    async def _try_to_start(self, *, is_patient: bool) -> bool:
        """Subscribe; False when the broker cannot be reached now."""
        try:
            await self._start()
        except ConnectionFailed as exc:
            if not is_patient or isinstance(exc, SubscribeDenied):
                raise
            _log.warning("the %s cannot start yet, trying again: %s", self._name, text_of(exc))
            return False
        return True

    async def _start(self) -> None:
        subject = self._subjects.live_filter(self.reader.pattern)
        if self.options.durable:
            self._require(Capability.CONSUMERS, "durable=True")
            settings = ConsumerSettings(self.options.ack_wait, self.options.from_start)
            consumers = cast(ConsumerDriver, self._driver)
            self._consumer = await consumers.consume(self.consumer_name, subject, settings)
            self._tasks.start(self._work(self._consumer), f"the {self._name}")
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
            if is_power_of_two(self.dropped):
                _log.warning(
                    "the %s drops events: %d waited for a handler (%d dropped so far)",
                    self._name,
                    self.options.buffer,
                    self.dropped,
                )

    async def _handle(
        self, event: E, context: EventContext, headers: Headers, seconds: float | None = None
    ) -> bool:
        """Call the handler; False if it failed, or took longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._call(event, context, headers)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - it may raise anything
            self._require_fault(exc)
            self._report(event, context, exc)
            return False
        return True

    def _require_fault(self, exc: BaseException) -> None:
        """Raise the cancellation of the close; without one, the handler has cancelled its task."""
        if isinstance(exc, asyncio.CancelledError) and self.is_closed:
            raise exc

    # Durable

    async def _work(self, consumer: Consumer) -> None:
        while True:
            await self._pool.room()
            try:
                with guarded():
                    batch = await consumer.take(self._pool.free)
                for unacked in batch:
                    self._pool.offer(functools.partial(self._settle, unacked))
            except Exception:  # noqa: BLE001 - a driver may raise anything
                _log.exception("the %s cannot receive, trying again", self._name)
                await asyncio.sleep(_AGAIN.delay(0))

    async def _settle(self, unacked: UnackedDelivery) -> None:
        """Handle one message, and acknowledge, retry or discard it."""
        options, delivery = self.options, unacked.delivery
        # Shorter than ack_wait, after which the broker redelivers to another member.
        seconds = 0.95 * options.ack_wait
        try:
            try:
                received = self._read(delivery, unacked.attempt)
            except InvalidPayload as exc:
                await complete(self._give_up(unacked, exc.reason, str(exc)))
                return
            if received is None:
                await unacked.ack()
            elif unacked.attempt > options.max_deliver:
                why = f"{options.max_deliver} deliveries ended without an answer"
                await complete(self._give_up(unacked, "max_deliver", why))
            elif await self._handle(*received, delivery.headers, seconds):
                await unacked.ack()
            elif unacked.attempt >= options.max_deliver:
                why = f"the handler failed {unacked.attempt} times"
                await complete(self._give_up(unacked, "handler_failed", why))
            else:
                await unacked.retry(self._pause(unacked.attempt))
        except asyncio.CancelledError:  # the subscription closes
            with contextlib.suppress(EventBusError):  # then it is redelivered after ack_wait
                await unacked.retry()
            raise
        except EventBusError as exc:
            _log.warning("%s: a message will be redelivered: %s", self._name, exc)

    def _pause(self, attempt: int) -> float:
        backoff = self.options.backoff
        return backoff[min(attempt, len(backoff)) - 1]

    async def _give_up(self, unacked: UnackedDelivery, reason: str, why: str) -> None:
        if await self._quarantine(unacked.delivery, reason, why):
            await unacked.discard()
        else:
            await unacked.retry(self._pause(unacked.attempt))

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
            await call_guarded(self.handler, *arguments)

    def _report(self, event: E, context: EventContext, exc: BaseException) -> None:
        self.failures += 1
        # The event's fields stay out of the log: they may be confidential.
        _log.error(
            "the handler of the %s failed, attempt %d, id %s, channel %s%s",
            self._name,
            context.attempt,
            event.event_meta.id,
            context.channel,
            advice_on(exc),
            exc_info=exc,
        )

    async def _quarantine(self, delivery: Delivery, reason: str, why: str) -> bool:
        """Publish the payload on its channel's quarantine subject; False if that failed."""
        self.quarantined += 1
        if is_power_of_two(self.quarantined):
            _log.warning(
                "the %s puts payloads into quarantine (%d so far), the last: %s",
                self._name,
                self.quarantined,
                why,
            )
        own = {k: v for k, v in delivery.headers.items() if not k.lower().startswith(_BROKERS_OWN)}
        try:
            channel = self._subjects.channel_of(delivery.subject)
            await self._driver.publish(
                self._subjects.quarantine(channel), delivery.payload, {**own, HEADER_REASON: reason}
            )
        except InvalidChannel:  # only channels have a quarantine
            return True
        except EventBusError as exc:
            _log.warning("the %s cannot put a payload into quarantine: %s", self._name, exc)
            return False
        return True


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Mark the exception as seen: it was logged, and perhaps nobody awaits the subscription."""
    if not future.cancelled():
        future.exception()
