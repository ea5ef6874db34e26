"""Questions to all nodes of a cluster, for nodes and for clients that are not nodes."""

import asyncio
import heapq
from typing import NamedTuple

from eventbus.channels import ChannelKind
from eventbus_edge.cluster.answers import (
    Channels,
    ChannelStats,
    Disconnect,
    Disconnected,
    ListQuery,
    Stats,
)
from eventbus_edge.cluster.cluster import Cluster
from eventbus_edge.cluster.questions import (
    CHANNEL,
    CHANNELS,
    DISCONNECT,
    NODE,
    RULE,
    AboutChannel,
    ChannelCount,
    ChannelRule,
    Matching,
    Nothing,
)

__all__ = ["Inquiry", "RuleAnswers"]


class RuleAnswers(NamedTuple):
    """The rule of each node for a channel, and the nodes that did not answer."""

    nodes: list[ChannelRule]
    missing: list[str]


class Inquiry:
    """Asks the questions, and sums up the answers of all nodes.

    Every method raises ClusterBusy, or a DriverError if the bus does not accept the question.
    """

    def __init__(self, cluster: Cluster, driver_name: str) -> None:
        """`cluster` is opened and closed by the caller."""
        self._cluster = cluster
        self._driver_name = driver_name

    async def stats(self, query: ListQuery) -> Stats:
        """Nodes and channels, and sums over all nodes."""
        gathered, listed = await asyncio.gather(
            self._cluster.ask(NODE, Nothing()), self.channels(query)
        )
        nodes = list(gathered.all)
        return Stats(
            driver=self._driver_name,
            nodes=nodes,
            connections=sum(node.connections for node in nodes),
            channels=listed.channels,
            truncated=listed.truncated,
            messages_in=sum(node.messages_in for node in nodes),
            messages_out=sum(node.messages_out for node in nodes),
            missing=sorted(gathered.missing | set(listed.missing)),
        )

    async def channels(self, query: ListQuery) -> Channels:
        """The channels that match, those with most connections first.

        Each node lists at most MAX_LISTED; `truncated` says whether some are left out.
        """
        gathered = await self._cluster.ask(CHANNELS, Matching(query.pattern))
        found: dict[str, ChannelCount] = {}
        for part in gathered.all:
            for count in part.counts:
                found[count.channel] = _sum(found.get(count.channel), count)
        first = heapq.nsmallest(
            query.limit, found.values(), key=lambda count: (-count.connections, count.channel)
        )
        return Channels(
            channels=[_stats(count) for count in first],
            truncated=len(found) > query.limit or any(part.truncated for part in gathered.all),
            missing=sorted(gathered.missing),
        )

    async def channel(self, channel: str) -> ChannelStats:
        """One channel, which may have no subscribers. Without any node, its kind is private."""
        gathered = await self._cluster.ask(CHANNEL, AboutChannel(channel))
        counted: ChannelCount | None = None
        for count in gathered.all:
            counted = _sum(counted, count)
        return _stats(counted or ChannelCount(channel, 0, ChannelKind.PRIVATE))

    async def rules(self, channel: str) -> RuleAnswers:
        """The nodes' rules for a channel; nodes may have different rules."""
        gathered = await self._cluster.ask(RULE, AboutChannel(channel))
        return RuleAnswers(list(gathered.all), sorted(gathered.missing))

    async def disconnect(self, whom: Disconnect) -> Disconnected:
        """Close connections on all nodes, or end the subscriptions of a channel."""
        gathered = await self._cluster.ask(DISCONNECT, whom)
        count = sum(part.count for part in gathered.all)
        return Disconnected(count=count, missing=sorted(gathered.missing))


def _sum(known: ChannelCount | None, count: ChannelCount) -> ChannelCount:
    if known is None:
        return count
    return ChannelCount(count.channel, known.connections + count.connections, known.kind)


def _stats(count: ChannelCount) -> ChannelStats:
    return ChannelStats(channel=count.channel, kind=count.kind, connections=count.connections)
