"""Questions to the whole cluster: a node asks all nodes, and answers for itself."""

import datetime
import importlib.metadata
import socket
import time
from collections.abc import (
    Callable,
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
from eventbus.cluster import (
    MAX_LISTED,
    Channels,
    ChannelStats,
    Cluster,
    Disconnect,
    Disconnected,
    Inquiry,
    ListQuery,
    NodeStats,
    Stats,
    questions,
)
from eventbus.drivers import Announcement, AnnouncingDriver, Driver
from eventbus.errors import ClusterBusy
from eventbus.pacing import (
    paced,
    smallest,
)
from eventbus_edge.access import ChannelRules, TokenBucket, who_may_join, who_may_whisper
from eventbus_edge.delivery import Hub
from eventbus_edge.metrics import Metrics
from eventbus_edge.presence import PresenceChannels
from eventbus_edge.protocols import CloseReason
from eventbus_edge.sessions import Connection, Connections

__all__ = ["Census", "LocalNode"]


SERVICE: Final = "eventbus-edge"
"""The name of nodes in a broker's list of services."""
_QUESTIONS_SAVED_S: Final = 4.0
_PART: Final = 100
"""Channels in one part of an answer: about 30 KB, which every broker accepts."""
_PART_BYTES: Final = 16 * 1024
"""Members in one part: up to this, and the last of them."""


_EVERYTHING: Final = ListQuery()


class LocalNode(NamedTuple):
    """What a node's answers about itself consist of."""

    id: str
    address: Callable[[], str]
    """Where it listens, as a URL; empty until it does."""
    connections: Connections
    hub: Hub
    rules: ChannelRules
    metrics: Metrics
    presence: PresenceChannels
    protocols: Callable[[], dict[str, int]]
    """How many connections speak each protocol."""


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
        self._started_at = datetime.datetime.now(datetime.UTC)
        self._began = time.monotonic()
        self._cluster = cluster
        self._cluster.answer(questions.NODE, self._own_stats)
        self._cluster.answer(questions.CHANNELS, self._own_channels)
        self._cluster.answer(questions.CHANNEL, self._own_channel)
        self._cluster.answer(questions.RULE, self._own_rule)
        self._cluster.answer(questions.MEMBERS, self._own_members)
        self._cluster.answer(questions.CONNECTIONS, self._own_connections)
        self._cluster.answer(questions.DISCONNECT, self._disconnect_own)
        self._inquiry = Inquiry(cluster)
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
            members = await self._node.presence.fetch(channel)
            return msgspec.structs.replace(stats, members=len(members))
        return stats

    async def disconnect(self, request: Disconnect) -> Disconnected:
        """Close connections on all nodes, or end subscriptions of a channel; never refused."""
        return await self._inquiry.disconnect(request)

    def _count_question(self) -> None:
        """Raises ClusterBusy when there are too many."""
        if not self._pace.take(time.monotonic()):
            self._limits_reached.inc()
            raise ClusterBusy(
                "too many queries to all nodes: ask again in a moment; the limit is "
                "BROADCAST_MAX_QUESTIONS of this node"
            )

    # This node

    async def _own_stats(self, _asked: questions.Nothing) -> Sequence[NodeStats]:
        node = self._node
        stats = NodeStats(
            id=node.id,
            host=socket.gethostname(),
            address=node.address(),
            started_at=self._started_at,
            uptime_s=round(time.monotonic() - self._began, 1),
            connections=len(node.connections),
            protocols=node.protocols(),
            channels=len(node.hub),
            messages_in=node.metrics.tally.messages_in,
            messages_out=node.metrics.tally.messages_out,
        )
        return [stats]

    async def _own_channels(
        self, question: questions.Matching
    ) -> Sequence[questions.ChannelsHeard]:
        matches = Pattern(question.pattern).match
        hub = self._node.hub
        # One more than are listed shows whether there are more.
        found = await smallest(
            MAX_LISTED + 1,
            ((-hub.count(name), name) for name in list(hub.channels) if matches(name) is not None),
        )
        truncated = len(found) > MAX_LISTED
        counts = [self._count(name) async for _, name in paced(found[:MAX_LISTED])]
        parts = range(0, max(len(counts), 1), _PART)
        return [
            questions.ChannelsHeard(counts[start : start + _PART], truncated) for start in parts
        ]

    async def _own_channel(
        self, question: questions.AboutChannel
    ) -> Sequence[questions.ChannelCount]:
        return [self._count(question.channel)]

    def _count(self, channel: str) -> questions.ChannelCount:
        node, kind = self._node, self._node.rules.find(channel).kind
        members = node.presence.count(channel) if kind is ChannelKind.PRESENCE else None
        return questions.ChannelCount(channel, node.hub.count(channel), kind, members)

    async def _own_rule(self, question: questions.AboutChannel) -> Sequence[questions.ChannelRule]:
        rules, channel = self._node.rules, validate_channel(question.channel)
        rule = rules.find(channel)
        return [
            questions.ChannelRule(
                node=self._node.id,
                pattern=rule.pattern.text,
                kind=rule.kind,
                join=who_may_join(rules, channel),
                whisper=who_may_whisper(rules, channel),
                connections=self._node.hub.count(channel),
            )
        ]

    async def _own_members(
        self, question: questions.AboutChannel
    ) -> Sequence[questions.MembersHeard]:
        kind = self._node.rules.find(question.channel).kind
        parts, size = [questions.MembersHeard(kind, [])], 0
        if kind is ChannelKind.PRESENCE:
            async for user_id, info, at in paced(self._node.presence.own(question.channel)):
                if size > _PART_BYTES:
                    parts.append(questions.MembersHeard(kind, []))
                    size = 0
                parts[-1].members.append(questions.MemberHeard(user_id, msgspec.Raw(info), at))
                size += len(info) + len(user_id)
        return parts

    async def _own_connections(
        self, question: questions.StartOfId
    ) -> Sequence[questions.ConnectionIds]:
        found: list[str] = []
        async for connection in paced(list(self._node.connections.values())):
            if connection.id.startswith(question.start) and not connection.is_closing:
                found.append(connection.id)
                if len(found) == questions.MAX_ALIKE:
                    break
        return [questions.ConnectionIds(found)]

    async def _disconnect_own(self, request: Disconnect) -> Sequence[questions.Count]:
        count = 0
        async for connection in paced(list(self._node.connections.values())):
            if not connection.is_closing:
                count += _disconnect(connection, request)
        return [questions.Count(count)]


def _disconnect(connection: Connection, request: Disconnect) -> bool:
    """Disconnect a client if the command applies to it; returns whether it does."""
    session, identity = connection.session, connection.session.identity
    if request.channel is not None:
        bearer = session.bearer(request.channel)
        is_meant = bearer is None or request.concerns(bearer.iat)
        return (
            is_meant and request.channel in session.channels and connection.revoke(request.channel)
        )
    is_meant = connection.id == request.connection_id or (
        identity is not None
        and request.concerns(identity.iat)
        and (
            request.user_id == identity.user_id
            or (request.jti is not None and request.jti == identity.jti)
        )
    )
    proven = [
        channel
        for channel, user in session.proven_users()
        if user.user_id == request.user_id and request.concerns(user.iat)
    ]
    if not is_meant and not (proven and request.reconnect):
        # The connection may have subscriptions of other users.
        ended = [connection.revoke(channel) for channel in proven]
        return any(ended)
    if request.reconnect:
        connection.close(CloseReason.COME_BACK, "disconnected by an administrator: reconnect")
    else:
        connection.close(CloseReason.DISCONNECTED, "disconnected by an administrator")
    return True
