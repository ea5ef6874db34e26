"""The blocking bus."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from eventbus import bus as asynchronous
from eventbus.cluster import LASTING_S, ChannelMembers, Disconnected, Duration, Moment, Stats
from eventbus.config import Settings
from eventbus.drivers import Driver
from eventbus.errors import BusStateError, DriverError
from eventbus.events import (
    ChannelPosition,
    Event,
    Held,
    HistoryPage,
    Listeners,
    PublishOptions,
    Transaction,
    default_listeners,
)
from eventbus.messages import Receipt
from eventbus.sync.process import Buses, BusFactory, here
from eventbus.sync.thread import refuse_in_event_loop

__all__ = ["EventBus", "Using"]

T = TypeVar("T")


class EventBus:
    """The blocking form of `eventbus.EventBus`: the same settings, receipts and errors.

    It may be used by all threads of a process, and by processes forked from it. Calls raise
    BusStateError in a thread whose event loop is running: there, await the async bus.
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver | None = None,
        *,
        listeners: Listeners = default_listeners,
    ) -> None:
        """See `eventbus.EventBus`. With a `driver`, forked children cannot use the bus."""
        self._factory = BusFactory(settings, driver, listeners=listeners)
        self._state = asynchronous.BusState.UNOPENED

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A bus with the settings of `environ`, the process's environment when None."""
        return cls(Settings.from_env(environ))

    @property
    def settings(self) -> Settings:
        """The settings that it was created with."""
        return self._factory.settings

    @property
    def listeners(self) -> Listeners:
        """Those of the bus, which run in addition to those of the process."""
        return self._factory.listeners

    @property
    def state(self) -> asynchronous.BusState:
        """The stage of its life that the bus is in."""
        return self._state

    @property
    def rescued(self) -> int:
        """How many messages could not be sent without an error; see `eventbus.EventBus.rescued`."""
        return self._factory.rescues.count

    def open(self) -> None:
        """Connect, and become the bus that `dispatch_sync` uses.

        Raises what the driver raises when it cannot open; the bus is closed then. Raises
        BusStateError when it was opened before.
        """
        refuse_in_event_loop("bus.open()", "await the async bus: `async with EventBus.from_env()`")
        if self._state is not asynchronous.BusState.UNOPENED:
            raise BusStateError(f"the bus cannot be opened twice: it is {self._state}")
        self._state = asynchronous.BusState.OPEN
        try:
            here().run(self._open)
        except BaseException:
            self._state = asynchronous.BusState.CLOSED
            raise

    def close(self) -> None:
        """Wait for messages in flight, then disconnect.

        Closing again is harmless: all callers wait for the same close, which goes on after a call
        that is interrupted.
        """
        refuse_in_event_loop("bus.close()", "await the async bus")
        self._state = asynchronous.BusState.CLOSED
        here().forget(self._factory)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def dispatch(
        self, *events: Event, raise_errors: bool = False, via: str | None = None
    ) -> tuple[Receipt, ...]:
        """Dispatch events; see `eventbus.EventBus.dispatch`."""
        return self._call(
            "bus.dispatch()",
            lambda bus: bus.dispatch(*events, raise_errors=raise_errors, via=via),
            may_be_unreachable=True,
        )

    def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        via: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> Receipt:
        """Publish one message; see `eventbus.EventBus.publish`."""
        return self._call(
            "bus.publish()", lambda bus: bus.publish(channel, event, data, via=via, **options)
        )

    def position(self, channel: str) -> ChannelPosition:
        """The end of a channel's stream; see `eventbus.EventBus.position`."""
        return self._call("bus.position()", lambda bus: bus.position(channel))

    def history(
        self, channel: str, *, limit: int = 100, since: int | ChannelPosition | None = None
    ) -> HistoryPage:
        """Stored messages of a channel; see `eventbus.EventBus.history`."""
        return self._call(
            "bus.history()", lambda bus: bus.history(channel, limit=limit, since=since)
        )

    def members(self, channel: str) -> ChannelMembers:
        """The members of a presence channel; see `eventbus.EventBus.members`."""
        return self._call("bus.members()", lambda bus: bus.members(channel))

    def stats(self, *, pattern: str = ">", limit: int = 1000) -> Stats:
        """The edge nodes and their channels; see `eventbus.EventBus.stats`."""
        return self._call("bus.stats()", lambda bus: bus.stats(pattern=pattern, limit=limit))

    def disconnect(
        self,
        *,
        user: str | None = None,
        jti: str | None = None,
        connection: str | None = None,
        channel: str | None = None,
        reconnect: bool = False,
    ) -> Disconnected:
        """Close connections on all nodes; see `eventbus.EventBus.disconnect`."""
        return self._call(
            "bus.disconnect()",
            lambda bus: bus.disconnect(
                user=user, jti=jti, connection=connection, channel=channel, reconnect=reconnect
            ),
        )

    def revoke(
        self,
        *,
        user: str | None = None,
        jti: str | None = None,
        channel: str | None = None,
        lasting: Duration = LASTING_S,
        issued_before: Moment | None = None,
    ) -> None:
        """Refuse tokens on all nodes; see `eventbus.EventBus.revoke`."""
        self._call(
            "bus.revoke()",
            lambda bus: bus.revoke(
                user=user, jti=jti, channel=channel, lasting=lasting, issued_before=issued_before
            ),
        )

    def unrevoke(
        self, *, user: str | None = None, jti: str | None = None, channel: str | None = None
    ) -> bool:
        """Undo a revocation; see `eventbus.EventBus.unrevoke`."""
        return self._call(
            "bus.unrevoke()", lambda bus: bus.unrevoke(user=user, jti=jti, channel=channel)
        )

    def using(self, driver: str) -> "Using":
        """The same bus through another driver, by name. Raises ConfigError for an unknown one."""

        async def check(bus: asynchronous.EventBus) -> None:
            bus.using(driver)

        self._call("bus.using()", check)
        return Using(self, driver)

    def transaction(self) -> "BlockingTransaction":
        """`with bus.transaction():` holds events with `after_commit=True`.

        They are sent when the block ends, and dropped when it raises.
        """

        async def itself(bus: asynchronous.EventBus) -> asynchronous.EventBus:
            return bus

        return BlockingTransaction(self, self._call("bus.transaction()", itself))

    def send_held(self, held: Sequence[Held]) -> None:
        """See `eventbus.EventBus.send_held`."""
        self._call("bus.transaction()", lambda bus: bus.send_held(held))

    def _call(
        self,
        what: str,
        work: Callable[[asynchronous.EventBus], Coroutine[Any, Any, T]],
        *,
        may_be_unreachable: bool = False,
    ) -> T:
        refuse_in_event_loop(what, f"use the async bus, and await its {what.removeprefix('bus.')}")
        self._require_open()

        async def call(buses: Buses) -> T:
            try:
                bus = await self._opened(buses)
            except DriverError as exc:
                if not may_be_unreachable:
                    raise
                return await work(buses.unreachable(self._factory, exc))
            return await work(bus)

        return here().run(call)

    def _require_open(self) -> None:
        if self._state is not asynchronous.BusState.OPEN:
            stage = "not open yet" if self._state is asynchronous.BusState.UNOPENED else "closed"
            raise BusStateError(f"the bus is {stage}: use it within `with EventBus.from_env()`")

    async def _open(self, buses: Buses) -> None:
        try:
            await self._opened(buses)
        except asyncio.CancelledError:  # as by Ctrl-C
            await buses.closed(self._factory)
            raise

    async def _opened(self, buses: Buses) -> asynchronous.EventBus:
        self._require_open()  # another thread may have closed it before the loop ran this
        return await buses.opened(self._factory)


class Using:
    """A bus, through one of its other drivers."""

    def __init__(self, bus: EventBus, driver: str) -> None:
        self._bus = bus
        self._driver = driver

    def publish(
        self, channel: str, event: str, data: Any, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one message; see `EventBus.publish`."""
        return self._bus.publish(channel, event, data, via=self._driver, **options)

    def dispatch(self, *events: Event, raise_errors: bool = False) -> tuple[Receipt, ...]:
        """Dispatch events; see `EventBus.dispatch`."""
        return self._bus.dispatch(*events, raise_errors=raise_errors, via=self._driver)


class BlockingTransaction:
    """The block of `EventBus.transaction`."""

    def __init__(self, bus: EventBus, inner: asynchronous.EventBus) -> None:
        self._bus = bus
        self._block = Transaction(inner)

    def __enter__(self) -> Self:
        self._block.enter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if held := self._block.leave(succeeded=exc_type is None):
            self._bus.send_held(held)
