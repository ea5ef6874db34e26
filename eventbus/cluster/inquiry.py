"""Questions to all nodes of a cluster, for nodes and for services that are not nodes."""

import asyncio
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from eventbus.channels import ChannelKind
from eventbus.cluster.answers import (
    ChannelMembers,
    Channels,
    ChannelStats,
    Disconnect,
    Disconnected,
    ListQuery,
    Member,
    Stats,
)
from eventbus.cluster.cluster import Cluster
from eventbus.cluster.questions import (
    CHANNEL,
    CHANNELS,
    CONNECTIONS,
    DISCONNECT,
    MEMBERS,
    NODE,
    RULE,
    AboutChannel,
    ChannelCount,
    ChannelRule,
    Matching,
    MemberHeard,
    Nothing,
    StartOfId,
)
from eventbus.errors import InvalidChannel, NoEdge
from eventbus.messages import decode_json
from eventbus.pacing import (
    paced,
    smallest,
)

__all__ = ["ConnectionsFound", "Inquiry", "RuleAnswers"]


class RuleAnswers(NamedTuple):
    """The rule of each node for a channel, and the nodes that did not answer."""

    nodes: list[ChannelRule]
    missing: list[str]


class ConnectionsFound(NamedTuple):
    """Ids of connections, and the nodes that did not answer."""

    ids: list[str]
    missing: list[str]


class Inquiry:
    """Asks the questions, and sums up the answers of all nodes.

    Every method raises ClusterBusy, or a DriverError if the bus does not accept the question.
    """

    def __init__(self, cluster: Cluster) -> None:
        """`cluster` is opened and closed by the caller."""
        self._cluster = cluster

    async def stats(self, query: ListQuery) -> Stats:
        """Nodes and channels, and sums over all nodes."""
        gathered, listed = await asyncio.gather(
            self._cluster.ask(NODE, Nothing()), self.channels(query)
        )
        nodes = list(gathered.all)
        return Stats(
            driver=self._cluster.driver_name,
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
        async for count in paced(count for part in gathered.all for count in part.counts):
            found[count.channel] = _sum(found.get(count.channel), count)
        first = await smallest(
            query.limit, ((-count.connections, name) for name, count in found.items())
        )
        return Channels(
            channels=[_stats(found[name]) async for _, name in paced(first)],
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

    async def members(self, channel: str) -> ChannelMembers:
        """The members of a presence channel.

        Raises NoEdge, and InvalidChannel if it is not a presence channel by the nodes' rules.
        """
        gathered = await self._cluster.ask(MEMBERS, AboutChannel(channel))
        if not gathered.answers:
            raise self.no_edge(gathered.missing)
        if all(part.kind is not ChannelKind.PRESENCE for part in gathered.all):
            raise InvalidChannel(
                f"{channel} is not a presence channel, so it has no members", name=channel
            )
        newest: dict[str, MemberHeard] = {}
        async for heard in paced(one for part in gathered.all for one in part.members):
            known = newest.get(heard.user_id)
            if known is None or (heard.at, heard.info) > (known.at, known.info):
                newest[heard.user_id] = heard
        members = [
            Member(user_id=user_id, info=decode_json(newest[user_id].info))
            async for user_id in paced(sorted(newest))
        ]
        return ChannelMembers(channel=channel, members=members, missing=sorted(gathered.missing))

    async def rules(self, channel: str) -> RuleAnswers:
        """The nodes' rules for a channel; nodes may have different rules."""
        gathered = await self._cluster.ask(RULE, AboutChannel(channel))
        return RuleAnswers(list(gathered.all), sorted(gathered.missing))

    async def connections(self, start: str) -> ConnectionsFound:
        """The ids of connections that begin with `start`; of each node at most MAX_ALIKE."""
        gathered = await self._cluster.ask(CONNECTIONS, StartOfId(start))
        ids = sorted(one for part in gathered.all for one in part.ids)
        return ConnectionsFound(ids, sorted(gathered.missing))

    async def disconnect(self, request: Disconnect) -> Disconnected:
        """Close connections on all nodes, or end the subscriptions of a channel. Raises NoEdge."""
        gathered = await self._cluster.ask(DISCONNECT, request)
        if not gathered.answers:
            raise self.no_edge(gathered.missing)
        count = sum(part.count for part in gathered.all)
        return Disconnected(count=count, missing=sorted(gathered.missing))

    def no_edge(self, silent: Collection[str] = ()) -> NoEdge:
        """The error for when no node answers, not even the `silent` ones, which should have."""
        names = f": {', '.join(sorted(silent))} did not answer in time" if silent else ""
        return NoEdge(
            f"no edge node replied over {self._cluster.where}{names}. Start one with "
            "`eventbus edge run`, or use the NATS_URL, BROADCAST_DRIVER and "
            "BROADCAST_CHANNELS_PREFIX of the edge"
        )


def _sum(known: ChannelCount | None, count: ChannelCount) -> ChannelCount:
    if known is None:
        return count
    # Every node counts the members of all nodes. One that has just joined may not know all yet.
    counts = [one.members for one in (known, count) if one.members is not None]
    return ChannelCount(
        count.channel,
        known.connections + count.connections,
        known.kind,
        max(counts, default=None),
    )


def _stats(count: ChannelCount) -> ChannelStats:
    return ChannelStats(
        channel=count.channel,
        kind=count.kind,
        connections=count.connections,
        members=msgspec.UNSET if count.members is None else count.members,
    )
