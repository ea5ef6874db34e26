"""The events of a run, for the outbox, durable subscriptions and workers."""

from eventbus import Event, ShouldBroadcast, ShouldQueue
from eventbus.cli.chaos import EVENT

__all__ = ["PREFIX", "Job", "Recorded", "Seen"]

PREFIX = "chaos"
"""The first token of all channels of a run."""


class Recorded(Event, ShouldBroadcast, name=EVENT, channel="chaos.{run}.{topic}"):
    """A message that an outbox publishes, with its channel."""

    by: str
    n: int
    run: str
    topic: int


class Seen(Event, ShouldBroadcast, name="chaos.seen", channel="chaos.seen"):
    """Any message of a run, as a durable subscription reads it."""

    by: str
    n: int


class Job(Event, ShouldQueue, queue="chaos", name="chaos.job", tries=50, backoff=(0.2,)):
    """A queued event."""

    by: str
    n: int
