"""Long loops, cut into slices, so that none of them delays messages and heartbeats."""

import asyncio
import heapq
import itertools
import time
from collections.abc import (
    AsyncIterator,
    Iterable,
)
from typing import (
    Any,
    Final,
    TypeVar,
)

__all__ = ["paced", "smallest"]


T = TypeVar("T")
Row = TypeVar("Row", bound=tuple[Any, ...])

SLICE_S: Final = 0.005
"""How long a loop may run before the event loop serves everything else."""
_RUN: Final = 2000
"""Rows that are sorted in one step: about a millisecond."""


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """Iterate, and let other tasks run every few milliseconds.

    They may change what is iterated over: pass a copy of a shared collection.
    """
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > SLICE_S:
            await asyncio.sleep(0)
            begun = time.perf_counter()


async def smallest(count: int, rows: Iterable[Row]) -> list[Row]:
    """Like `heapq.nsmallest`, but paced; see `paced` for what `rows` may be."""
    runs: list[list[Row]] = [[]]
    async for row in paced(rows):
        runs[-1].append(row)
        if len(runs[-1]) == _RUN:
            runs[-1].sort()
            runs.append([])
    runs[-1].sort()
    merged = itertools.islice(heapq.merge(*runs), count)
    return [row async for row in paced(merged)]
