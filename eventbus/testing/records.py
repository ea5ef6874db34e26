"""The records of a fake, and how failures list them."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.events import Event, Outgoing, event_definition
from eventbus.messages import HEADER_EXCEPT
from eventbus.queue import Job

__all__ = ["RecordedEvent", "RecordedMessage", "format_records", "read_message"]

MAX_LISTED: Final = 20
"""How many records a failure lists."""
MAX_LINE: Final = 200
"""The maximum length of an event's fields, a message's data, or the channels."""
MAX_VALUE: Final = 80


class RecordedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that would have been published, as its receivers would see it."""

    channel: str
    event: str
    data: Any
    """Decoded from the JSON that clients would receive."""
    id: str
    volatile: bool
    except_connection: str | None
    """The client connection that would not receive it."""
    headers: Mapping[str, str]
    via: str | None
    """The driver it would be published with, if not the bus's default."""
    source: Event | None
    """The event that it belongs to; None for a plain message."""


class RecordedEvent(NamedTuple):
    """A dispatched event with its messages, or a plain message without an event."""

    event: Event | None
    messages: tuple[RecordedMessage, ...]
    job: Job | None
    """The job that would have been queued."""


def read_message(outgoing: Outgoing, source: Event | None) -> RecordedMessage:
    """An outgoing message as a receiver would see it."""
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


def format_records(records: Iterable[RecordedEvent]) -> str:
    """List the records, one per line, with their channels or queue. Long lists are cut off."""
    kept = list(records)
    if not kept:
        return "Nothing was dispatched."
    lines = [f"  {number}. {_line(record)}" for number, record in enumerate(kept[:MAX_LISTED], 1)]
    if len(kept) > MAX_LISTED:
        lines.append(f"  … and {len(kept) - MAX_LISTED:,} more")
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
