"""The driver that drops every message: for code that publishes but needs no broker."""

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
    """A no-op subscription, which receives nothing."""

    @property
    def position(self) -> Position | None:
        """None: there is no history."""
        return None

    async def aclose(self) -> None:
        """Do nothing."""


class NullDriver:
    """Accepts messages and subscriptions, and delivers nothing."""

    name = "null"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self) -> None:
        self.is_connected = False

    async def open(self) -> None:
        """Open it; there is nothing to connect to."""
        self.is_connected = True

    async def publish(
        self,
        subject: str,  # noqa: ARG002 - part of the Protocol
        payload: bytes,  # noqa: ARG002
        headers: Headers = NO_HEADERS,  # noqa: ARG002
    ) -> Published | None:
        """Drop the message."""
        self._require_open()
        return None

    async def subscribe(self, subject: str, handler: Handler) -> NullSubscription:  # noqa: ARG002
        """Return a no-op subscription."""
        self._require_open()
        return NullSubscription()

    async def aclose(self) -> None:
        """Close it."""
        self.is_connected = False

    def _require_open(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed("the null driver is not open", driver=self.name)
