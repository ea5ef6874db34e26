"""What was dispatched, and the assertions about it."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from eventbus.channels import Pattern
from eventbus.events import Event, validate_queue
from eventbus.messages import encode_data
from eventbus.testing.records import RecordedEvent, RecordedMessage, tell

__all__ = ["Recorder"]

E = TypeVar("E", bound=Event)
_ANYTHING: Final = object()


class Recorder:
    """Keeps what was dispatched, in its order, and asserts about it.

    A failed assertion tells what was dispatched instead. A predicate is called with the event (or,
    of a message, with its data); what it raises is not caught.
    """

    def __init__(self, *only: type[Event]) -> None:
        """With `only`, nothing but events of these types (and of their subclasses) is kept."""
        for cls in only:
            _check_type(cls)
        self._only = only
        self._records: list[RecordedEvent] = []

    def dispatched(self, of: type[E], predicate: Callable[[E], object] | None = None) -> list[E]:
        """The dispatched events of a type and its subclasses, queued ones included."""
        self._check(of, predicate)
        return [
            event
            for event, _, _ in self._records
            if isinstance(event, of) and (predicate is None or predicate(event))
        ]

    def queued(
        self,
        of: type[E],
        predicate: Callable[[E], object] | None = None,
        *,
        queue: str | None = None,
    ) -> list[E]:
        """The events of a type that would have been stored in a queue, or in the one named."""
        self._check(of, predicate)
        if queue is not None:
            validate_queue(queue)
        return [
            event
            for event, _, job in self._records
            if isinstance(event, of)
            and job is not None
            and queue in (None, job.queue)
            and (predicate is None or predicate(event))
        ]

    def broadcasts(self, channel: str | None = None) -> list[RecordedMessage]:
        """The messages on a channel, on those of a pattern (`user.*`), or all.

        Of events and plain messages alike; a queued event is broadcast by its worker, and has none.
        """
        messages = [message for record in self._records for message in record.messages]
        if channel is None:
            return messages
        pattern = Pattern(channel)
        return [message for message in messages if pattern.match(message.channel) is not None]

    def assert_dispatched(
        self,
        of: type[E],
        predicate: Callable[[E], object] | None = None,
        *,
        times: int | None = None,
    ) -> None:
        """An event of this type, for which the predicate holds, was dispatched; or `times` were."""
        __tracebackhide__ = True
        found = self.dispatched(of, predicate)
        if not _enough(len(found), times):
            such = f"{of.__name__}{_such(predicate)}"
            self._fail(f"{such} was dispatched {_times(len(found))}", times, of)

    def assert_not_dispatched(
        self, of: type[E], predicate: Callable[[E], object] | None = None
    ) -> None:
        """No event of this type, for which the predicate holds, was dispatched."""
        __tracebackhide__ = True
        self.assert_dispatched(of, predicate, times=0)

    def assert_nothing_dispatched(self) -> None:
        """No event was dispatched and no message published."""
        __tracebackhide__ = True
        if self._records:
            self._fail(f"something was dispatched {_times(len(self._records))}", 0)

    def assert_queued(
        self,
        of: type[E],
        predicate: Callable[[E], object] | None = None,
        *,
        queue: str | None = None,
        times: int | None = None,
    ) -> None:
        """An event of this type was stored in a queue (the one named), or `times` were."""
        __tracebackhide__ = True
        found = self.queued(of, predicate, queue=queue)
        if not _enough(len(found), times):
            such = f"{of.__name__}{_such(predicate)}"
            where = "" if queue is None else f" on {queue}"
            self._fail(f"{such} was queued{where} {_times(len(found))}", times, of)

    def assert_broadcast_on(
        self,
        channel: str,
        *,
        event: str | type[Event] | None = None,
        data: Any = _ANYTHING,
        times: int | None = None,
    ) -> None:
        """A message was published on a channel, or on one that a pattern matches; or `times` were.

        `event` is its name or the type of its event. `data` is what clients would get: a value,
        compared as JSON, or a predicate.
        """
        __tracebackhide__ = True
        if isinstance(event, type):
            self._check(event)
        found = [
            message
            for message in self.broadcasts(channel)
            if _is_of(message, event) and _has(message.data, data)
        ]
        if not _enough(len(found), times):
            name = event.__name__ if isinstance(event, type) else repr(event)
            such = "a message" if event is None else name
            which = "" if data is _ANYTHING else " with such data"
            self._fail(
                f"{such}{which} was broadcast on {channel} {_times(len(found))}", times, channel
            )

    def assert_not_broadcast_on(
        self, channel: str, *, event: str | type[Event] | None = None, data: Any = _ANYTHING
    ) -> None:
        """No such message was published; the arguments are those of `assert_broadcast_on`."""
        __tracebackhide__ = True
        self.assert_broadcast_on(channel, event=event, data=data, times=0)

    def clear(self) -> None:
        """Forget what was dispatched so far."""
        self._records.clear()

    def _check(self, of: type[Event], predicate: object = None) -> None:
        """A question that could only ever be answered by nothing is a mistake of the test."""
        _check_type(of)
        if predicate is not None and not callable(predicate):
            raise TypeError(
                f"{repr(predicate)[:80]} is no predicate: a callable that takes the event is, and "
                "`times=` says how often"
            )
        if self._only and not any(issubclass(of, cls) or issubclass(cls, of) for cls in self._only):
            kept = ", ".join(cls.__name__ for cls in self._only)
            raise ValueError(f"{of.__name__} is not faked here: this fake takes {kept} alone")

    def _fail(self, what: str, times: int | None, about: type[Event] | str = "") -> None:
        __tracebackhide__ = True
        wanted = "at least once" if times is None else _times(times)
        # What is alike comes first: the end of a long list is not told.
        told = sorted(self._records, key=lambda record: not _is_near(record, about))
        raise AssertionError(f"{what}, expected {wanted}.\n{tell(told)}")


def _check_type(cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Event)):
        raise TypeError(f"{repr(cls)[:80]} is no event type: a subclass of eventbus.Event is")


def _is_of(message: RecordedMessage, event: str | type[Event] | None) -> bool:
    if isinstance(event, type):
        return isinstance(message.source, event)
    return event in (None, message.event)


def _has(given: Any, data: Any) -> bool:
    if data is _ANYTHING:
        return True
    if callable(data):
        return bool(data(given))
    return bool(given == msgspec.json.decode(encode_data(data, "the data to compare with")))


def _is_near(record: RecordedEvent, about: type[Event] | str) -> bool:
    if isinstance(about, str):
        return any(message.channel == about for message in record.messages)
    return isinstance(record.event, about)


def _enough(found: int, times: int | None) -> bool:
    if times is not None and times < 0:
        raise ValueError(f"times={times}: 0 or more are allowed")
    return found > 0 if times is None else found == times


def _such(predicate: object) -> str:
    return "" if predicate is None else ", such as the predicate asks for,"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")
