"""Records dispatched events, with assertions about them."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from eventbus.channels import Pattern
from eventbus.events import Event, validate_queue
from eventbus.messages import encode_data
from eventbus.testing.records import RecordedEvent, RecordedMessage, format_records

__all__ = ["Recorder"]

E = TypeVar("E", bound=Event)
_ANYTHING: Final = object()


class Recorder:
    """Records dispatched events in order, and makes assertions about them.

    A failed assertion lists what was dispatched. Predicates are called with the event, or with the
    data of a message. Exceptions of a predicate are not caught.
    """

    def __init__(self, *only: type[Event]) -> None:
        """With `only`, record only events of these types and their subclasses."""
        for cls in only:
            _check_type(cls)
        self._only = only
        self._records: list[RecordedEvent] = []

    def dispatched(self, of: type[E], predicate: Callable[[E], object] | None = None) -> list[E]:
        """The dispatched events of a type and its subclasses, including queued ones."""
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
        """The events of a type that would have been stored in a queue, or in the given `queue`."""
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
        """The messages on a channel, on the channels of a pattern (`user.*`), or on all channels.

        Queued events have no messages here, since a worker broadcasts them.
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
        """Assert that an event of this type was dispatched, at least once or `times` times.

        Counts only events for which the predicate is true.
        """
        __tracebackhide__ = True
        found = self.dispatched(of, predicate)
        if not _enough(len(found), times):
            such = f"{of.__name__}{_such(predicate)}"
            self._fail(f"{such} was dispatched {_times(len(found))}", times, of)

    def assert_not_dispatched(
        self, of: type[E], predicate: Callable[[E], object] | None = None
    ) -> None:
        """Assert that no event of this type was dispatched for which the predicate is true."""
        __tracebackhide__ = True
        self.assert_dispatched(of, predicate, times=0)

    def assert_nothing_dispatched(self) -> None:
        """Assert that no event was dispatched and no message was published."""
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
        """Assert that an event of this type was queued, at least once or `times` times."""
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
        """Assert that a message was published, at least once or `times` times.

        `channel` is a channel or a pattern. `event` is an event name or type. `data` is the
        expected data as clients receive it: a value, which is compared as JSON, or a predicate.
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
            which = "" if data is _ANYTHING else " with matching data"
            self._fail(
                f"{such}{which} was broadcast on {channel} {_times(len(found))}", times, channel
            )

    def assert_not_broadcast_on(
        self, channel: str, *, event: str | type[Event] | None = None, data: Any = _ANYTHING
    ) -> None:
        """Assert that no such message was published. See `assert_broadcast_on`."""
        __tracebackhide__ = True
        self.assert_broadcast_on(channel, event=event, data=data, times=0)

    def clear(self) -> None:
        """Forget all recorded events."""
        self._records.clear()

    def _check(self, of: type[Event], predicate: object = None) -> None:
        """Refuse queries that can never match: they are mistakes in the test."""
        _check_type(of)
        if predicate is not None and not callable(predicate):
            raise TypeError(
                f"{repr(predicate)[:80]} is not a predicate: pass a callable that takes the event, "
                "or use `times=` for a number"
            )
        if self._only and not any(issubclass(of, cls) or issubclass(cls, of) for cls in self._only):
            faked = ", ".join(cls.__name__ for cls in self._only)
            raise ValueError(f"{of.__name__} is not faked: this fake records only {faked}")

    def _fail(self, what: str, times: int | None, about: type[Event] | str = "") -> None:
        __tracebackhide__ = True
        wanted = "at least once" if times is None else _times(times)
        # Similar events first, since a long list is cut off.
        records = sorted(self._records, key=lambda record: not _is_near(record, about))
        raise AssertionError(f"{what}, expected {wanted}.\n{format_records(records)}")


def _check_type(cls: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Event)):
        raise TypeError(f"{repr(cls)[:80]} is not an event type: use a subclass of eventbus.Event")


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
        raise ValueError(f"times={times}; allowed: 0 or more")
    return found > 0 if times is None else found == times


def _such(predicate: object) -> str:
    return "" if predicate is None else " that matches the predicate"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")
