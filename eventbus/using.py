"""Other drivers than the bus's own, chosen for a call: `bus.using("log").publish(…)`."""

import asyncio
import collections
import logging
from typing import Any, Final, Unpack

from eventbus.config import Settings
from eventbus.current import Dispatcher, PublishOptions
from eventbus.drivers.base import Driver
from eventbus.drivers.registry import canonical_name, check_name, create
from eventbus.drivers.stack import StackDriver
from eventbus.errors import BusStateError, ConfigError
from eventbus.events import Event
from eventbus.message import Receipt
from eventbus.user_code import call_guarded, guarded

__all__ = ["OtherDrivers", "Using"]

_log = logging.getLogger(__name__)

MAX_OTHERS: Final = 8
"""Drivers that a bus may open beside its own."""
_WHERE: Final = "using()"


class OtherDrivers:
    """What a bus has opened beside its own driver; each is opened on its first use."""

    def __init__(self, settings: Settings, own: Driver) -> None:
        self._settings = settings
        self._own = own
        self._open: dict[str, Driver] = {}
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._closed = False

    def check(self, name: str) -> None:
        """Raises ConfigError for a name that is no driver's."""
        if canonical_name(name) not in (self._own.name, *self._members, *self._open):
            check_name(name, _WHERE)

    async def get(self, name: str) -> Driver:
        """The open driver of that name: the bus's own, one of its stack, or one opened here.

        Raises ConfigError, what opening raises (the next call tries again), and BusStateError.
        """
        name = canonical_name(name)
        if name == self._own.name:
            return self._own
        if name in self._members:
            assert isinstance(self._own, StackDriver)
            return self._own.member(name)
        check_name(name, _WHERE)
        async with self._locks[name]:
            if (driver := self._open.get(name)) is None:
                driver = await self._make(name)
            return driver

    async def aclose(self) -> None:
        """Close what was opened here."""
        self._closed = True
        drivers, self._open = self._open, {}
        results = await asyncio.gather(
            *(call_guarded(driver.aclose) for driver in drivers.values()), return_exceptions=True
        )
        for name, fault in zip(drivers, results, strict=True):
            if fault is not None:
                _log.error("the driver %s could not be closed", name, exc_info=fault)

    @property
    def _members(self) -> tuple[str, ...]:
        return self._own.names if isinstance(self._own, StackDriver) else ()

    async def _make(self, name: str) -> Driver:
        self._require_open()
        if len(self._open) >= MAX_OTHERS:
            raise ConfigError(
                f"{_WHERE}: {name!r} would be one driver too many: a bus opens up to {MAX_OTHERS} "
                f"beside its own, and has {', '.join(self._open)}",
                variable=_WHERE,
            )
        driver = create(name, self._settings, variable=_WHERE)
        try:
            with guarded():
                await driver.open()
            self._require_open()  # it may have been closed meanwhile
        except BaseException:
            await driver.aclose()
            raise
        self._open[name] = driver
        return driver

    def _require_open(self) -> None:
        if self._closed:
            raise BusStateError("the bus is closed, and opens no driver")


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
