"""An edge node: builds its parts, starts and closes them."""

import asyncio
import logging
import re
import secrets
import socket
import time
from typing import (
    Final,
    NamedTuple,
)

from eventbus.bus import EventBus
from eventbus.drivers.base import counters_of
from eventbus.tasks import Shutdown
from eventbus_edge.access.admission import Admission
from eventbus_edge.access.authenticator import Authenticator
from eventbus_edge.access.authorizers import Authorizers
from eventbus_edge.access.hosts import (
    Hosts,
    Origins,
)
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.access.tickets import Tickets
from eventbus_edge.access.tokens import TokenVerifier
from eventbus_edge.background import Background
from eventbus_edge.cluster.census import (
    Census,
    LocalNode,
)
from eventbus_edge.cluster.cluster import Cluster
from eventbus_edge.cluster.watch import Watch
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.bus_health import BusHealth
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.outbox import Unsent
from eventbus_edge.delivery.quarantine import Quarantine
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.delivery.wire import Wires
from eventbus_edge.framing.deflate import DeflatedFramings
from eventbus_edge.lifecycle.node import Lifecycle
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.presence.channels import PresenceChannels
from eventbus_edge.problem import (
    Problem,
    retry_after,
)
from eventbus_edge.sessions.client_events import ClientEvents
from eventbus_edge.sessions.clock import Clock
from eventbus_edge.sessions.connection import Parts
from eventbus_edge.sessions.connections import (
    Acceptor,
    Connections,
)
from eventbus_edge.sessions.joining import Channels
from eventbus_edge.sessions.pauses import Pauses
from eventbus_edge.sessions.queries import Queries

__all__ = ["Access", "Node"]


_log = logging.getLogger(__name__)

_MAX_BACKGROUND: Final = 1000


class Access(NamedTuple):
    """What decides who gets in, and to which channels."""

    hosts: Hosts
    origins: Origins
    admission: Admission
    authenticator: Authenticator
    rules: ChannelRules
    authorizers: Authorizers
    revoker: Revoker


class Node:
    """Holds connections, and delivers to each the messages of the channels it has joined."""

    def __init__(
        self,
        bus: EventBus,
        settings: EdgeSettings,
        rules: ChannelRules,
        verifier: TokenVerifier | None,
        client_events: ClientEvents | None = None,
    ) -> None:
        """`bus` is opened and closed by the caller. Without `verifier`, all tokens are refused.

        `client_events` checks the events that clients send, if given.
        """
        driver, subjects = bus.driver, bus.subjects
        self.id = _node_id()
        self.bus = bus
        self.settings = settings
        self.metrics = metrics = Metrics(lambda: counters_of(driver))
        self.bus_health = BusHealth(driver)
        self.connections = Connections(settings, metrics)
        self._address = ""
        self._pauses = Pauses(time.monotonic())
        self._shutdown = Shutdown()
        self._background = Background(_MAX_BACKGROUND, metrics.background_dropped.inc)
        self._cluster = Cluster(
            driver, subjects, self.id, lambda word: metrics.cluster_faults.labels(word).inc()
        )
        self._lifecycle = Lifecycle(
            bus, self._cluster, settings, metrics, drop_gone=self.connections.drop_gone
        )
        self._hub = Hub(
            asyncio.get_running_loop().call_soon,
            self.connections.close_slow,
            metrics.tally.count_written,
            unsent=Unsent(settings.max_unsent_bytes_total, self.connections.close_slowest),
            on_use=self._lifecycle.use,
        )
        self.access = self._make_access(rules, verifier)
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
        unsent = self._hub.unsent
        return Access(
            hosts=hosts,
            origins=Origins(settings.cors_allowed_origins, hosts),
            admission=Admission(settings, metrics, lambda: unsent.is_over),
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
            queries=Queries(self.traffic, access.admission, self.census),
            clock=self._clock,
            client_events=client_events,
            metrics=self.metrics,
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
        """Join the cluster, and start the clock. Raises a DriverError."""
        await self._lifecycle.prepare()
        await self.census.open()
        await self.access.revoker.start()
        await self._lifecycle.start()
        self._watch.start()
        self._pauses.look(time.monotonic())
        self._clock.start()
        self.bus_health.start()

    async def aclose(self) -> None:
        """Close all parts. Connections must have been drained, or are cut."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        await self.bus_health.aclose()
        await self._clock.aclose()
        await self._watch.aclose()
        await self._lifecycle.aclose()
        await self.access.revoker.aclose()
        await self.census.aclose()
        await self._background.aclose()
        await self.connections.aclose()
        await self.presence.aclose()
        await self.traffic.aclose()

    def listens_at(self, address: str) -> None:
        """Take note of the URL that the node listens at, for the statistics of the cluster."""
        self._address = address

    def require_ready(self) -> None:
        """Raise Problem, 503, unless the node can serve."""
        if self.connections.is_draining:
            raise Problem("unavailable", "this node is draining", headers=retry_after(1))
        if not self.bus_health.is_connected:
            message = "this node is not connected to the bus"
            raise Problem("unavailable", message, headers=retry_after(2))

    def _turn(self, now: float) -> None:
        """Do what is due several times a second."""
        self._notice_pause()
        access, metrics = self.access, self.metrics
        metrics.channels.set(self.traffic.channels)
        access.admission.look(now)
        metrics.unsent.set(self._hub.unsent.measure())
        metrics.revocations.set(len(access.revoker.known))
        if access.revoker.is_due(now):
            self._background.start(access.revoker.keep_up(), "reading the revocations")

    def _notice_pause(self) -> None:
        """Catch up if the process was stopped: what happened meanwhile waits to be read.

        Sockets may have been closed, revocations made, and heartbeats answered. So this comes
        before a client is let in, announced as a member, or closed as silent.
        """
        now = time.monotonic()
        if not (paused := self._pauses.look(now)):
            return
        self.metrics.pauses.inc()
        _log.warning("the process was stopped, or its event loop blocked, for %.1f s", paused)
        self.access.revoker.doubt()
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
