"""Publishers and receivers that run while faults happen, and the wait until messages flow again."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from eventbus.cli.chaos.ledger import Ledger, Log, Promise, examine
from eventbus.cli.chaos.publishers import Publisher, Send
from eventbus.cli.chaos.receivers import Access, NativeReceiver, Receiver
from eventbus.errors import EventBusError

__all__ = ["NothingFlows", "Workload"]

_LOOK_S: Final = 0.1
_OPENING: Final = 20
"""How many receivers connect at once at the start."""


class NothingFlows(EventBusError):
    """Clients cannot join, or messages do not get through, even before the first fault."""


class Workload:
    """The publishers and receivers of a run."""

    def __init__(self, channels: Sequence[str]) -> None:
        self.ledger = Ledger()
        self.channels = channels
        self.receivers: list[Receiver] = []
        self.publishers: list[Publisher] = []
        self._others: list[Log] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._publishing: list[asyncio.Task[Any]] = []

    @property
    def logs(self) -> list[Log]:
        """The logs of all receivers."""
        return [*(each.log for each in self.receivers), *self._others]

    def log(self, name: str, channel: str, promise: Promise) -> Log:
        """Make a log for a receiver that runs elsewhere."""
        log = Log(self.ledger, name, channel, promise)
        self._others.append(log)
        return log

    def add_receivers(self, count: int, kinds: Sequence[type[Receiver]], access: Access) -> None:
        """Add clients, which take the kinds and channels in turn."""
        for number in range(count):
            kind = kinds[number % len(kinds)]
            channel = self.channels[number // len(kinds) % len(self.channels)]
            log = Log(self.ledger, f"{kind.kind} {number}", channel, Promise.EACH_ONCE)
            self.receivers.append(kind(access, log, number))

    def add_volatile_receivers(self, count: int, channel: str, access: Access) -> None:
        """Add clients of a channel whose messages are not stored."""
        for number in range(count):
            log = Log(self.ledger, f"volatile {number}", channel, Promise.AT_MOST_ONCE)
            self.receivers.append(NativeReceiver(access, log, number))

    def add_publisher(
        self, name: str, send: Send, per_s: float, channels: Sequence[str] = ()
    ) -> None:
        """Add a publisher, by default of all channels."""
        self.publishers.append(
            Publisher(self.ledger, name, channels or self.channels, send, per_s=per_s)
        )

    async def start_receivers(self, patience_s: float = 60.0) -> None:
        """Start all receivers, and wait until they have joined.

        Raises Refused, and NothingFlows if one does not join in time.
        """
        deadline = time.monotonic() + patience_s
        for first in range(0, len(self.receivers), _OPENING):
            group = self.receivers[first : first + _OPENING]
            for each in group:
                self._start(self._tasks, each.run(), each.log.name)
            while waiting := [each for each in group if not each.joined.is_set()]:
                self.check()
                if time.monotonic() > deadline:
                    ends = ", ".join(waiting[0].ends) or "no answer"
                    raise NothingFlows(f"{waiting[0].log.name} does not join: {ends}")
                await asyncio.sleep(_LOOK_S)

    def start_publishers(self) -> None:
        """Start publishing."""
        for each in self.publishers:
            self._start(self._publishing, each.run(), each.name)

    async def stop_publishers(self) -> None:
        """Stop publishing, and wait for messages in flight."""
        for each in self.publishers:
            each.stop()
        await asyncio.gather(*self._publishing)

    async def aclose(self) -> None:
        """End everything."""
        running = [*self._tasks, *self._publishing]
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def cut(self, away_s: float = 0.0) -> None:
        """Cut all receivers at once; they reconnect after `away_s`, or a little later."""
        for each in self.receivers:
            each.cut(away_s)

    def check(self) -> None:
        """Raise the error of a publisher or a receiver that has failed."""
        for each in (*self._tasks, *self._publishing):
            if each.done() and not each.cancelled():
                each.result()

    def not_flowing(self, since: float) -> list[str]:
        """Publishers without an acknowledgement, and receivers without a message, since then."""
        waiting = [each.name for each in self.publishers if each.last_sent_at < since]
        for each in self.receivers:
            times = each.log.times
            if not times or times[-1] < since:
                waiting.append(each.log.name)
        return waiting

    async def flowing(self, since: float, patience_s: float) -> float | None:
        """Wait until all publish and receive. Returns the time, or None after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while self.not_flowing(since):
            self.check()
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_LOOK_S)
        return time.monotonic()

    def waiting(self, erased_at: Sequence[float] = ()) -> list[Log]:
        """The logs in which acknowledged messages are missing."""
        return [
            each
            for each in self.logs
            if each.promise is not Promise.AT_MOST_ONCE
            and not all(
                each.has(publication.message)
                for publication in self.ledger.acknowledged(each.channel)
            )
            and examine(self.ledger, each, (), erased_at).lost
        ]

    @property
    def arrivals(self) -> int:
        """The number of entries in all logs."""
        return sum(len(each.times) for each in self.logs)

    def _start(
        self, tasks: list[asyncio.Task[Any]], work: Coroutine[Any, Any, None], name: str
    ) -> None:
        tasks.append(asyncio.create_task(work, name=name))
