"""Queues within one process: the reference of what a queue does, and the double for tests.

Jobs end with the process, and a reader that forgets to end a job keeps it: leases are for processes
that may die, and here all die at once.
"""

import asyncio
import collections
import itertools
import logging
from collections.abc import (
    Callable,
    Sequence,
)
from typing import Final

from eventbus.drivers.base import (
    Position,
    Published,
)
from eventbus.drivers.queues import (
    Failure,
    LeasedJob,
    QueueStats,
)
from eventbus.errors import PublishFailed

__all__ = ["MemoryQueues"]


DRIVER: Final = "memory"
MAX_JOBS: Final = 100_000
"""Of one queue, delayed ones included."""
MAX_FAILURES: Final = 10_000
REMEMBERED_S: Final = 120.0
WAIT_S: Final = 30.0

_log = logging.getLogger(__name__)


class _Queue:
    __slots__ = ("arrived", "delayed", "ready", "taken")

    def __init__(self) -> None:
        self.ready: collections.deque[_Stored] = collections.deque()
        self.taken = 0
        self.delayed = 0
        self.arrived = asyncio.Event()

    def add(self, stored: "_Stored", *, first: bool = False) -> None:
        if first:
            self.ready.appendleft(stored)
        else:
            self.ready.append(stored)
        self.arrived.set()


class _Stored:
    __slots__ = ("attempts", "key", "payload")

    def __init__(self, key: str, payload: bytes) -> None:
        self.key = key
        self.payload = payload
        self.attempts = 0


class MemoryLeasedJob:
    """A job that a reader has taken."""

    __slots__ = ("_queues", "_stored", "queue")

    def __init__(self, queues: "MemoryQueues", queue: str, stored: _Stored) -> None:
        self.queue = queue
        self._queues = queues
        self._stored = stored

    @property
    def key(self) -> str:
        """A name for it where its payload tells none."""
        return self._stored.key

    @property
    def payload(self) -> bytes:
        """What was pushed."""
        return self._stored.payload

    @property
    def attempt(self) -> int:
        """How often it has been taken and not handed back."""
        return self._stored.attempts

    async def done(self) -> None:
        """It has been done."""
        self._queues.queue(self.queue).taken -= 1

    async def retry(self, seconds: float) -> None:
        """Give it to a reader again, after that time; it counts as taken till then."""
        queue, stored = self._queues.queue(self.queue), self._stored

        def again() -> None:
            queue.taken -= 1
            queue.add(stored, first=True)

        self._queues.later(seconds, again)

    async def hand_back(self) -> None:
        """Give it to a reader again, as if it had not been taken."""
        queue = self._queues.queue(self.queue)
        queue.taken -= 1
        self._stored.attempts -= 1
        queue.add(self._stored, first=True)

    async def fail(self, failure: Failure) -> None:
        """Keep it among the failures."""
        self._queues.keep(failure)
        self._queues.queue(self.queue).taken -= 1

    async def touch(self) -> bool:
        """There is no lease to extend."""
        return True

    async def is_queued(self) -> bool:
        """It is: there is no lease that could have ended."""
        return True

    def continues(self, earlier: LeasedJob) -> None:
        """Nothing comes twice."""


class MemoryReader:
    """Takes jobs from one queue."""

    def __init__(self, queues: "MemoryQueues", queue: str) -> None:
        self._queues = queues
        self._name = queue

    async def fetch(self, limit: int) -> Sequence[MemoryLeasedJob]:
        """What is ready now."""
        queue = self._queues.queue(self._name)
        taken: list[MemoryLeasedJob] = []
        while queue.ready and len(taken) < limit:
            stored = queue.ready.popleft()
            stored.attempts += 1
            queue.taken += 1
            taken.append(MemoryLeasedJob(self._queues, self._name, stored))
        return taken

    async def wait(self) -> MemoryLeasedJob | None:
        """The next job, or None after half a minute."""
        queue = self._queues.queue(self._name)
        try:
            async with asyncio.timeout(WAIT_S):
                while not queue.ready:
                    queue.arrived.clear()
                    await queue.arrived.wait()
        except TimeoutError:
            return None
        found = await self.fetch(1)
        return found[0] if found else None

    async def aclose(self) -> None:
        """Nothing is held by the reader itself."""


class MemoryQueues:
    """The queues that the drivers of one MemoryBroker share."""

    lease = float("inf")

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._failures: collections.OrderedDict[str, Failure] = collections.OrderedDict()
        self._ids: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()
        self._timers: set[asyncio.TimerHandle] = set()
        self._numbers = itertools.count(1)

    async def push(self, queue: str, id: str, payload: bytes, delay: float) -> Published:  # noqa: A002
        """Store a job; see `QueueStore.push`."""
        now = asyncio.get_running_loop().time()
        while self._ids and next(iter(self._ids.values()))[0] <= now:
            self._ids.popitem(last=False)
        if known := self._ids.get(id):
            return Published(Position(known[1], DRIVER), duplicate=True)
        there = self.queue(queue)
        if len(there.ready) + there.taken + there.delayed >= MAX_JOBS:
            raise PublishFailed(f"queue {queue} is full: it holds {MAX_JOBS} jobs", driver=DRIVER)
        number = next(self._numbers)
        stored = _Stored(f"seq-{number}", payload)
        if delay > 0:
            there.delayed += 1

            def due() -> None:
                there.delayed -= 1
                there.add(stored)

            self.later(delay, due)
        else:
            there.add(stored)
        self._ids[id] = (now + REMEMBERED_S, number)
        return Published(Position(number, DRIVER), duplicate=False)

    def reader(self, queue: str) -> MemoryReader:
        """A reader of one queue."""
        self.queue(queue)
        return MemoryReader(self, queue)

    async def stats(self) -> Sequence[QueueStats]:
        """Each queue that was ever used."""
        return [
            QueueStats(name, len(queue.ready), queue.taken, queue.delayed)
            for name, queue in sorted(self._queues.items())
        ]

    async def failures(self, limit: int) -> Sequence[Failure]:
        """The oldest failures."""
        return list(itertools.islice(self._failures.values(), limit))

    async def failure(self, id: str) -> Failure | None:  # noqa: A002
        """The failure of that id, or None."""
        return self._failures.get(id)

    async def failure_count(self) -> int:
        """How many failures are kept."""
        return len(self._failures)

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Push a failed job again."""
        failure = self._failures.pop(id, None)
        if failure is None:
            return False
        stored = _Stored(f"seq-{next(self._numbers)}", failure.payload)
        self.queue(failure.queue).add(stored)
        return True

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Drop a failure."""
        return self._failures.pop(id, None) is not None

    async def flush(self) -> int:
        """Drop all failures."""
        count = len(self._failures)
        self._failures.clear()
        return count

    def queue(self, name: str) -> _Queue:
        """The queue of that name, made when it is first asked for."""
        return self._queues.setdefault(name, _Queue())

    def keep(self, failure: Failure) -> None:
        """Keep a failure; the oldest goes when there are too many."""
        self._failures.pop(failure.id, None)
        self._failures[failure.id] = failure
        if len(self._failures) > MAX_FAILURES:
            dropped, _ = self._failures.popitem(last=False)
            _log.warning("failed job %s is dropped: %d are kept", dropped, MAX_FAILURES)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after that time, unless the event loop ends before."""

        def fire() -> None:
            self._timers.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(seconds, fire)
        self._timers.add(handle)
