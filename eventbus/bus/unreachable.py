"""The stand-in for a bus that could not be opened."""

from collections.abc import Awaitable, Callable, Sequence

from eventbus.bus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers import NullDriver
from eventbus.errors import DriverError
from eventbus.events import Held, Listeners, Rescues

__all__ = ["UnreachableBus"]


class UnreachableBus(EventBus):
    """Stands in for a bus that could not be opened: it checks and holds events, but sends nothing.

    So invalid events raise their own errors, `rescue` applies, and what waits for a commit tries
    to open the bus again.
    """

    def __init__(
        self,
        settings: Settings,
        error: DriverError,
        *,
        listeners: Listeners,
        rescues: Rescues,
        reopen: Callable[[], Awaitable[EventBus]],
    ) -> None:
        """Sending raises `error`."""
        super().__init__(settings, NullDriver(), listeners=listeners, rescues=rescues)
        self._sender.fail_with(error)
        self._reopen = reopen

    def _require_open(self) -> None:
        """Allow everything: this bus is never opened."""

    async def send_held(self, held: Sequence[Held]) -> None:
        """Send it through the bus that opens now."""
        await (await self._reopen()).send_held(held)

    async def send_committed(self, held: Sequence[Held]) -> None:
        """Send it through the bus that opens now."""
        try:
            bus = await self._reopen()
        except DriverError as exc:
            self._sender.fail_with(exc)
            await super().send_committed(held)
        else:
            await bus.send_committed(held)
