"""What a fake keeps, and how it is told when a test fails."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.events import Event, Outgoing, event_definition
from eventbus.messages import HEADER_EXCEPT
from eventbus.queue import Job

__all__ = ["RecordedEvent", "RecordedMessage", "read_message", "tell"]

MAX_TOLD: Final = 20
"""How many of the things that were dispatched a failure tells."""
MAX_LINE: Final = 200
"""Characters of an event's fields, a message's data, or the channels."""
MAX_VALUE: Final = 80


class RecordedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that would have been published, as its receivers would have seen it."""

    channel: str
    event: str
    data: Any
    """Decoded from the JSON that clients would get."""
    id: str
    volatile: bool
    except_connection: str | None
    """The client connection that would not have got it."""
    headers: Mapping[str, str]
    via: str | None
    """The driver that was asked for, where it is not the bus's own."""
    source: Event | None
    """The event that it comes from; None for a plain message."""


class RecordedEvent(NamedTuple):
    """A dispatched event, or (without one) a plain message, with what would have left."""

    event: Event | None
    messages: tuple[RecordedMessage, ...]
    job: Job | None
    """What would have been stored in a queue."""


def read_message(outgoing: Outgoing, source: Event | None) -> RecordedMessage:
    """What a receiver would see of an outgoing message."""
    message, headers = outgoing.message, dict(outgoing.headers)
    return RecordedMessage(
        channel=message.channel,
        event=message.event,
        data=msgspec.json.decode(message.data),
        id=message.id,
        volatile=outgoing.volatile,
        except_connection=headers.pop(HEADER_EXCEPT, None),
        headers=headers,
        via=outgoing.via,
        source=source,
    )


def tell(records: Iterable[RecordedEvent]) -> str:
    """What was dispatched, a line for each, of bounded length; the first ones when there are many.

    Of a queued event the queue is told, of others the channels.
    """
    kept = list(records)
    if not kept:
        return "Nothing was dispatched."
    lines = [f"  {number}. {_line(record)}" for number, record in enumerate(kept[:MAX_TOLD], 1)]
    if len(kept) > MAX_TOLD:
        lines.append(f"  … and {len(kept) - MAX_TOLD:,} more")
    return "\n".join(("Dispatched instead:", *lines))


def _line(record: RecordedEvent) -> str:
    event, messages, job = record
    if event is None:
        (message,) = messages
        data = _cut(repr(message.data), MAX_LINE)
        return f"message {message.event!r} on {message.channel}{_options(message)}: {data}"
    if job is not None:
        where = f"queued on {job.queue}" + (f", after {job.delay:g} s" if job.delay else "")
        if event_definition(type(event)).broadcasts:
            where += " (its worker broadcasts it)"
    elif messages:
        channels = _cut(", ".join(message.channel for message in messages), MAX_LINE)
        where = f"on {channels}{_options(messages[0])}"
    else:
        where = "not broadcast"
    return f"{type(event).__name__}{_cut(_fields(event), MAX_LINE)} {where}"


def _fields(event: Event) -> str:
    values = ((name, repr(getattr(event, name))) for name in event.__struct_fields__)
    return f"({', '.join(f'{name}={_cut(value, MAX_VALUE)}' for name, value in values)})"


def _options(message: RecordedMessage) -> str:
    options = [
        *(["volatile"] if message.volatile else []),
        *([f"via {message.via}"] if message.via else []),
        *([f"except {message.except_connection}"] if message.except_connection else []),
    ]
    return f" ({', '.join(options)})" if options else ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
