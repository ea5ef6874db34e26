"""The driver that drops every message: for code that publishes where no broker is wanted."""

from eventbus.drivers.base import (
    NO_HEADERS,
    Capability,
    Handler,
    Headers,
    Position,
    Published,
)
from eventbus.errors import ConnectionFailed

__all__ = ["NullDriver", "NullSubscription"]


class NullSubscription:
    """Interest in a subject on which nothing will ever come."""

    @property
    def position(self) -> Position | None:
        """None: there is no history."""
        return None

    async def aclose(self) -> None:
        """Nothing to stop."""


class NullDriver:
    """Takes messages and listeners, as any driver, and never calls a listener."""

    name = "null"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self) -> None:
        self.is_connected = False

    async def open(self) -> None:
        """Nothing to connect to."""
        self.is_connected = True

    async def publish(
        self,
        subject: str,  # noqa: ARG002 - the Protocol's
        payload: bytes,  # noqa: ARG002
        headers: Headers = NO_HEADERS,  # noqa: ARG002
    ) -> Published | None:
        """Drop the message."""
        self._require_open()
        return None

    async def subscribe(self, subject: str, handler: Handler) -> NullSubscription:  # noqa: ARG002
        """Take the listener, whom nothing reaches."""
        self._require_open()
        return NullSubscription()

    async def aclose(self) -> None:
        """Nothing to let go."""
        self.is_connected = False

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the null driver is not open", driver=self.name)
