"""Log lines for people: foreign text in them cannot forge a line or control the terminal."""

import logging
import re
from typing import Final

from eventbus.user_code import printable, traceback_of, valid_text

__all__ = ["LineFormatter", "exception_of", "message_of", "safe_lines"]

# A JWT has three parts in base64url; the first two begin with an encoded '{"' (RFC 7519 §3).
_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_HIDDEN: Final = "<token>"
_INDENT: Final = "    "


class LineFormatter(logging.Formatter):
    """`2026-12-01 12:00:00,123 WARNING eventbus.queue: …`, followed by an indented traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: ")

    def format(self, record: logging.LogRecord) -> str:
        """Format one line, followed by the lines of a traceback if there is one."""
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record) + message_of(record)
        return f"{text}\n{safe_lines(exception_of(record))}" if record.exc_info else text


def message_of(record: logging.LogRecord) -> str:
    """The message of a record on one line, with tokens hidden and control characters escaped."""
    return printable(_hide(record.getMessage()), keep="\t")


def exception_of(record: logging.LogRecord) -> str:
    """The traceback of a record, as Python prints it; the exception's own code may fail."""
    exc = record.exc_info[1] if record.exc_info else None
    return "" if exc is None else _hide(traceback_of(exc).rstrip("\n"))


def safe_lines(text: str) -> str:
    """The lines of a text, indented, with control characters escaped.

    The text of an exception may contain line breaks. Only the log's own lines begin at the margin.
    """
    return "\n".join(_INDENT + printable(line, keep="\t") for line in text.split("\n"))


def _hide(text: str) -> str:
    return _TOKEN.sub(_HIDDEN, valid_text(text))
