"""Live statistics of the cluster for administrators, such as those at the dashboard.

Subscribers of `admin.stats` receive one sample of all nodes each second, as the event `eb:stats`.
The node that holds a subscriber asks all nodes, and sends their answers to its own subscribers
only. So no sample is sent twice, and without subscribers nothing is asked or counted per channel.
A subscriber's first sample contains the last minutes, which each node keeps as a few numbers.
"""

import asyncio
import datetime
import logging
import socket
import time
from collections.abc import (
    Callable,
    Collection,
    Sequence,
)
from typing import Final

import msgspec

from eventbus.cluster import Cluster
from eventbus.drivers import Driver
from eventbus.errors import (
    DriverError,
    EventBusError,
)
from eventbus.pacing import smallest
from eventbus.tasks import Tasks
from eventbus.user_code import guarded
from eventbus_edge.cluster.census import LocalNode
from eventbus_edge.cluster.rates import ChannelRates
from eventbus_edge.cluster.recent import (
    RECENT,
    STEP_S,
    AskRecent,
    Recent,
    RecentSteps,
    Step,
    merge,
)
from eventbus_edge.cluster.samples import (
    FEW,
    MANY,
    SAMPLE,
    ChannelSample,
    ClusterSample,
    History,
    NodeAnswer,
    NodeSample,
    Sampled,
    merge_channels,
)
from eventbus_edge.delivery import Outbox, Traffic
from eventbus_edge.metrics import LATENCY_BOUNDS
from eventbus_edge.protocols import ClusterSampled

__all__ = ["CHANNEL", "Watch"]


_log = logging.getLogger(__name__)

CHANNEL: Final = "admin.stats"
INTERVAL_S: Final = 1.0
_WHOLE_EVERY: Final = 5
"""One in so many samples has MANY channels rather than FEW."""
_COUNTED_FOR_S: Final = 5.0
"""How long after the last question a node still counts the messages of channels."""
_FINE: Final = 3


class Watch:
    """One node's part: it answers with its own sample, and collects all for its subscribers."""

    def __init__(self, node: LocalNode, cluster: Cluster, driver: Driver, traffic: Traffic) -> None:
        self._node = node
        self._cluster = cluster
        self._driver = driver
        self._traffic = traffic
        self._unwatch: Callable[[], None] | None = None
        cluster.answer(SAMPLE, self._own)
        cluster.answer(RECENT, self._own_recent)
        self._began = time.monotonic()
        self._recent = Recent(self._began)
        self._welcomed: set[str] = set()
        self._rates: ChannelRates | None = None
        self._end_counting: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    def start(self) -> None:
        """Begin to keep the last minutes, and to sample whenever there are subscribers."""
        self._tasks.keep(self._run, "samples for dashboards")
        self._tasks.keep(self._remember, "the last minutes for dashboards")

    async def aclose(self) -> None:
        """Stop sampling."""
        await self._tasks.aclose()
        self._stop_counting()

    # For subscribers of this node

    async def _run(self) -> None:
        loop, turn = asyncio.get_running_loop(), 0
        while True:
            begun = loop.time()
            if subscribers := self._subscribers():
                try:
                    with guarded():
                        await self._sample(whole=turn % _WHOLE_EVERY == 0)
                except EventBusError as exc:
                    _log.warning("the nodes could not be queried for samples: %s", exc)
                except Exception:  # noqa: BLE001 - the next one may succeed
                    _log.exception("a sample failed")
            else:
                self._welcomed = set()
            turn = turn + 1 if subscribers else 0
            await asyncio.sleep(max(0.1, begun + INTERVAL_S - loop.time()))

    def _subscribers(self) -> list[Outbox]:
        """Subscribers who are administrators; an application's rules may let others join too."""
        connections = self._node.connections
        return [
            outbox
            for outbox in self._node.hub.subscribers(CHANNEL)
            if (connection := connections.get(outbox.connection_id)) is not None
            and (claims := connection.session.claims) is not None
            and claims.is_admin
        ]

    async def _sample(self, *, whole: bool) -> None:
        """Send a sample to all subscribers; those who are new get the last minutes with it."""
        known = {one.connection_id for one in self._subscribers()}
        newcomers = known - self._welcomed
        if newcomers:  # at the same time: each waits for nodes that do not answer
            sample, history = await asyncio.gather(
                self._cluster_sample(whole=whole), self._history()
            )
            first = msgspec.structs.replace(sample, history=history)
        else:
            sample = first = await self._cluster_sample(whole=whole)
        now = datetime.datetime.now(datetime.UTC)
        subscribers = self._subscribers()
        for ids, one in ((newcomers, first), (known - newcomers, sample)):
            self._fan_out(
                [each for each in subscribers if each.connection_id in ids],
                ClusterSampled(CHANNEL, one, now),
            )
        self._welcomed = known

    def _fan_out(self, subscribers: list[Outbox], notice: ClusterSampled) -> None:
        self._node.hub.fan_out(subscribers, lambda wire: wire.message(notice))

    async def _cluster_sample(self, *, whole: bool) -> ClusterSample:
        most = MANY if whole else FEW
        try:
            gathered = await self._cluster.ask(SAMPLE, Sampled(most))
            samples, missing = list(gathered.all), gathered.missing
        except DriverError:  # without the bus, show this node alone
            samples, missing = [], self._cluster.nodes - {self._node.id}
        if all(one.node.id != self._node.id for one in samples):
            samples += await self._own(Sampled(most))
        return ClusterSample(
            driver=self._driver.name,
            bounds=LATENCY_BOUNDS,
            nodes=sorted((one.node for one in samples), key=lambda node: node.id),
            missing=sorted(missing),
            channels=await merge_channels((one for each in samples for one in each.channels), most),
            whole=whole,
        )

    async def _history(self) -> History:
        try:
            gathered = await self._cluster.ask(RECENT, AskRecent())
            nodes = [one.steps for one in gathered.all]
        except EventBusError as exc:
            _log.debug("the nodes could not be queried for their last minutes: %s", exc)
            nodes = [self._recent.steps]
        return History(STEP_S, merge(nodes))

    # The numbers of this node

    async def _remember(self) -> None:
        while True:
            tally = self._node.metrics.tally
            total = Step(
                len(self._node.connections),
                tally.messages_in,
                tally.messages_out,
                tuple(tally.latencies.counts),
            )
            self._recent.take(time.monotonic(), total)
            await asyncio.sleep(STEP_S)

    async def _own_recent(self, _asked: AskRecent) -> Sequence[RecentSteps]:
        return [RecentSteps(self._recent.steps)]

    async def _own(self, question: Sampled) -> Sequence[NodeAnswer]:
        node, tally = self._node, self._node.metrics.tally
        now = time.monotonic()
        rates = self._count(now)
        presence_channels, presence_members = node.presence.counts()
        answer = NodeAnswer(
            NodeSample(
                id=node.id,
                host=socket.gethostname(),
                address=node.address(),
                at=round(now, _FINE),
                uptime_s=round(now - self._began, 1),
                connections=len(node.connections),
                protocols=node.protocols(),
                channels=len(node.hub),
                subscriptions=node.metrics.total("eventbus_edge_subscriptions"),
                messages_in=tally.messages_in,
                messages_out=tally.messages_out,
                bytes_in=tally.bytes_in,
                bytes_out=tally.bytes_out,
                latencies=list(tally.latencies.counts),
                memory_bytes=node.metrics.total("eventbus_edge_memory_bytes"),
                bus_connected=self._driver.is_connected,
                bus_lag_s=round(self._cluster.lag.seconds(asyncio.get_running_loop().time()), 6),
                draining=node.connections.is_draining,
                presence_channels=presence_channels,
                presence_members=presence_members,
                truncated=rates.overflowed,
            ),
            await self._busiest(rates.read(now), question.most),
        )
        return [answer]

    async def _busiest(self, rates: dict[str, float], most: int) -> list[ChannelSample]:
        hub, rules = self._node.hub, self._node.rules
        if most <= FEW and len(rates) >= most:
            names: Collection[str] = rates.keys()
        else:  # members whose connections are lost stay for a while, in channels without any
            names = {*hub.channels, *rates, *self._node.presence.channels}
        busiest = await smallest(
            most,
            ((-rates.get(name, 0.0), -hub.count(name), name) for name in names if name != CHANNEL),
        )
        return [
            ChannelSample(name, rules.find(name).kind, -connections, round(-rate, _FINE))
            for rate, connections, name in busiest
        ]

    def _count(self, now: float) -> ChannelRates:
        """Count messages by channel from now on, until some time after the last question."""
        if self._rates is None:
            self._rates = ChannelRates(now)
            self._unwatch = self._traffic.watch(self._rates.count)
        if self._end_counting is not None:
            self._end_counting.cancel()
        loop = asyncio.get_running_loop()
        self._end_counting = loop.call_later(_COUNTED_FOR_S, self._stop_counting)
        return self._rates

    def _stop_counting(self) -> None:
        if self._end_counting is not None:
            self._end_counting.cancel()
        if self._unwatch is not None:
            self._unwatch()
        self._rates = self._unwatch = self._end_counting = None
