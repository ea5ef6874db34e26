"""Samples: the state of each node for live statistics of the cluster, and their sum."""

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
from eventbus.cluster import Question
from eventbus.pacing import (
    paced,
    smallest,
)
from eventbus_edge.cluster.recent import Step

__all__ = [
    "SAMPLE",
    "ChannelSample",
    "ClusterSample",
    "History",
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
    protocols: dict[str, int] = {}
    """Connections by the protocol that they speak."""
    truncated: bool
    """Whether it has more busy channels than it counts."""


class NodeAnswer(msgspec.Struct, frozen=True):
    """A node's answer."""

    node: NodeSample
    channels: list[ChannelSample]


class History(msgspec.Struct, frozen=True):
    """The last minutes of the cluster, in steps of `step_s` seconds; the last one ends now.

    The steps are sums over the nodes that answer now, so they lack nodes that have ended.
    """

    step_s: float
    steps: Sequence[Step]


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
    history: History | msgspec.UnsetType = msgspec.UNSET
    """In the first sample that a subscriber receives."""


SAMPLE: Final = Question("sample", Sampled, NodeAnswer)


async def merge_channels(samples: Iterable[ChannelSample], most: int) -> list[ChannelSample]:
    """The busiest channels of all nodes.

    Connections are summed. Each node gets every message of a channel once, so the rate is that of
    the node that counted most.
    """
    found: dict[str, ChannelSample] = {}
    async for one in paced(samples):
        known = found.get(one.channel)
        if known is not None:
            one = ChannelSample(  # noqa: PLW2901 - the sum takes its place
                one.channel,
                known.kind,
                known.connections + one.connections,
                max(known.rate, one.rate),
            )
        found[one.channel] = one
    busiest = await smallest(
        most, ((-one.rate, -one.connections, one.channel) for one in found.values())
    )
    return [found[name] for _, _, name in busiest]
