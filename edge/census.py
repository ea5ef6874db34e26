"""What the whole cluster holds: nodes, channels, connections; and letting some of them go."""

import asyncio
import datetime
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from edge.api_types import (
    MAX_LISTED,
    Channels,
    ChannelStats,
    Disconnect,
    Disconnected,
    ListQuery,
    NodeStats,
    Stats,
)
from edge.cluster import Cluster
from edge.gather import Question
from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern

if TYPE_CHECKING:
    from edge.connection import Connection
    from edge.node import Node

__all__ = ["Census"]

CLOSE_DISCONNECTED: Final = 4003
CLOSE_COME_BACK: Final = 4200
_PART: Final = 100
"""Channels in one part of an answer: some 30 KB, which any broker takes."""


class _ChannelCount(msgspec.Struct, array_like=True, frozen=True):
    channel: str
    connections: int


class _ChannelsQuestion(msgspec.Struct, frozen=True):
    pattern: str


class _Channels(msgspec.Struct, frozen=True):
    """Some of a node's channels; `truncated` when it has more than MAX_LISTED that match."""

    counts: list[_ChannelCount]
    truncated: bool


class _ChannelQuestion(msgspec.Struct, frozen=True):
    channel: str


class _Count(msgspec.Struct, frozen=True):
    count: int


class _NoBody(msgspec.Struct, frozen=True):
    pass


_NODE: Final = Question("node", _NoBody, NodeStats)
_CHANNELS: Final = Question("channels", _ChannelsQuestion, _Channels)
_CHANNEL: Final = Question("channel", _ChannelQuestion, _Count)
_DISCONNECT: Final = Question("disconnect", Disconnect, _Count)


class Census:
    """Asks all nodes, and answers for this one.

    Every method that asks raises ClusterBusy, or a DriverError when the bus does not carry it.
    """

    def __init__(self, node: "Node", bus: EventBus) -> None:
        self._node = node
        self._driver_name = bus.driver.name
        self._started = time.time()
        fault = node.metrics.cluster_faults
        self._cluster = Cluster(
            bus.driver, bus.subjects, node.id, lambda word: fault.labels(word).inc()
        )
        self.lag = self._cluster.lag
        self._cluster.answer(_NODE, lambda _: [self._own_stats()])
        self._cluster.answer(_CHANNELS, self._own_channels)
        self._cluster.answer(_CHANNEL, lambda asked: [_Count(node.hub.count(asked.channel))])
        self._cluster.answer(_DISCONNECT, lambda asked: [_Count(self._disconnect_own(asked))])

    async def open(self) -> None:
        """Join the cluster. Raises a DriverError."""
        await self._cluster.open()

    async def aclose(self) -> None:
        """Leave the cluster."""
        await self._cluster.aclose()

    # The whole cluster

    async def stats(self, query: ListQuery) -> Stats:
        """Nodes and channels, and sums over all nodes."""
        gathered, listed = await asyncio.gather(
            self._cluster.ask(_NODE, _NoBody()), self.channels(query)
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
        gathered = await self._cluster.ask(_CHANNELS, _ChannelsQuestion(query.pattern))
        counts: Counter[str] = Counter()
        for part in gathered.all:
            for channel, connections in _pairs(part.counts):
                counts[channel] += connections
        first = heapq.nsmallest(query.limit, counts.items(), key=_most_first)
        return Channels(
            channels=[self._told(channel, connections) for channel, connections in first],
            truncated=len(counts) > query.limit or any(part.truncated for part in gathered.all),
            missing=sorted(gathered.missing),
        )

    async def channel(self, channel: str) -> ChannelStats:
        """One channel; nobody may hear it."""
        gathered = await self._cluster.ask(_CHANNEL, _ChannelQuestion(channel))
        told = self._told(channel, sum(part.count for part in gathered.all))
        if told.kind is ChannelKind.PRESENCE:
            _, members = await self._node.presence.look(channel)
            return msgspec.structs.replace(told, members=members)
        return told

    async def disconnect(self, whom: Disconnect) -> Disconnected:
        """Let connections go on whichever node they are, or subscribers of a channel."""
        gathered = await self._cluster.ask(_DISCONNECT, whom)
        count = sum(part.count for part in gathered.all)
        return Disconnected(count=count, missing=sorted(gathered.missing))

    def _told(self, channel: str, connections: int) -> ChannelStats:
        kind = self._node.rules.find(channel).kind
        return ChannelStats(channel=channel, kind=kind, connections=connections)

    # This node

    def _own_stats(self) -> NodeStats:
        node = self._node
        return NodeStats(
            id=node.id,
            started_at=datetime.datetime.fromtimestamp(self._started, datetime.UTC),
            uptime_s=round(time.time() - self._started, 1),
            connections=len(node.connections),
            channels=len(node.hub),
            messages_in=node.metrics.tally.messages_in,
            messages_out=node.metrics.tally.messages_out,
        )

    def _own_channels(self, asked: _ChannelsQuestion) -> Sequence[_Channels]:
        matches = Pattern(asked.pattern).match
        hub = self._node.hub
        # One more than are told tells whether there are more.
        found = heapq.nsmallest(
            MAX_LISTED + 1,
            ((name, hub.count(name)) for name in hub.channels if matches(name) is not None),
            key=_most_first,
        )
        truncated = len(found) > MAX_LISTED
        counts = [_ChannelCount(*pair) for pair in found[:MAX_LISTED]]
        parts = range(0, max(len(counts), 1), _PART)
        return [_Channels(counts[start : start + _PART], truncated) for start in parts]

    def _disconnect_own(self, whom: Disconnect) -> int:
        connections = list(self._matching(whom))
        for connection in connections:
            if whom.channel is not None:
                connection.revoke(whom.channel)
            elif whom.reconnect:
                connection.close(CLOSE_COME_BACK, "disconnected by an administrator: come back")
            else:
                connection.close(CLOSE_DISCONNECTED, "disconnected by an administrator")
        return len(connections)

    def _matching(self, whom: Disconnect) -> "Iterator[Connection]":
        for connection in self._node.connections.values():
            session = connection.session
            claims = session.claims
            if not connection.is_closing and (
                (whom.channel is not None and whom.channel in session.channels)
                or connection.id == whom.connection_id
                or (claims is not None and whom.user_id == claims.user_id)
                or (claims is not None and whom.jti is not None and whom.jti == claims.jti)
            ):
                yield connection


def _most_first(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _pairs(counts: Iterable[_ChannelCount]) -> Iterator[tuple[str, int]]:
    return ((count.channel, count.connections) for count in counts)
