"""Being told of messages that were missed for good, by drivers that read what was missed."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["GapSubscription", "OnGap"]

OnGap = Callable[[], None]


@runtime_checkable
class GapSubscription(Protocol):
    """A subscription to a filter that tells of gaps.

    A listener to one subject sees a gap itself, by `Delivery.previous`. For a filter it cannot,
    since offsets compare within a channel. A driver may also report that the history of one subject
    was replaced, before the next message shows it: the subscription's `position` is then in the new
    one.
    """

    on_gap: OnGap | None
    """Called in the event loop where messages may have been missed that are not read again, before
    whatever follows them is delivered. It must not raise. To be set when `subscribe` has returned,
    before the next await."""
