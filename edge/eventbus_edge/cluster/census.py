"""Questions to the whole cluster: a node asks all nodes, and answers for itself."""

import datetime
import heapq
import importlib.metadata
import socket
import time
from collections.abc import (
    Callable,
    Iterator,
    Sequence,
)
from typing import (
    Final,
    NamedTuple,
)

import msgspec

from eventbus.channels import (
    ChannelKind,
    Pattern,
    validate_channel,
)
from eventbus.drivers.base import (
    Announcement,
    AnnouncingDriver,
    Driver,
)
from eventbus_edge.access.admission import TokenBucket
from eventbus_edge.access.rules import (
    ChannelRules,
    who_may_join,
    who_may_whisper,
)
from eventbus_edge.cluster.answers import (
    MAX_LISTED,
    Channels,
    ChannelStats,
    Disconnect,
    Disconnected,
    ListQuery,
    NodeStats,
    Stats,
)
from eventbus_edge.cluster.cluster import (
    Cluster,
    ClusterBusy,
)
from eventbus_edge.cluster.inquiry import Inquiry
from eventbus_edge.cluster.questions import (
    CHANNEL,
    CHANNELS,
    DISCONNECT,
    NODE,
    RULE,
    AboutChannel,
    ChannelCount,
    ChannelRule,
    ChannelsHeard,
    Count,
    Matching,
)
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.presence.channels import PresenceChannels
from eventbus_edge.sessions.connection import Connection
from eventbus_edge.sessions.connections import Connections

__all__ = ["Census", "LocalNode"]


CLOSE_DISCONNECTED: Final = 4003
CLOSE_COME_BACK: Final = 4200
SERVICE: Final = "eventbus-edge"
"""The name of nodes in a broker's list of services."""
_QUESTIONS_SAVED_S: Final = 4.0
_PART: Final = 100
"""Channels in one part of an answer: about 30 KB, which every broker accepts."""


_EVERYTHING: Final = ListQuery()


class LocalNode(NamedTuple):
    """What a node's answers about itself are made of."""

    id: str
    address: Callable[[], str]
    """Where it listens, as a URL; empty until it does."""
    connections: Connections
    hub: Hub
    rules: ChannelRules
    metrics: Metrics
    presence: PresenceChannels


class Census:
    """Asks all nodes, and answers for this one.

    Every method that asks raises ClusterBusy, or a DriverError if the bus does not accept it.
    """

    def __init__(
        self, node: LocalNode, cluster: Cluster, driver: Driver, max_questions: float
    ) -> None:
        """At most `max_questions` per second are sent to all nodes."""
        self._node = node
        self._driver = driver
        self._announced: Announcement | None = None
        self._started = time.time()
        self._cluster = cluster
        self._cluster.answer(NODE, lambda _: [self._own_stats()])
        self._cluster.answer(CHANNELS, self._own_channels)
        self._cluster.answer(CHANNEL, lambda asked: [self._count(asked.channel)])
        self._cluster.answer(RULE, self._own_rule)
        self._cluster.answer(DISCONNECT, lambda asked: [Count(self._disconnect_own(asked))])
        self._inquiry = Inquiry(cluster, driver.name)
        self._limits_reached = node.metrics.limits_reached.labels("questions")
        burst = max(_QUESTIONS_SAVED_S * max_questions, 1.0)
        self._pace = TokenBucket(max_questions, burst, time.monotonic())

    async def open(self) -> None:
        """Join the cluster, and let the broker's tools see the node. Raises a DriverError."""
        await self._cluster.open()
        if isinstance(self._driver, AnnouncingDriver):
            self._announced = await self._driver.announce(
                SERVICE,
                self._node.id,
                version=importlib.metadata.version("eventbus"),
                description="a node that holds the connections of clients",
                metadata={"node": self._node.id, "host": socket.gethostname()},
            )

    async def aclose(self) -> None:
        """Leave the cluster."""
        if self._announced is not None:
            await self._announced.aclose()
        await self._cluster.aclose()

    # The whole cluster

    async def stats(self, query: ListQuery = _EVERYTHING) -> Stats:
        """Nodes and channels, and sums over all nodes."""
        self._count_question()
        return await self._inquiry.stats(query)

    async def channels(self, query: ListQuery) -> Channels:
        """The channels that match; see Inquiry.channels."""
        self._count_question()
        return await self._inquiry.channels(query)

    async def channel(self, channel: str) -> ChannelStats:
        """One channel, which may have no subscribers."""
        self._count_question()
        stats = await self._inquiry.channel(channel)
        if stats.kind is ChannelKind.PRESENCE:
            _, members = await self._node.presence.look(channel)
            return msgspec.structs.replace(stats, members=members)
        return stats

    async def disconnect(self, whom: Disconnect) -> Disconnected:
        """Close connections on all nodes, or end subscriptions of a channel; never refused."""
        return await self._inquiry.disconnect(whom)

    def _count_question(self) -> None:
        """Raises ClusterBusy when too many are asked."""
        if not self._pace.take(time.monotonic()):
            self._limits_reached.inc()
            raise ClusterBusy("too many questions to all nodes: ask again in a moment")

    # This node

    def _own_stats(self) -> NodeStats:
        node = self._node
        return NodeStats(
            id=node.id,
            host=socket.gethostname(),
            address=node.address(),
            started_at=datetime.datetime.fromtimestamp(self._started, datetime.UTC),
            uptime_s=round(time.time() - self._started, 1),
            connections=len(node.connections),
            channels=len(node.hub),
            messages_in=node.metrics.tally.messages_in,
            messages_out=node.metrics.tally.messages_out,
        )

    def _own_channels(self, asked: Matching) -> Sequence[ChannelsHeard]:
        matches = Pattern(asked.pattern).match
        hub = self._node.hub
        # One more than are listed shows whether there are more.
        found = heapq.nsmallest(
            MAX_LISTED + 1,
            ((-hub.count(name), name) for name in hub.channels if matches(name) is not None),
        )
        truncated = len(found) > MAX_LISTED
        counts = [self._count(name) for _, name in found[:MAX_LISTED]]
        parts = range(0, max(len(counts), 1), _PART)
        return [ChannelsHeard(counts[start : start + _PART], truncated) for start in parts]

    def _count(self, channel: str) -> ChannelCount:
        kind = self._node.rules.find(channel).kind
        return ChannelCount(channel, self._node.hub.count(channel), kind)

    def _own_rule(self, asked: AboutChannel) -> Sequence[ChannelRule]:
        rules, channel = self._node.rules, validate_channel(asked.channel)
        rule = rules.find(channel)
        return [
            ChannelRule(
                node=self._node.id,
                pattern=rule.pattern.text,
                kind=rule.kind,
                join=who_may_join(rules, channel),
                whisper=who_may_whisper(rules, channel),
                connections=self._node.hub.count(channel),
            )
        ]

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

    def _matching(self, whom: Disconnect) -> Iterator[Connection]:
        for connection in self._node.connections.values():
            session = connection.session
            claims = session.claims
            is_meant = claims is None or whom.concerns(claims.iat)
            if (
                is_meant
                and not connection.is_closing
                and (
                    (whom.channel is not None and whom.channel in session.channels)
                    or connection.id == whom.connection_id
                    or (claims is not None and whom.user_id == claims.user_id)
                    or (claims is not None and whom.jti is not None and whom.jti == claims.jti)
                )
            ):
                yield connection
