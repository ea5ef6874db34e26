"""The drivers that a bus opens in addition to its own, for `EventBus.using` and queued events."""

import asyncio
import collections
from typing import TYPE_CHECKING, Final

from eventbus.attempts import SharedAttempt
from eventbus.config import Settings
from eventbus.drivers import calls
from eventbus.drivers.base import Driver
from eventbus.drivers.names import canonical_name
from eventbus.drivers.registry import check_name, create
from eventbus.errors import BusStateError, ConfigError
from eventbus.tasks import complete
from eventbus.user_code import guarded

if TYPE_CHECKING:
    from eventbus.drivers.stack import StackDriver

__all__ = ["OtherDrivers"]

MAX_OTHERS: Final = 8
"""How many drivers a bus may open in addition to its own."""
_WHERE: Final = "using()"


class OtherDrivers:
    """The drivers that a bus opens in addition to its own, each on its first use."""

    def __init__(self, settings: Settings, own: Driver) -> None:
        self._settings = settings
        self._own = own
        self._open: dict[str, Driver] = {}
        self._opening: dict[str, Driver] = {}
        self._attempts: dict[str, SharedAttempt] = collections.defaultdict(SharedAttempt)
        self._closed = False

    def check(self, name: str) -> None:
        """Raises ConfigError for an unknown driver."""
        members = self._stack.names if self._stack is not None else ()
        if canonical_name(name) not in (self._own.name, *members, *self._open):
            check_name(name, _WHERE)

    async def get(self, name: str) -> Driver:
        """The open driver of that name: the bus's own, one of its stack, or one opened here.

        Raises ConfigError, what opening raises (the next call tries again), and BusStateError.
        """
        name = canonical_name(name)
        if name == self._own.name:
            return self._own
        if (stack := self._stack) is not None and name in stack.names:
            return stack.member(name)
        check_name(name, _WHERE)
        async with self._attempts[name].turn():
            if (driver := self._open.get(name)) is None:
                driver = await self._make(name)
            return driver

    async def aclose(self) -> None:
        """Close them all, also those that are opening; no other is opened."""
        self._closed = True
        drivers, self._open = {**self._opening, **self._open}, {}
        await asyncio.gather(*(calls.close(name, driver) for name, driver in drivers.items()))

    @property
    def _stack(self) -> "StackDriver | None":
        """The bus's own driver, if it is a stack."""
        from eventbus.drivers.stack import StackDriver  # noqa: PLC0415 - most buses have none

        return self._own if isinstance(self._own, StackDriver) else None

    async def _make(self, name: str) -> Driver:
        self._require_open()
        if len(self._open) + len(self._opening) >= MAX_OTHERS:
            raise ConfigError(
                f"{_WHERE}: {name!r} would be one driver too many: a bus opens up to {MAX_OTHERS} "
                f"in addition to its own, and has {', '.join((*self._open, *self._opening))}",
                variable=_WHERE,
            )
        driver = self._opening[name] = create(name, self._settings, variable=_WHERE)
        try:
            with guarded():
                await driver.open()
            self._require_open()  # the bus may have closed meanwhile
        except BaseException:
            await complete(calls.close(name, driver), within=self._settings.publish_timeout)
            raise
        finally:
            del self._opening[name]
        self._open[name] = driver
        return driver

    def _require_open(self) -> None:
        if self._closed:
            raise BusStateError("the bus is closed and opens no driver")
