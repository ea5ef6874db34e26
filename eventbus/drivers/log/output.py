"""The output of the log driver: the console, or a file that is rotated by size."""

import io
import json
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import (
    Protocol,
    TextIO,
)

from eventbus.errors import ConfigError

__all__ = ["Console", "File", "Output"]


class Output(Protocol):
    """Takes lines from one thread."""

    def write(self, line: str) -> None:
        """Write one line and flush it. Raises OSError or ValueError."""

    def close(self) -> None:
        """Close it. Raises OSError."""


class Console:
    """The process's standard output, which stays open."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    @property
    def is_terminal(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def write(self, line: str) -> None:
        """Write one line; characters that the console's encoding lacks become JSON escapes."""
        try:
            line.encode(self._stream.encoding or "utf-8")
        except UnicodeEncodeError:
            line = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in line)
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: the console stays open."""


class File:
    """A file that is rotated by the standard library's handler; one process writes to it."""

    def __init__(self, path: str, *, max_bytes: int, backups: int) -> None:
        """Open `path` to append to it. Raises ConfigError if it cannot be written."""
        try:
            self._handler = _Handler(path, maxBytes=max_bytes, backupCount=backups)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"BROADCAST_LOG_PATH={path!r} cannot be written: {exc}; allowed: the path of a "
                "file in a folder that exists, both writable, or nothing for the console",
                variable="BROADCAST_LOG_PATH",
            ) from exc

    def write(self, line: str) -> None:
        """Write one line, after rotating if the file would exceed its size."""
        self._handler.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Handler(RotatingFileHandler):
    """Raises errors, which the base class prints, and starts each line on a new line."""

    def __init__(self, path: str, *, maxBytes: int, backupCount: int) -> None:  # noqa: N803
        super().__init__(path, maxBytes=maxBytes, backupCount=backupCount, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        stream, self.stream = self.stream, None  # emit opens it again
        try:
            if stream is not None:
                stream.close()
        except OSError:  # the same error again: its buffer cannot be written either
            pass
        raise  # noqa: PLE0704 - logging calls this while it handles the exception

    def _open(self) -> io.TextIOWrapper:
        stream = super()._open()
        # An earlier writer may have been killed, or met a full disk, in the middle of a line.
        path = Path(self.baseFilename)
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    stream.write("\n")
        return stream
