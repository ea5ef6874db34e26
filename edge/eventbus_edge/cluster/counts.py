"""How many connections of the whole cluster are subscribed to a channel, kept up to date.

Each node publishes the counts of its own connections when they change, as one message for many
channels. A node adds up those of the channels that it tracks: its own, and those that it watches
for other reasons. It asks for the counts of a channel that it begins to track. Messages may be
lost, so each node repeats all its counts from time to time, and when another node appears.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from eventbus.attempts import OutageLog
from eventbus.channels import Subjects
from eventbus.cluster import Cluster
from eventbus.drivers import Delivery, Driver, Subscription
from eventbus.errors import DriverError, EventBusError
from eventbus.messages import json_decoder
from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus_edge.delivery import Hub

__all__ = ["SETTLE_S", "Counted", "SubscriptionCounts"]


_log = logging.getLogger(__name__)

TURN_S: Final = 0.25
"""Changes within this time are published, and reported, once."""
MANY: Final = 100
"""Above this count, clients are notified less often."""
MANY_S: Final = 5.0
SETTLE_S: Final = 3 * TURN_S
"""How long the answers of other nodes may take."""
_REPEAT_S: Final = 30.0
_PART: Final = 100
"""Channels in one message: about 20 KB at most, which every broker accepts."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Counts(msgspec.Struct):
    """What a node publishes: its counts, and the channels whose counts it wants to know."""

    node: str
    counts: dict[str, Count] = {}
    wanted: list[str] = []


_T = TypeVar("_T")
_decode: Final = json_decoder(_Counts)
_encode: Final = msgspec.json.Encoder().encode


class Counted(NamedTuple):
    """A new total; `is_first` holds on one node of those that have subscribers, or had the last."""

    channel: str
    connections: int
    is_first: bool


class _Tracked:
    """A channel that is tracked."""

    __slots__ = ("due", "others", "reported", "reported_at")

    def __init__(self, due: float) -> None:
        self.others: dict[str, int] = {}
        """The counts of other nodes."""
        self.reported = 0
        self.reported_at = float("-inf")
        self.due: float = due
        """When a total may be reported at first."""

    def report(self, total: int, now: float) -> None:
        """A total was reported."""
        self.reported, self.reported_at = total, now


class SubscriptionCounts:
    """One node's part. Does nothing unless `is_counted` is given."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        cluster: Cluster,
        hub: Hub,
        *,
        is_counted: Callable[[str], bool] | None,
        on_counted: Callable[[Counted], None],
    ) -> None:
        """`is_counted` says which channels have counts. `on_counted` gets each new total."""
        self._driver = driver
        self._subject = subjects.control("counts")
        self._cluster = cluster
        self._hub = hub
        self._is_counted = is_counted
        self._on_counted = on_counted
        self._tracked: dict[str, _Tracked] = {}
        self._watched: set[str] = set()
        """Channels that are tracked although no connection of this node may have them."""
        self._own: set[str] = set()
        """Channels of this node whose count is to be published."""
        self._wanted: set[str] = set()
        self._changed: set[str] = set()
        """Tracked channels whose total may have changed."""
        self._alive: frozenset[str] = frozenset()
        self._repeat_at = 0.0
        self._subscription: Subscription | None = None
        self._outage = OutageLog(_log, "counts of subscriptions can be published again")
        self._tasks = Tasks()

    async def start(self) -> None:
        """Begin to count. Raises a DriverError."""
        if self._is_counted is not None:
            self._subscription = await self._driver.subscribe(self._subject, self._receive)
            self._tasks.keep(self._run, "counts of subscriptions")

    async def aclose(self) -> None:
        """Stop; other nodes notice that this one is gone."""
        await self._tasks.aclose()
        if self._subscription is not None:
            try:
                await self._subscription.aclose()
            except DriverError as exc:
                _log.warning("could not unsubscribe from counts of subscriptions: %s", exc)

    def changed(self, channel: str) -> None:
        """A connection of this node was subscribed to a channel, or unsubscribed."""
        if self._is_counted is not None and self._is_counted(channel):
            self._own.add(channel)

    def watch(self, channel: str) -> None:
        """Track a channel until `unwatch`."""
        self._watched.add(channel)
        self._track(channel)

    def unwatch(self, channel: str) -> None:
        """Stop tracking a channel, unless this node has subscribers of it."""
        self._watched.discard(channel)
        if not self._hub.count(channel):
            self._tracked.pop(channel, None)

    def total(self, channel: str) -> int:
        """The connections of a tracked channel, as far as this node knows."""
        tracked = self._tracked.get(channel)
        others = sum(tracked.others.values()) if tracked else 0
        return self._hub.count(channel) + others

    def _track(self, channel: str) -> _Tracked:
        tracked = self._tracked.get(channel)
        if tracked is None:
            due = time.monotonic() + (SETTLE_S if self._alive else 0.0)
            tracked = self._tracked[channel] = _Tracked(due)
            self._wanted.add(channel)
            self._changed.add(channel)
        return tracked

    def _receive(self, delivery: Delivery) -> None:
        try:
            message = _decode(delivery.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            _log.debug("not a message of counts: %s", exc)
            return
        # Of an unknown node nothing is kept, since nothing would end it. It repeats its counts when
        # this node appears to it, and this one asks again when it appears here.
        if message.node == self._cluster.node_id or message.node not in self._cluster.nodes:
            return
        for channel, count in message.counts.items():
            tracked = self._tracked.get(channel)
            if tracked is None or tracked.others.get(message.node, 0) == count:
                continue
            if count:
                tracked.others[message.node] = count
            else:
                del tracked.others[message.node]
            self._changed.add(channel)
        self._own.update(channel for channel in message.wanted if self._hub.count(channel))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            now = time.monotonic()
            self._note_nodes(now)
            if now >= self._repeat_at:
                self._repeat_at = now + _REPEAT_S
                await self._repeat()
            own, self._own = self._own, set()
            for channel in own:
                if self._hub.count(channel):
                    self._track(channel)
                self._changed.add(channel)
            wanted, self._wanted = self._wanted, set()
            await self._publish({channel: self._hub.count(channel) for channel in own}, wanted)
            self._report(now)

    def _note_nodes(self, now: float) -> None:
        """Drop the counts of nodes that are gone; repeat everything for those that appeared."""
        alive = self._cluster.nodes
        before, self._alive = self._alive, alive
        if alive - before:
            self._repeat_at = now
            self._wanted.update(self._tracked)
        if before - alive:
            for channel, tracked in self._tracked.items():
                for node in before - alive:
                    if tracked.others.pop(node, None) is not None:
                        self._changed.add(channel)

    async def _repeat(self) -> None:
        assert self._is_counted is not None, "it runs only if it counts"
        async for channel in paced(list(self._hub.channels)):
            if self._is_counted(channel):
                self._own.add(channel)

    async def _publish(self, counts: Mapping[str, int], wanted: Iterable[str]) -> None:
        if not self._cluster.nodes:
            return
        node = self._cluster.node_id
        parts = [_Counts(node, counts=dict(part)) for part in _parts(list(counts.items()))]
        parts += [_Counts(node, wanted=list(part)) for part in _parts(list(wanted))]
        try:
            for part in parts:
                await self._driver.publish(self._subject, _encode(part))
        except EventBusError as exc:
            self._outage.failed("counts of subscriptions cannot be published: %s", exc)
            self._repeat_at = time.monotonic() + MANY_S
            self._wanted.update(wanted)
        else:
            if parts:
                self._outage.ended()

    def _report(self, now: float) -> None:
        """Report the totals that have changed and are due."""
        changed, self._changed = self._changed, set()
        for channel in changed:
            count, total = self._hub.count(channel), self.total(channel)
            tracked = self._tracked.get(channel)
            if tracked is None:
                continue
            wait = MANY_S if total > MANY else 0.0
            if now < tracked.due or now < tracked.reported_at + wait:
                self._changed.add(channel)
                continue
            if total != tracked.reported:
                tracked.report(total, now)
                if count:
                    is_first = all(self._cluster.node_id < node for node in tracked.others)
                else:
                    is_first = not total and channel not in self._watched
                self._on_counted(Counted(channel, total, is_first))
            if not count and channel not in self._watched:
                del self._tracked[channel]


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _PART):
        yield items[start : start + _PART]
