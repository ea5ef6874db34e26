"""An edge node: builds its parts, starts and closes them."""

import asyncio
import collections
import contextlib
import logging
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Final,
    NamedTuple,
)

from eventbus.bus import EventBus
from eventbus.cluster import Cluster
from eventbus.drivers import counters_of
from eventbus.errors import BusStateError
from eventbus.tasks import Shutdown
from eventbus_edge.access import (
    Admission,
    Authenticator,
    Authorizers,
    ChannelRules,
    Hosts,
    Origins,
    Revoker,
    Rule,
    Tickets,
    TokenVerifier,
)
from eventbus_edge.background import Background
from eventbus_edge.cluster import Census, Counted, LocalNode, SubscriptionCounts, Watch, Watchers
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery import BusHealth, Hub, Quarantine, Traffic, Unsent, Wires
from eventbus_edge.framing import DeflatedFramings
from eventbus_edge.lifecycle import Lifecycle, Receiver
from eventbus_edge.metrics import Metrics
from eventbus_edge.presence import PresenceChannels
from eventbus_edge.problem import (
    Problem,
    retry_after,
)
from eventbus_edge.protocols import SubscriptionsCounted, WireProtocol
from eventbus_edge.sessions import (
    Acceptor,
    Channels,
    ClientEvents,
    Clock,
    Connections,
    Parts,
    Pauses,
    Queries,
)
from eventbus_edge.turns import Turns

__all__ = ["Access", "Extension", "Node", "Tenant"]


_log = logging.getLogger(__name__)

_MAX_BACKGROUND: Final = 1000


class Extension(NamedTuple):
    """What a further protocol adds to a node, beside its HTTP routes."""

    websockets: Mapping[str, WireProtocol] = {}
    """Protocols by path."""
    receivers: Sequence[Receiver] = ()
    """Receivers of webhooks."""
    is_counted: Callable[[str], bool] | None = None
    """Whether the subscriptions of a channel are counted over all nodes; None: nothing is."""
    rules: Sequence[Rule] = ()
    """Rules that come before all others."""


class Tenant(NamedTuple):
    """A group of clients with a namespace and a node of their own, in the same process."""

    name: str
    """Its name in metrics and logs. Its namespace is `<namespace of the process>_<name>`."""
    settings: EdgeSettings
    extension: Extension
    paths: Sequence[str]
    """The first two segments of the paths that its node serves, such as `/apps/1001`."""


class Access(NamedTuple):
    """The parts that decide who may connect, and to which channels."""

    hosts: Hosts
    origins: Origins
    admission: Admission
    authenticator: Authenticator
    rules: ChannelRules
    authorizers: Authorizers
    revoker: Revoker
    unsent: Unsent
    """The unsent data of all clients of the process."""


class Node:
    """Holds connections, and delivers to each the messages of the channels it has joined."""

    def __init__(
        self,
        bus: EventBus,
        settings: EdgeSettings,
        rules: ChannelRules,
        verifier: TokenVerifier | None,
        client_events: ClientEvents | None = None,
        *,
        extension: "Extension" = Extension(),  # noqa: B008 - it is immutable
        host: "Node | None" = None,
    ) -> None:
        """`bus` is opened and closed by the caller. Without `verifier`, all tokens are refused.

        `client_events` checks the events that clients send, if given. `host` is the node of the
        same process whose turns, and limits of connections, addresses and unsent bytes, it shares.
        """
        driver, subjects = bus.driver, bus.subjects
        self.id = _node_id()
        self.bus = bus
        self.settings = settings
        self.metrics = metrics = Metrics(lambda: counters_of(driver))
        self.bus_health = BusHealth(driver)
        turns = Turns() if host is None else host.connections.turns
        self.connections: Connections = Connections(settings, metrics, turns)
        self._tenants: dict[str, Node] = {}
        self._address = ""
        self._host = host
        self._pauses = Pauses(time.monotonic())
        self._shutdown = Shutdown()
        self._background = Background(_MAX_BACKGROUND, metrics.background_dropped.inc)
        self._cluster = Cluster(
            driver, subjects, self.id, lambda word: metrics.cluster_faults.labels(word).inc()
        )
        self._lifecycle = Lifecycle(
            bus,
            self._cluster,
            settings,
            metrics,
            receivers=extension.receivers,
            drop_gone=self.connections.drop_gone,
        )
        on_cut = self.connections.close_slowest
        self._unsent = (
            Unsent(settings.max_unsent_bytes_total, on_cut)
            if host is None
            else host.access.unsent.share(on_cut)
        )
        self._hub = Hub(
            asyncio.get_running_loop().call_soon,
            self.connections.close_slow,
            metrics.tally.count_written,
            unsent=self._unsent,
            on_use=self._lifecycle.use,
            on_change=self._count_again,
        )
        self._counts = SubscriptionCounts(
            driver,
            subjects,
            self._cluster,
            self._hub,
            is_counted=extension.is_counted,
            on_counted=self._counted,
        )
        self._watchers = Watchers(self._counts, self._hub, grace_s=settings.presence_grace)
        self.access: Access = self._make_access(rules.preceded_by(extension.rules), verifier)
        self.traffic = Traffic(
            bus,
            settings,
            self._hub,
            metrics,
            quarantine=Quarantine(driver, subjects, self._background, metrics),
            rules=self.access.rules,
        )
        self.presence = PresenceChannels(
            driver,
            self.id,
            settings,
            self._hub,
            self.access.admission.may_join,
            drop_gone=self.connections.drop_gone,
        )
        local = LocalNode(
            id=self.id,
            address=lambda: self._address,
            connections=self.connections,
            hub=self._hub,
            rules=self.access.rules,
            metrics=metrics,
            presence=self.presence,
            protocols=self._protocols,
        )
        self.census = Census(local, self._cluster, driver, settings.max_questions)
        self._watch = Watch(local, self._cluster, driver, self.traffic)
        self._clock = Clock(
            self.connections,
            heartbeat_s=settings.heartbeat,
            on_turn=self._turn,
            on_lag=metrics.loop_lag.observe,
        )
        self.acceptor = self._make_acceptor(client_events)
        self._sent: collections.Counter[str] = collections.Counter()
        self.wires = Wires(_deflated(settings, metrics))
        self._set_gauges()

    def _make_access(self, rules: ChannelRules, verifier: TokenVerifier | None) -> Access:
        settings, metrics = self.settings, self.metrics
        revoker = Revoker(
            self.bus.driver,
            self.bus.subjects,
            self.connections.revoke,
            leeway_s=settings.jwt_leeway,
            lifetime_s=settings.revocation_time,
        )
        is_production = settings.environment == "production"
        hosts = Hosts(
            settings.allowed_hosts,
            any_name=is_production and not settings.allowed_hosts,
            without_key=not is_production,
            behind_proxies=bool(settings.trusted_proxies),
        )
        guarded = rules.guarded(revoker.forbids)
        return Access(
            hosts=hosts,
            origins=Origins(settings.cors_allowed_origins, hosts),
            admission=Admission(
                settings,
                metrics,
                lambda: self._unsent.is_over,
                within=None if self._host is None else self._host.access.admission,
            ),
            authenticator=Authenticator(
                verifier,
                Tickets(settings.api_key or settings.jwt_secret, leeway_s=settings.jwt_leeway),
                revoker,
                on_rejected=lambda reason: metrics.auth_failures.labels(reason).inc(),
                before_verify=self._notice_pause,
            ),
            rules=guarded,
            authorizers=Authorizers(
                guarded,
                settings.authorizer_timeout,
                lambda fault: metrics.authorizer_faults.labels(fault).inc(),
            ),
            revoker=revoker,
            unsent=self._unsent,
        )

    def _make_acceptor(self, client_events: ClientEvents | None) -> Acceptor:
        access = self.access
        parts = Parts(
            node_id=self.id,
            authenticator=access.authenticator,
            authorizers=access.authorizers,
            admission=access.admission,
            revoker=access.revoker,
            channels=Channels(self.traffic, self._hub, self.presence),
            queries=Queries(self.traffic, access.admission, self.census, self.presence),
            clock=self._clock,
            client_events=client_events,
            turns=self.connections.turns,
            metrics=self.metrics,
            record=self._lifecycle.record,
            watchers=self._watchers,
        )
        return Acceptor(self.connections, parts, access.rules, self.settings)

    def _set_gauges(self) -> None:
        """Set the functions of gauges that are read when Prometheus asks."""
        loop = asyncio.get_running_loop()
        metrics, presence, lag = self.metrics, self.presence, self._cluster.lag
        metrics.bus_connected.set_function(lambda: float(self.bus_health.is_connected))
        metrics.bus_stores.set_function(lambda: float(not self.bus_health.fault))
        metrics.bus_lag.set_function(lambda: lag.seconds(loop.time()))
        metrics.presence_channels.set_function(lambda: float(presence.counts()[0]))
        metrics.presence_members.set_function(lambda: float(presence.counts()[1]))

    async def start(self) -> None:
        """Join the cluster, and start the clock. Raises a DriverError.

        Raises BusStateError when another task closes the node meanwhile, or has closed it.
        """
        async with self._shutdown.opening(lambda: BusStateError("the node was closed")):
            await self._lifecycle.prepare()
            await self.census.open()
            await self.access.revoker.start()
            await self._lifecycle.start()
            self._watch.start()
            await self._counts.start()
            self._pauses.check(time.monotonic())
            self._clock.start()
            self.bus_health.start()

    async def aclose(self) -> None:
        """Close all parts. Connections must have been drained, or are cut."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        async with contextlib.AsyncExitStack() as parts:
            for part in (  # closed from the last one to the first, although one may fail
                self.traffic,
                self.presence,
                self.connections,
                self._background,
                self.census,
                self.access.revoker,
                self._lifecycle,
                self._watch,
                self._counts,
                self._clock,
                self.bus_health,
            ):
                parts.push_async_callback(part.aclose)

    @property
    def tenants(self) -> "Mapping[str, Node]":
        """The nodes that share this node's limits, by tenant name."""
        return self._tenants

    def add_tenant(self, name: str, node: "Node") -> None:
        """Add a node that was made with this one as its host, and has started."""
        self._tenants[name] = node

    def listens_at(self, address: str) -> None:
        """Record the URL that the node listens at, for the statistics of the cluster."""
        self._address = address

    def require_ready(self) -> None:
        """Raise Problem, 503, unless the node can serve."""
        if self.connections.is_draining:
            raise Problem("unavailable", "this node is draining", headers=retry_after(1))
        if not self.bus_health.is_connected:
            message = "this node is not connected to the bus"
            raise Problem("unavailable", message, headers=retry_after(2))

    def _protocols(self) -> dict[str, int]:
        """The number of connections per protocol; `<protocol>/<name>` for those of tenants."""
        counts = dict(+self.connections.protocols)
        for name, tenant in self._tenants.items():
            for protocol, count in (+tenant.connections.protocols).items():
                counts[f"{protocol}/{name}"] = count
        return counts

    def _count_again(self, channel: str) -> None:
        self._counts.changed(channel)

    def _counted(self, counted: Counted) -> None:
        """Notify the subscribers of a channel, and receivers of webhooks, how many there are."""
        notice = SubscriptionsCounted(counted.channel, counted.connections)
        subscribers = self._hub.subscribers(counted.channel)
        self._hub.fan_out(subscribers, lambda wire: wire.message(notice))
        self._watchers.counted(counted.channel, counted.connections)
        if counted.is_first:
            self._lifecycle.record(notice)

    def _turn(self, now: float) -> None:
        """Do what is due several times a second."""
        self._notice_pause()
        access, metrics = self.access, self.metrics
        metrics.channels.set(self.traffic.channels)
        access.admission.measure(now)
        self._watchers.turn(now)
        self._count_sent()
        metrics.unsent.set(self._unsent.measure())
        metrics.revocations.set(len(access.revoker.known))

    def _count_sent(self) -> None:
        sent: collections.Counter[str] = collections.Counter()
        for protocol, count in self.wires.sent():
            sent[protocol] += count
        for protocol, count in (sent - self._sent).items():
            self.metrics.protocol_messages_out.labels(protocol).inc(count)
        self._sent = sent

    def _notice_pause(self) -> None:
        """Catch up if the process was stopped: what happened meanwhile waits to be read.

        Sockets may have been closed, revocations made, and heartbeats answered. So this comes
        before a client is let in, announced as a member, or closed as silent.
        """
        now = time.monotonic()
        if not (paused := self._pauses.check(now)):
            return
        self.metrics.pauses.inc()
        _log.warning("the process was stopped, or its event loop blocked, for %.1f s", paused)
        self.access.revoker.invalidate()
        self.connections.resume(now)


def _deflated(settings: EdgeSettings, metrics: Metrics) -> DeflatedFramings | None:
    if not settings.compression:
        return None
    before = metrics.deflated_bytes.labels("before")
    after = metrics.deflated_bytes.labels("after")

    def count(size: int, deflated: int) -> None:
        before.inc(size)
        after.inc(deflated)

    return DeflatedFramings(
        min_bytes=settings.compression_min_bytes,
        level=settings.compression_level,
        on_deflated=count,
    )


def _node_id() -> str:
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname())[:40]
    return f"{host}-{secrets.token_hex(4)}"
