"""An edge that reports what its process holds: `python -m scripts.benchmark.soak.edge`.

It is `python -m eventbus_edge`, except that SIGUSR1 makes it write a Held as JSON to the file that
the environment variable SOAK_HELD names.
"""

import asyncio
import collections
import gc
import os
import signal
from pathlib import Path
from typing import Any, Final

import msgspec

from eventbus_edge.__main__ import main

__all__ = ["FILE", "Held"]

FILE: Final = "SOAK_HELD"
_OF_CONNECTIONS: Final = ("Connection", "Front", "Joiner", "Outbox", "Session", "Slot", "WebSocket")


class Held(msgspec.Struct):
    """The tasks, timers and connection objects of a process."""

    tasks: int
    """Tasks that have not ended."""
    timers: int
    connections: dict[str, int]
    """Objects that belong to connections, by type."""


def _held() -> Held:
    gc.collect()
    counts: collections.Counter[str] = collections.Counter()
    tasks = 0
    for each in gc.get_objects():
        kind = type(each)
        if issubclass(kind, asyncio.Task):
            tasks += not each.done()
        elif kind.__name__ == "TimerHandle":
            counts["TimerHandle"] += 1
        elif kind.__module__.startswith("eventbus_edge"):
            counts[kind.__name__] += 1
    return Held(tasks, counts["TimerHandle"], {name: counts[name] for name in _OF_CONNECTIONS})


def _write(_number: int, _frame: Any) -> None:
    path = Path(os.environ[FILE])
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(_held()))
    new.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _write)
    main()
