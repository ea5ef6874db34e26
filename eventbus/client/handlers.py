"""The handlers of a subscription: which ones take a message, and in what form."""

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.client.frames import ClientMessage
from eventbus.drivers import Delivery, Position
from eventbus.errors import EventDefinitionError, InvalidPayload
from eventbus.events import Event, EventReader
from eventbus.messages import json_decoder
from eventbus.user_code import advice_on, call_guarded, guarded, takes_context

__all__ = ["ANY", "Handlers"]

_log = logging.getLogger(__name__)

ANY: Final = "*"
"""Means every message of the application."""

Read = Callable[[ClientMessage], tuple[Any, Any]]


class _Handler(NamedTuple):
    event: str
    call: Callable[..., Any]
    read: Read
    """Makes the handler's arguments, of which it takes one or two. Raises ValueError."""
    with_context: bool


class Handlers:
    """Calls the handlers of a message one after another, even if some of them fail."""

    def __init__(self, name: str) -> None:
        """`name` is the subscription's name in the log."""
        self.failures = 0
        """How many times a handler raised, or data did not fit its type."""
        self._name = name
        self._handlers: tuple[_Handler, ...] = ()

    @property
    def take_messages(self) -> bool:
        """Whether any of them takes messages of the application, not only the edge's own events."""
        return any(not handler.event.startswith("eb:") for handler in self._handlers)

    def add(
        self, event: str | type[Event], call: Callable[..., Any], type_: Any, pattern: str
    ) -> Callable[[], None]:
        """Add a handler; returns a function that removes it.

        Raises TypeError, EventDefinitionError.
        """
        with_context = takes_context(call)
        if isinstance(event, str):
            read = _plain if type_ is None else _typed(type_)
            handler = _Handler(event, call, read, with_context)
        else:
            reader = _reader(event, pattern)
            handler = _Handler(reader.name, call, _event(reader), with_context)
        self._handlers = (*self._handlers, handler)

        def remove() -> None:
            self._handlers = tuple(each for each in self._handlers if each is not handler)

        return remove

    def handles(self, event: str, *, is_system: bool) -> bool:
        """Whether there is a handler for an event."""
        return any(each.event == event or (each.event == ANY and not is_system)
                   for each in self._handlers)  # fmt: skip

    def count_failure(self) -> None:
        """Count one more failure."""
        self.failures += 1

    async def call(self, message: ClientMessage) -> None:
        """Call the handlers of a message."""
        is_system = message.event.startswith("eb:")
        for handler in self._handlers:
            if handler.event != message.event and (handler.event != ANY or is_system):
                continue
            try:
                with guarded():
                    arguments = handler.read(message)
                await call_guarded(handler.call, *arguments[: 2 if handler.with_context else 1])
            except Exception as exc:  # noqa: BLE001 - a handler may raise anything
                self.count_failure()
                # The data stays out of the log: it may be confidential.
                _log.exception(
                    "the handler of %r of the %s failed, id %s%s",
                    message.event,
                    self._name,
                    message.id,
                    advice_on(exc),
                )


def _plain(message: ClientMessage) -> tuple[Any, Any]:
    return message.data, message


def _typed(type_: Any) -> Read:
    decode = json_decoder(type_)  # raises TypeError for a type that cannot be decoded
    return lambda message: (decode(message.raw), message)


def _event(reader: EventReader[Any]) -> Read:
    def read(message: ClientMessage) -> tuple[Any, Any]:
        fields = {name: getattr(message, name) for name in ("channel", "event", "timestamp", "id")}
        payload = msgspec.json.encode({**fields, "data": msgspec.Raw(message.raw)})
        position = None
        if message.offset is not None and message.epoch is not None:
            position = Position(message.offset, message.epoch)
        found = reader.read(message.channel, Delivery("", payload, position=position))
        if found is None:
            raise InvalidPayload("bad_data", f"the event is not {reader.name}")
        return found

    return read


def _reader(event: type[Event], pattern: str) -> EventReader[Any]:
    try:
        return EventReader(event)
    except EventDefinitionError:  # its own channels are unknown, those of the subscription are not
        return EventReader(event, channel=pattern)
