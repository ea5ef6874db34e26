"""The subscriptions of a bus."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from eventbus.channels import Subjects
from eventbus.drivers import Driver
from eventbus.errors import BusStateError, EventDefinitionError
from eventbus.events import Event, EventContext, EventReader
from eventbus.subscriptions.options import Options, SubscribeOptions, check_options
from eventbus.subscriptions.subscription import EventSubscription, Handler

__all__ = ["SubscribeDecorator", "Subscriptions"]

E = TypeVar("E", bound=Event)
R = TypeVar("R")


class SubscribeDecorator(Protocol[E]):
    """Takes a handler, with or without a context, and returns it."""

    @overload
    def __call__(self, handler: Callable[[E], R], /) -> Callable[[E], R]: ...

    @overload
    def __call__(
        self, handler: Callable[[E, EventContext], R], /
    ) -> Callable[[E, EventContext], R]: ...


class Subscriptions:
    """The subscriptions of one bus: they start when it opens, and end when it closes."""

    def __init__(self, subjects: Subjects) -> None:
        self._driver: Driver | None = None
        self._subjects = subjects
        self._all: list[EventSubscription[Any]] = []
        self._closed = False

    def add(
        self, event: type[E], handler: Handler[E], options: SubscribeOptions
    ) -> EventSubscription[E]:
        """Subscribe a handler; see `EventBus.subscribe`."""
        checked = check_options(event, options)
        return self._add(EventReader(event, checked.channel, checked.name), handler, checked)

    def decorator(self, event: type[E], options: SubscribeOptions) -> SubscribeDecorator[E]:
        """A decorator that subscribes its handler. The options are checked here already."""
        checked = check_options(event, options)
        reader = EventReader(event, checked.channel, checked.name)

        def register(handler: Any) -> Any:
            self._add(reader, handler, checked)
            return handler

        return register

    async def ready(self) -> None:
        """Wait until all have started; raises the first error of those that failed."""
        await asyncio.gather(*(one for one in self._all if not one.is_closed))

    async def open(self, driver: Driver) -> None:
        """Start all subscriptions on a driver, which is open."""
        self._driver = driver
        for subscription in self._all:
            subscription.start(driver, is_patient=False)
        await self.ready()

    def __contains__(self, task: object) -> bool:
        """Whether that task runs a handler of one of them."""
        return any(task in subscription for subscription in self._all)

    async def aclose(self) -> None:
        """Close them all, concurrently."""
        self._driver, self._closed = None, True
        closes = [subscription.aclose() for subscription in self._all]
        for fault in await asyncio.gather(*closes, return_exceptions=True):
            if fault is not None:
                raise fault

    def _add(
        self, reader: EventReader[E], handler: Handler[E], options: Options
    ) -> EventSubscription[E]:
        if self._closed:
            raise BusStateError("the bus is closed: it cannot subscribe")
        new = EventSubscription(self._subjects, reader, handler, options)
        self._all = [one for one in self._all if not (one.is_closed or one.is_replaced_by(new))]
        same = [one for one in self._all if one.consumer_name == new.consumer_name]
        if options.group and same:
            raise EventDefinitionError(
                f"two handlers of one bus would share the events {new.reader.name!r} of group "
                f"{options.group!r}: each event would reach only one of them; choose another group"
            )
        self._all.append(new)
        if self._driver is not None:
            new.start(self._driver, is_patient=True)
        return new
