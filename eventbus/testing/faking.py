"""The fake: events and messages are checked and kept, and nothing leaves the process.

with fake() as events:
    await register("Ada")          # dispatches events; no bus has to be open
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
    """Takes the place of sending within its `with` block; can be asked after it as well."""

    def __init__(self, *only: type[Event]) -> None:
        """See `fake`."""
        super().__init__(*only)
        self._stand_in: _StandIn | None = None
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise BusStateError("a fake's block cannot be entered twice: make another fake()")
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
        """What is current where no bus is open: it checks, and sends nothing."""
        self._stand_in = self._stand_in or _StandIn()
        return self._stand_in

    def takes(self, event: type | None) -> bool:
        """Whether events of this type (None: plain messages) are faked; the bus asks."""
        return not self._only or (event is not None and issubclass(event, self._only))

    def keep(
        self, event: Event | None, sends: Sequence[Outgoing | Job], *, dispatched: bool = True
    ) -> list[Receipt]:
        """Keep what a bus has checked and would send; gives receipts without an offset.

        Raises BusStateError beyond MAX_KEPT.
        """
        if len(self._records) >= MAX_KEPT:
            raise BusStateError(f"a fake keeps up to {MAX_KEPT:,} events: clear() forgets them")
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
    """A context manager, in whose block whatever would be sent is checked, kept, and not sent.

    That holds for events and plain messages, by whatever way and through whatever bus or driver;
    where no bus is open, none is needed. What is invalid raises as it does in production. Listeners
    do not run for a faked event, and a queued one is not stored. Receipts have no offset.

    With `only`, just events of these types and of their subclasses are faked; others, and plain
    messages, are sent. Fakes can be nested: the innermost that takes an event has it. A fake holds
    for the task that put it in place and for those that it starts, and for tasks that have none of
    their own; put in place outside of an event loop, it holds for all.
    """
    return EventFake(*only)


class _StandIn(EventBus):
    """The bus where none is open: its checks are the real ones, and a fake has to take the rest."""

    def __init__(self) -> None:
        super().__init__(Settings(driver="null"), listeners=Listeners())

    def _fake_for(self, event: type | None) -> current.Fake:
        fake = super()._fake_for(event)
        if fake is None:
            what = "a plain message" if event is None else event.__name__
            raise BusStateError(
                f"no bus is open, and {what} is not faked: open a bus, or leave out the types of "
                "fake()"
            )
        return fake

    def _require_open(self) -> None:
        """It is never opened."""
