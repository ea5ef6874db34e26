"""An event as rows of an outbox, and back. Pure."""

import re
from typing import Final, Literal

import msgspec

from eventbus.errors import InvalidPayload
from eventbus.events import Event, Outgoing, ShouldQueue, encode_messages
from eventbus.messages import Message, json_decoder
from eventbus.queue import Job, job_of

__all__ = ["Row", "error_text", "prepared", "rows_of"]

MAX_ERROR: Final = 1000
"""Characters of the error that is stored with a row that cannot be published."""
_UNSTORABLE: Final = re.compile(r"[\0\ud800-\udfff]")
"""What PostgreSQL refuses in a text."""

_encode: Final = msgspec.json.encode
_decode_message: Final = json_decoder(Message)
_decode_job: Final = json_decoder(Job)
_decode_headers: Final = json_decoder(dict[str, str])


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One message or job, as an outbox stores it."""

    message_id: str
    """The event's id, by which the stream drops a second copy."""
    kind: Literal["message", "job"]
    channel: str
    """The channel of a message, the queue of a job. Rows of one channel are published in order."""
    event: str
    payload: bytes
    headers: bytes = b"{}"
    """A JSON object of strings."""
    volatile: bool = False


def rows_of(event: Event) -> list[Row]:
    """Check an event as a dispatch does, and encode its messages, or its job if it is queued.

    None for an event that is not broadcast. Raises EventFieldError, EventDefinitionError,
    EncodingError, InvalidChannel, InvalidEventName.
    """
    if isinstance(event, ShouldQueue):
        job = job_of(event)
        return [
            Row(
                message_id=job.meta.id,
                kind="job",
                channel=job.queue,
                event=job.event,
                payload=_encode(job),
            )
        ]
    return [
        Row(
            message_id=each.message.id,
            kind="message",
            channel=each.message.channel,
            event=each.message.event,
            payload=each.message.encode(),
            headers=_encode(each.headers),
            volatile=each.volatile,
        )
        for each in encode_messages(event)
    ]


def prepared(row: Row) -> Outgoing | Job:
    """What a row publishes. Raises InvalidPayload (`bad_row`)."""
    try:
        if row.kind == "job":
            return _decode_job(row.payload)
        if row.kind != "message":
            raise InvalidPayload(
                "bad_row", f"the row's kind is {row.kind!r}; allowed: message, job"
            )
        message = _decode_message(row.payload)
        return Outgoing(message, row.volatile, _decode_headers(row.headers))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidPayload("bad_row", f"the row is not one of an outbox: {exc}") from None


def error_text(error: Exception) -> str:
    """An error as it is stored with its row: bounded, and never empty, for such rows wait."""
    text = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", str(error)[:MAX_ERROR])
    return text or type(error).__name__
