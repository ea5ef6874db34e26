"""The faults that scripts/chaos injects, by name."""

from collections.abc import Mapping
from typing import Final

from scripts.chaos_lab.faults.base import CLUSTER, SINGLE, Fault
from scripts.chaos_lab.faults.brokers import (
    DiskFull,
    LinkCut,
    LinkSlow,
    NatsErased,
    NatsKilled,
    NatsStopped,
)
from scripts.chaos_lab.faults.clients import (
    ClientsChurn,
    ClientsCut,
    ClientsFlood,
    ClientsReturn,
    ClientsStall,
)
from scripts.chaos_lab.faults.cluster import (
    FollowerCut,
    LeaderKilled,
    NodeCutOff,
    NodeSilenced,
    RollingRestart,
    RollingUpgrade,
    RoutesCut,
    RoutesSilenced,
    RoutesSlow,
)
from scripts.chaos_lab.faults.edges import (
    ClockJumped,
    EdgeDrained,
    EdgeKilled,
    EdgeStopped,
    RelayKilled,
    WorkerKilled,
)
from scripts.chaos_lab.faults.versions import EdgesMixed

__all__ = ["CLUSTER", "FAULTS", "SINGLE", "Fault"]

FAULTS: Final[Mapping[str, type[Fault]]] = {
    each.name: each
    for each in (
        NatsKilled, NatsStopped, NatsErased, DiskFull, LinkSlow, LinkCut, EdgeKilled, EdgeDrained,
        EdgeStopped, EdgesMixed, WorkerKilled, RelayKilled, ClockJumped, ClientsCut, ClientsReturn,
        ClientsStall, ClientsChurn, ClientsFlood, LeaderKilled, NodeCutOff, NodeSilenced, RoutesCut,
        RoutesSilenced, FollowerCut, RoutesSlow, RollingRestart, RollingUpgrade,
    )
}  # fmt: skip
"""By name, in the order of `--list`."""
