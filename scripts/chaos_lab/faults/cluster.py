"""Faults of a cluster of three nats-servers with three replicas."""

import asyncio
import random
from typing import ClassVar

from eventbus.server import find_binary
from scripts.chaos_lab.brokers import Broker, Cluster
from scripts.chaos_lab.faults.base import CLUSTER, Fault
from scripts.chaos_lab.machine import NAMESPACES
from scripts.chaos_lab.site import Site

__all__ = [
    "FollowerCut",
    "LeaderKilled",
    "NodeCutOff",
    "NodeSilenced",
    "RollingRestart",
    "RollingUpgrade",
    "RoutesCut",
    "RoutesSilenced",
    "RoutesSlow",
]

_LIMIT_S = 10.0


class _OfCluster(Fault):
    topology = CLUSTER
    hold_s = 12.0
    takes_s = 12.0
    publish_limit_s: ClassVar[float | None] = _LIMIT_S

    def __init__(self, site: Site, choose: random.Random) -> None:
        super().__init__(site, choose)
        assert isinstance(site.brokers, Cluster)
        self.cluster = site.brokers
        self.node: Broker = choose.choice(self.cluster.all)

    async def leader(self) -> Broker:
        """The node that leads the event stream."""
        name = await self.site.stream_leader()
        return next(each for each in self.cluster.all if each.name == name)


class LeaderKilled(_OfCluster):
    name = "leader-killed"
    summary = "the stream's leader is killed (-9) and started again"

    async def begin(self) -> str:
        self.node = await self.leader()
        await self.node.kill()
        return self.node.name

    async def heal(self) -> None:
        await self.node.start()
        await self.node.healthy()


class NodeCutOff(_OfCluster):
    name = "node-cut-off"
    summary = "one node is cut off from the network in both directions"
    needs = frozenset({NAMESPACES})

    async def begin(self) -> str:
        self.node.place.cut_off()
        return self.node.name

    async def heal(self) -> None:
        self.node.place.reconnect()
        await self.node.healthy()


class NodeSilenced(_OfCluster):
    name = "node-silenced"
    summary = "one node receives packets but cannot send any"
    needs = frozenset({NAMESPACES})

    async def begin(self) -> str:
        self.node.place.silence()
        return self.node.name

    async def heal(self) -> None:
        self.node.place.reconnect()
        await self.node.healthy()


class RoutesCut(_OfCluster):
    name = "routes-cut"
    summary = "the leader reaches its clients but not the other nodes"
    unlimited = frozenset({"raw"})
    """Other clients of NATS do not notice that their server is cut off."""

    async def begin(self) -> str:
        self.node = await self.leader()
        self.cluster.cut_off(self.node)
        return self.node.name

    async def heal(self) -> None:
        self.cluster.mend()
        await self.node.healthy()


class RoutesSilenced(RoutesCut):
    name = "routes-silenced"
    summary = "the same, but the leader still hears the other nodes"

    async def begin(self) -> str:
        self.node = await self.leader()
        self.cluster.cut_off(self.node, hears=True)
        return self.node.name


class FollowerCut(RoutesCut):
    name = "follower-cut"
    summary = "a follower reaches its clients but not the other nodes"

    async def begin(self) -> str:
        leader = await self.leader()
        self.node = self.choose.choice([each for each in self.cluster.all if each is not leader])
        self.cluster.cut_off(self.node)
        return self.node.name


class RoutesSlow(_OfCluster):
    name = "routes-slow"
    summary = "routes between nodes are slow, lose packets, and are reset"

    async def begin(self) -> str:
        delay = self.choose.uniform(0.02, 0.1)
        for link in self.cluster.links.values():
            link.delay_s = delay
            link.loss = 0.02
        self.choose.choice(list(self.cluster.links.values())).reset()
        return f"{delay * 1000:.0f} ms"

    async def heal(self) -> None:
        for link in self.cluster.links.values():
            link.mend()


class RollingRestart(_OfCluster):
    name = "rolling-restart"
    summary = "all nodes are restarted (SIGTERM), one after another"
    hold_s = 0.0
    takes_s = 25.0

    async def begin(self) -> str:
        for node in self.cluster.all:
            await node.end()
            await self.change(node)
            await node.start()
            await node.healthy()
            await asyncio.sleep(1.0)
        return ""

    async def change(self, node: Broker) -> None:
        """Change a node that is down."""


class RollingUpgrade(RollingRestart):
    name = "rolling-upgrade"
    summary = "all nodes are upgraded to the current nats-server in turn"

    async def begin(self) -> str:
        before = await self.node.version()
        await super().begin()
        return f"{before} to {await self.node.version()}"

    async def change(self, node: Broker) -> None:
        node.use(find_binary())
