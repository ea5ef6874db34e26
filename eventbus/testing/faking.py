"""A fake bus: it validates and records events and messages instead of sending them.

with fake() as events:
    await register("Ada")  # dispatches events; does not need an open bus
events.assert_dispatched(UserRegistered, lambda event: event.name == "Ada")
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import BusStateError
from eventbus.events import Event, Listeners, Outgoing, current
from eventbus.messages import Receipt
from eventbus.queue import Job
from eventbus.testing.recorder import Recorder
from eventbus.testing.records import RecordedEvent, read_message

__all__ = ["EventFake", "fake"]

MAX_KEPT: Final = 100_000


class EventFake(Recorder):
    """Records events instead of sending them, inside its `with` block. See `fake`.

    The assertions also work after the block.
    """

    def __init__(self, *only: type[Event]) -> None:
        """See `fake`."""
        super().__init__(*only)
        self._stand_in: _StandIn | None = None
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise BusStateError("a fake cannot be entered twice: create another fake()")
        self._entered = True
        current.enter_fake(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current.leave_fake(self)

    @property
    def bus(self) -> "_StandIn":
        """The current bus if none is open: it validates, but cannot send."""
        self._stand_in = self._stand_in or _StandIn()
        return self._stand_in

    def takes(self, event: type | None) -> bool:
        """Whether events of this type (None: plain messages) are faked. Called by the bus."""
        return not self._only or (event is not None and issubclass(event, self._only))

    def keep(
        self, event: Event | None, sends: Sequence[Outgoing | Job], *, dispatched: bool = True
    ) -> list[Receipt]:
        """Record what a bus has validated and would send. Returns receipts without an offset.

        Raises BusStateError if more than MAX_KEPT events are recorded.
        """
        if len(self._records) >= MAX_KEPT:
            raise BusStateError(
                f"the fake has recorded {MAX_KEPT:,} events, its limit: call clear()"
            )
        job = next((each for each in sends if isinstance(each, Job)), None)
        messages = tuple(read_message(each, event) for each in sends if not isinstance(each, Job))
        if dispatched:
            self._records.append(RecordedEvent(event, messages, job))
        else:
            self._records += [RecordedEvent(None, (message,), None) for message in messages]
        return [
            Receipt("", each.meta.id, None, None, queue=each.queue)
            if isinstance(each, Job)
            else Receipt(each.message.channel, each.message.id, None, None)
            for each in sends
        ]


def fake(*only: type[Event]) -> EventFake:
    """Return a context manager that validates and records events instead of sending them.

    It fakes events and plain messages, however they are sent, for every bus and driver. No bus has
    to be open. Invalid events raise the same errors as in production. Listeners do not run for
    faked events, and queued events are not stored. Receipts have no offset.

    With `only`, it fakes only events of these types and their subclasses. Other events and plain
    messages are sent. Fakes can be nested: the innermost one that fakes an event records it.

    A fake applies to the task that entered it, to the tasks that this task starts, and to tasks
    without a fake. If it is entered outside of an event loop, it applies to all tasks.
    """
    return EventFake(*only)


class _StandIn(EventBus):
    """The bus if none is open. It validates like a real one, but every event must be faked."""

    def __init__(self) -> None:
        super().__init__(Settings(driver="null"), listeners=Listeners())

    def _fake_for(self, event: type | None) -> current.Fake:
        fake = super()._fake_for(event)
        if fake is None:
            what = "a plain message" if event is None else event.__name__
            raise BusStateError(
                f"no bus is open, and {what} is not faked: open a bus, or call fake() without types"
            )
        return fake

    def _require_open(self) -> None:
        """Allow everything: this bus is never opened."""
