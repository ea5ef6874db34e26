"""The file to which durable subscriptions and queue workers append a line per handled message."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from eventbus.cli.chaos import Log, Message

__all__ = ["HELD", "QUEUE", "Handled", "append"]

QUEUE: Final = "queue"
"""Stands for a channel in the lines about jobs."""
HELD: Final = "held"
"""The first word of a line about a listener that waits; the process id follows."""


def append(path: Path, *words: object) -> None:
    """Append a line, in one write."""
    line = " ".join(map(str, (*words, time.monotonic())))
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


class Handled:
    """Reads the file, and records each message in the log of its channel."""

    def __init__(self, path: Path, log_of: Callable[[str], Log]) -> None:
        self.held: list[int] = []
        """The process ids of workers whose listeners wait or have waited."""
        self._path = path
        self._log_of = log_of
        self._offset = 0

    def read(self) -> None:
        """Read the new lines."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                channel, by, number, at = line.decode().split()
                if channel == HELD:
                    self.held.append(int(by))
                else:
                    self._log_of(channel).received(Message(by, int(number)), float(at))
