"""Delayed broadcasts: stored in the queue, and published by its worker."""

from typing import Any

from eventbus.events import Event, ShouldBroadcast, ShouldQueue

__all__ = ["DelayedBroadcast", "DelayedVolatileBroadcast"]


class DelayedBroadcast(
    Event, ShouldQueue, ShouldBroadcast, name="eventbus.DelayedBroadcast", kw_only=True
):
    """A broadcast that a worker publishes later."""

    channels: tuple[str, ...]
    event: str
    data: Any
    delay_s: float

    def broadcast_on(self) -> tuple[str, ...]:
        """The given channels."""
        return self.channels

    def broadcast_as(self) -> str:
        """The given event name."""
        return self.event

    def broadcast_with(self) -> Any:
        """The given data."""
        return self.data

    def queue_delay(self) -> float:
        """How long to wait."""
        return self.delay_s


class DelayedVolatileBroadcast(
    DelayedBroadcast, name="eventbus.DelayedVolatileBroadcast", volatile=True, kw_only=True
):
    """The same for a volatile broadcast."""
