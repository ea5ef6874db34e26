"""Broadcasts that are made later: stored in the queue, and sent by its worker."""

from typing import Any

from eventbus.events import Event, ShouldBroadcast, ShouldQueue

__all__ = ["DelayedBroadcast", "DelayedVolatileBroadcast"]


class DelayedBroadcast(
    Event, ShouldQueue, ShouldBroadcast, name="eventbus.DelayedBroadcast", kw_only=True
):
    """A broadcast that a queue's worker makes later."""

    channels: tuple[str, ...]
    event: str
    data: Any
    delay_s: float

    def broadcast_on(self) -> tuple[str, ...]:
        """The channels that were named."""
        return self.channels

    def broadcast_as(self) -> str:
        """The event that was named."""
        return self.event

    def broadcast_with(self) -> Any:
        """The data that was given."""
        return self.data

    def queue_delay(self) -> float:
        """How long the worker waits."""
        return self.delay_s


class DelayedVolatileBroadcast(
    DelayedBroadcast, name="eventbus.DelayedVolatileBroadcast", volatile=True, kw_only=True
):
    """The same for a broadcast that is not stored."""
