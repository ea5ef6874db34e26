"""Edge nodes and services ask the nodes of a cluster, and revoke access on all of them."""

from eventbus.cluster import questions
from eventbus.cluster.access import LASTING_S, Duration, Moment, disconnection, revoke, unrevoke
from eventbus.cluster.announcing import (
    REVOCATIONS,
    announce_revocation,
    encode_revocation,
    read_revocation,
    revocation_store,
    store_revocation,
    stored_revocations,
)
from eventbus.cluster.answers import (
    MAX_LISTED,
    Channel,
    ChannelMembers,
    Channels,
    ChannelStats,
    Disconnect,
    Disconnected,
    ListQuery,
    Member,
    NodeStats,
    Stats,
)
from eventbus.cluster.cluster import Cluster
from eventbus.cluster.gather import Question
from eventbus.cluster.inquiry import Inquiry
from eventbus.cluster.revocation import Bearer, Revocation, RevocationKey, combined
from eventbus.cluster.service import ClusterService

__all__ = [
    "LASTING_S",
    "MAX_LISTED",
    "REVOCATIONS",
    "Bearer",
    "Channel",
    "ChannelMembers",
    "ChannelStats",
    "Channels",
    "Cluster",
    "ClusterService",
    "Disconnect",
    "Disconnected",
    "Duration",
    "Inquiry",
    "ListQuery",
    "Member",
    "Moment",
    "NodeStats",
    "Question",
    "Revocation",
    "RevocationKey",
    "Stats",
    "announce_revocation",
    "combined",
    "disconnection",
    "encode_revocation",
    "questions",
    "read_revocation",
    "revocation_store",
    "revoke",
    "store_revocation",
    "stored_revocations",
    "unrevoke",
]
