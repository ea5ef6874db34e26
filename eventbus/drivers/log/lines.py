"""Formats one message as a line of JSON, or as a readable line for a terminal."""

import base64
import datetime
import re
from collections.abc import Iterable
from typing import (
    Final,
    Literal,
    NamedTuple,
)

import msgspec

from eventbus.channels import Subjects
from eventbus.drivers.base import Headers
from eventbus.drivers.log.mask import (
    MASK,
    Mask,
)
from eventbus.errors import InvalidChannel
from eventbus.messages import HEADER_EVENT, HEADER_ID, json_decoder

__all__ = ["LEVELS", "Entry", "Level", "LineFormat", "level_of"]


Level = Literal["debug", "info", "warning"]
LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning")
"""From the most detailed to the least."""

_COLOURS: Final = {"debug": "2", "info": "36", "warning": "33"}
_UNPRINTABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""Characters that would break a line, or control a terminal."""


class Entry(NamedTuple):
    """A published message and its time."""

    time: datetime.datetime
    subject: str
    payload: bytes
    headers: Headers


class _Wire(msgspec.Struct):
    """The fields of an envelope that the log shows."""

    event: str
    data: msgspec.Raw
    id: str | None = None


class _Line(msgspec.Struct, omit_defaults=True):
    timestamp: datetime.datetime
    level: Level
    subject: str
    channel: str | None = None
    event: str | None = None
    id: str | None = None
    data: msgspec.Raw | None = None
    data_base64: str | None = None
    headers: dict[str, str] | None = None


_wire: Final = json_decoder(_Wire)
_raw: Final = json_decoder(msgspec.Raw)
_encode: Final = msgspec.json.encode


def level_of(subjects: Subjects, subject: str) -> Level:
    """The log level of a message.

    `info` for messages of channels, `warning` for those in quarantine, `debug` for volatile
    messages and the system's own.
    """
    if subject.startswith(f"{subjects.namespace}.quarantine."):
        return "warning"
    return "info" if subjects.live_of(subject) is not None else "debug"


class LineFormat:
    """Formats messages as lines, with secrets masked."""

    def __init__(self, subjects: Subjects, mask: Iterable[str]) -> None:
        """`mask` has the words that mark a key's value as secret; see Mask."""
        self._subjects = subjects
        self._mask = Mask(mask)

    def json(self, entry: Entry) -> str:
        """One line of JSON, without the line end.

        `data` is the published data, with secrets masked. If it is not JSON, `data_base64` has the
        bytes, or the mask if they contain a masked word.
        """
        return _one_line(_encode(self._line(entry)).decode())

    def readable(self, entry: Entry, *, colour: bool) -> str:
        """One line for a person: time, channel (or subject), event, data, id, headers."""
        line = self._line(entry)
        data = line.data_base64 or bytes(line.data or b"").decode()
        parts = [
            (f"{line.timestamp.astimezone():%H:%M:%S.%f}"[:-3], "2"),
            (line.channel or line.subject, _COLOURS[line.level]),
            (line.event or "", "1"),
            (data, ""),
            (line.id or "", "2"),
            (" ".join(f"{name}={value}" for name, value in (line.headers or {}).items()), "2"),
        ]
        return "  ".join(
            f"\x1b[{code}m{text}\x1b[0m" if colour and code else text
            for text, code in ((_one_line(text), code) for text, code in parts)
            if text
        )

    def _line(self, entry: Entry) -> _Line:
        subjects = self._subjects
        data = data_base64 = None
        message_id, event = entry.headers.get(HEADER_ID), entry.headers.get(HEADER_EVENT)
        try:
            text = entry.payload.decode()
            try:
                wire = _wire(text)
            except msgspec.ValidationError:
                raw = _raw(text)
            else:
                raw, event, message_id = wire.data, wire.event, wire.id or message_id
            data = msgspec.Raw(self._mask.apply(bytes(raw).decode()).encode())
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            hidden = self._mask.hides_within(entry.payload)
            data_base64 = MASK if hidden else base64.b64encode(entry.payload).decode()
        headers = {
            name: MASK if self._mask.hides(name) else value
            for name, value in entry.headers.items()
            if name not in (HEADER_ID, HEADER_EVENT)
        }
        return _Line(
            entry.time,
            level_of(subjects, entry.subject),
            entry.subject,
            channel=self._channel(entry.subject),
            event=event,
            id=message_id,
            data=data,
            data_base64=data_base64,
            headers=headers or None,
        )

    def _channel(self, subject: str) -> str | None:
        """The channel of a subject; None for an internal one."""
        try:
            return self._subjects.channel_of(subject)
        except InvalidChannel:
            return None


def _one_line(text: str) -> str:
    # In valid JSON, line ends and tabs are only between tokens.
    text = text.translate({0x0A: " ", 0x0D: " ", 0x09: " "})
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
