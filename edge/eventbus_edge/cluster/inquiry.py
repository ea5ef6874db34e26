"""Asking all nodes of a cluster; a node can, and so can whoever is none."""

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

__all__ = ["Inquiry", "RulesTold"]


class RulesTold(NamedTuple):
    """What each node says of a channel, and who has not answered."""

    nodes: list[ChannelRule]
    missing: list[str]


class Inquiry:
    """The questions, and what the answers of all nodes come to.

    Every method raises ClusterBusy, or a DriverError when the bus does not carry the question.
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

        Each node tells at most MAX_LISTED; `truncated` says when some are left out.
        """
        gathered = await self._cluster.ask(CHANNELS, Matching(query.pattern))
        found: dict[str, ChannelCount] = {}
        for part in gathered.all:
            for told in part.counts:
                found[told.channel] = _sum(found.get(told.channel), told)
        first = heapq.nsmallest(
            query.limit, found.values(), key=lambda told: (-told.connections, told.channel)
        )
        return Channels(
            channels=[_stats(told) for told in first],
            truncated=len(found) > query.limit or any(part.truncated for part in gathered.all),
            missing=sorted(gathered.missing),
        )

    async def channel(self, channel: str) -> ChannelStats:
        """One channel; nobody may hear it. Without any node its kind is not known: private."""
        gathered = await self._cluster.ask(CHANNEL, AboutChannel(channel))
        counted: ChannelCount | None = None
        for told in gathered.all:
            counted = _sum(counted, told)
        return _stats(counted or ChannelCount(channel, 0, ChannelKind.PRIVATE))

    async def rules(self, channel: str) -> RulesTold:
        """What the nodes' rules say of a channel; nodes may have different rules."""
        gathered = await self._cluster.ask(RULE, AboutChannel(channel))
        return RulesTold(list(gathered.all), sorted(gathered.missing))

    async def disconnect(self, whom: Disconnect) -> Disconnected:
        """Let connections go on whichever node they are, or subscribers of a channel."""
        gathered = await self._cluster.ask(DISCONNECT, whom)
        count = sum(part.count for part in gathered.all)
        return Disconnected(count=count, missing=sorted(gathered.missing))


def _sum(known: ChannelCount | None, told: ChannelCount) -> ChannelCount:
    if known is None:
        return told
    return ChannelCount(told.channel, known.connections + told.connections, known.kind)


def _stats(told: ChannelCount) -> ChannelStats:
    return ChannelStats(channel=told.channel, kind=told.kind, connections=told.connections)
