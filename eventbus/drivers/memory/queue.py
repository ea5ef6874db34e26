"""In-memory queues: the reference for other queues, and a double for tests.

Jobs end with the process. A lease never ends: leases are for processes that may die, and here there
is only one.
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
    QueueStats,
)
from eventbus.errors import PublishFailed

__all__ = ["MemoryQueues"]


DRIVER: Final = "memory"
MAX_JOBS: Final = 100_000
"""Jobs of one queue, including delayed ones."""
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

    def __len__(self) -> int:
        return len(self.ready) + self.taken + self.delayed

    def take(self) -> "_Stored":
        """The next job that is ready."""
        stored = self.ready.popleft()
        stored.begin()
        self.taken += 1
        return stored

    def end(self) -> None:
        """A taken job has ended."""
        self.taken -= 1

    def give_back(self, stored: "_Stored") -> None:
        """A taken job is ready again, before all others."""
        self.taken -= 1
        self.add(stored, first=True)

    def delay(self) -> None:
        """A job is on its way, until `due`."""
        self.delayed += 1

    def due(self, stored: "_Stored") -> None:
        """A delayed job is ready."""
        self.delayed -= 1
        self.add(stored)

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

    def begin(self) -> None:
        """Count an attempt."""
        self.attempts += 1

    def undo_attempt(self) -> None:
        """The last attempt does not count."""
        self.attempts -= 1


class MemoryLeasedJob:
    """A job that a reader has leased."""

    __slots__ = ("_queues", "_stored", "queue")

    def __init__(self, queues: "MemoryQueues", queue: str, stored: _Stored) -> None:
        self.queue = queue
        self._queues = queues
        self._stored = stored

    @property
    def key(self) -> str:
        """An identifier for a job whose payload cannot be read."""
        return self._stored.key

    @property
    def payload(self) -> bytes:
        """The pushed payload."""
        return self._stored.payload

    @property
    def attempt(self) -> int:
        """The attempt, starting at 1; a job that was handed back does not count."""
        return self._stored.attempts

    async def done(self) -> None:
        """Remove the job: it is done."""
        self._queues.queue(self.queue).end()

    async def retry(self, seconds: float) -> None:
        """Redeliver it after that time; until then it counts as taken."""
        queue, stored = self._queues.queue(self.queue), self._stored
        self._queues.later(seconds, lambda: queue.give_back(stored))

    async def hand_back(self) -> None:
        """Return it to the queue, as if it had not been taken."""
        self._stored.undo_attempt()
        self._queues.queue(self.queue).give_back(self._stored)

    async def fail(self, failure: Failure) -> None:
        """Move it to the failed jobs."""
        self._queues.keep(failure)
        self._queues.queue(self.queue).end()

    async def touch(self) -> bool:
        """Do nothing: leases never end."""
        return True

    async def is_queued(self) -> bool:
        """True: leases never end."""
        return True

    def counts_as(self, attempt: int) -> None:
        """Do nothing: each delivery is an attempt, because leases never end."""


class MemoryReader:
    """Takes jobs from one queue."""

    def __init__(self, queues: "MemoryQueues", queue: str) -> None:
        self._queues = queues
        self._name = queue

    async def fetch(self, limit: int) -> Sequence[MemoryLeasedJob]:
        """The jobs that are ready now, up to `limit`."""
        queue = self._queues.queue(self._name)
        jobs: list[MemoryLeasedJob] = []
        while queue.ready and len(jobs) < limit:
            jobs.append(MemoryLeasedJob(self._queues, self._name, queue.take()))
        return jobs

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
        """Do nothing: the reader itself has no jobs."""


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
        if len(there) >= MAX_JOBS:
            raise PublishFailed(f"queue {queue} is full: it holds {MAX_JOBS} jobs", driver=DRIVER)
        number = next(self._numbers)
        stored = _Stored(f"seq-{number}", payload)
        if delay > 0:
            there.delay()
            self.later(delay, lambda: there.due(stored))
        else:
            there.add(stored)
        self._ids[id] = (now + REMEMBERED_S, number)
        return Published(Position(number, DRIVER), duplicate=False)

    def reader(self, queue: str) -> MemoryReader:
        """A reader of one queue."""
        self.queue(queue)
        return MemoryReader(self, queue)

    async def stats(self) -> Sequence[QueueStats]:
        """The counts of every queue that was used."""
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
        """The number of failures."""
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
        """The queue of that name, created on first use."""
        return self._queues.setdefault(name, _Queue())

    def keep(self, failure: Failure) -> None:
        """Store a failure; the oldest one is dropped if there are too many."""
        self._failures.pop(failure.id, None)
        self._failures[failure.id] = failure
        if len(self._failures) > MAX_FAILURES:
            dropped, _ = self._failures.popitem(last=False)
            _log.warning("failed job %s is dropped: at most %d are kept", dropped, MAX_FAILURES)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after that time, unless the event loop ends before."""

        def fire() -> None:
            self._timers.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(seconds, fire)
        self._timers.add(handle)
