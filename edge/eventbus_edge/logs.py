"""The node's log, as text or as one JSON object per line; tokens are masked."""

import datetime
import logging
import sys
from typing import (
    Final,
    Literal,
    TextIO,
)

import msgspec

from eventbus.log_lines import exception_of, message_of, safe_lines
from eventbus.user_code import printable

__all__ = ["ConsoleFormatter", "JsonFormatter", "LogFormat", "configure", "connection_logger"]


LogFormat = Literal["console", "json"]

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
        text = f"{time:%H:%M:%S}.{int(record.msecs):03d} {level} {record.name}: "
        text += message_of(record)
        if (connection := _connection(record)) is not None:
            text += f" [connection={connection}]"
        if record.exc_info:
            text += f"\n{safe_lines(exception_of(record))}"
        return text


class JsonFormatter(logging.Formatter):
    """One object with time (RFC 3339, UTC), level, logger, message, connection and exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one line of JSON."""
        fields: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        if (connection := _connection(record)) is not None:
            fields["connection"] = connection
        if record.exc_info:
            fields["exception"] = printable(exception_of(record), keep="\n\t")
        return _encode(fields).decode()


def _connection(record: logging.LogRecord) -> str | None:
    value = getattr(record, "connection", None)
    return value if isinstance(value, str) else None
