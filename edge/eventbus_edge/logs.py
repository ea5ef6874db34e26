"""The node's log, as text or as one JSON object per line; tokens are masked."""

import datetime
import logging
import re
import sys
from typing import (
    Final,
    Literal,
    TextIO,
)

import msgspec

from eventbus.user_code import (
    traceback_of,
    valid_text,
)

__all__ = ["ConsoleFormatter", "JsonFormatter", "LogFormat", "configure", "connection_logger"]


LogFormat = Literal["console", "json"]

# A JWT has three parts in base64url; the first two begin with an encoded '{"' (RFC 7519 §3).
_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_HIDDEN: Final = "<token>"
_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_PLAIN: Final = "\x1b[0m"
_encode: Final = msgspec.json.Encoder().encode


def configure(form: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Write the log of the whole process to `stream`; None is stderr."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    coloured = stream.isatty()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter(colour=coloured))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def connection_logger(
    logger: logging.Logger, connection_id: str | None
) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose records have a connection's id; None if there is no id yet."""
    return logging.LoggerAdapter(logger, {"connection": connection_id})


class ConsoleFormatter(logging.Formatter):
    """`12:00:00.123 WARNING eventbus_edge.node: … [connection=…]`."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Format one line, followed by the lines of a traceback."""
        time = datetime.datetime.fromtimestamp(record.created).astimezone()
        level = f"{record.levelname:<7}"
        if self._colour and record.levelname in _COLOURS:
            level = f"{_COLOURS[record.levelname]}{level}{_PLAIN}"
        text = f"{time:%H:%M:%S}.{int(record.msecs):03d} {level} {record.name}: {_text(record)}"
        if (connection := _connection(record)) is not None:
            text += f" [connection={connection}]"
        if record.exc_info:
            text += f"\n{_exception(record)}"
        return text


class JsonFormatter(logging.Formatter):
    """One object with time (RFC 3339, UTC), level, logger, message, connection and exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one line of JSON."""
        fields: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record),
        }
        if (connection := _connection(record)) is not None:
            fields["connection"] = connection
        if record.exc_info:
            fields["exception"] = _exception(record)
        return _encode(fields).decode()


def _text(record: logging.LogRecord) -> str:
    # With line breaks, text quoted in a message could pass for separate log lines.
    text = _hide(record.getMessage())
    return valid_text(text).replace("\r", "\\r").replace("\n", "\\n")


def _exception(record: logging.LogRecord) -> str:
    """The traceback; a broken exception does not lose the record."""
    exc = record.exc_info[1] if record.exc_info else None
    return "" if exc is None else _hide(traceback_of(exc).rstrip("\n"))


def _connection(record: logging.LogRecord) -> str | None:
    value = getattr(record, "connection", None)
    return value if isinstance(value, str) else None


def _hide(text: str) -> str:
    return _TOKEN.sub(_HIDDEN, text)
