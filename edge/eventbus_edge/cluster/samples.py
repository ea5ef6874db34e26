"""Samples: the state of each node for live statistics of the cluster, and their sum. Pure."""

import heapq
from collections.abc import (
    Iterable,
    Sequence,
)
from typing import (
    Annotated,
    Final,
)

import msgspec

from eventbus.channels import ChannelKind
from eventbus_edge.cluster.gather import Question

__all__ = [
    "SAMPLE",
    "ChannelSample",
    "ClusterSample",
    "NodeAnswer",
    "NodeSample",
    "Sampled",
    "merge_channels",
]


FEW: Final = 50
MANY: Final = 1000
"""Channels of a sample; one sample in some seconds has MANY."""


class Sampled(msgspec.Struct, frozen=True):
    """A question for a sample, with at most `most` channels."""

    most: Annotated[int, msgspec.Meta(ge=0, le=MANY)]


class ChannelSample(msgspec.Struct, array_like=True, frozen=True):
    """A channel: its kind, its number of subscribers, its messages per second."""

    channel: str
    kind: ChannelKind
    connections: int
    rate: float


class NodeSample(msgspec.Struct, frozen=True, kw_only=True):
    """One node, now. Counts are since its start; `at` is its own clock, to compute rates with."""

    id: str
    host: str
    address: str
    at: float
    uptime_s: float
    connections: int
    channels: int
    subscriptions: int
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    latencies: list[int]
    """How many messages fell into each bucket of delivery latency."""
    memory_bytes: int
    bus_connected: bool
    bus_lag_s: float
    draining: bool
    presence_channels: int
    presence_members: int
    truncated: bool
    """Whether it has more busy channels than it counts."""


class NodeAnswer(msgspec.Struct, frozen=True):
    """A node's answer."""

    node: NodeSample
    channels: list[ChannelSample]


class ClusterSample(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, now: the data of the event `eb:stats`."""

    driver: str
    bounds: Sequence[float]
    """Upper bounds of the buckets of latency, in seconds; the last bucket has none."""
    nodes: list[NodeSample]
    missing: list[str]
    channels: list[ChannelSample]
    whole: bool
    """Whether these are up to MANY channels, or only the first few."""


SAMPLE: Final = Question("sample", Sampled, NodeAnswer)


def merge_channels(samples: Iterable[ChannelSample], most: int) -> list[ChannelSample]:
    """The busiest channels of all nodes.

    Connections are summed. Each node gets every message of a channel once, so that the rate is
    that of the node which counted most.
    """
    found: dict[str, ChannelSample] = {}
    for one in samples:
        known = found.get(one.channel)
        if known is not None:
            one = ChannelSample(  # noqa: PLW2901 - the sum takes its place
                one.channel,
                known.kind,
                known.connections + one.connections,
                max(known.rate, one.rate),
            )
        found[one.channel] = one
    return heapq.nsmallest(most, found.values(), key=_busiest_first)


def _busiest_first(one: ChannelSample) -> tuple[float, int, str]:
    return -one.rate, -one.connections, one.channel
