"""An edge node: joins the bus, the hub and the connections."""

import asyncio
import logging
import random
import re
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

from eventbus.bus import EventBus
from eventbus.drivers.base import (
    Driver,
    check_of,
    counters_of,
)
from eventbus.errors import EventBusError
from eventbus.tasks import (
    Shutdown,
    Tasks,
)
from eventbus_edge.access.admission import (
    Admission,
    Place,
)
from eventbus_edge.access.authorizers import ask
from eventbus_edge.access.hosts import (
    Hosts,
    Origins,
)
from eventbus_edge.access.revocation import Revocation
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.rules import (
    Allowed,
    Ask,
    ChannelRules,
    Denied,
)
from eventbus_edge.access.tickets import (
    Tickets,
    is_ticket,
)
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
    TokenVerifier,
)
from eventbus_edge.background import Background
from eventbus_edge.cluster.census import Census
from eventbus_edge.cluster.cluster import BusLag
from eventbus_edge.cluster.watch import Watch
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery.hub import Hub
from eventbus_edge.delivery.outbox import (
    Outbox,
    Sink,
    Unsent,
)
from eventbus_edge.delivery.quarantine import Quarantine
from eventbus_edge.delivery.traffic import Traffic
from eventbus_edge.delivery.wire import (
    Wire,
    Wires,
)
from eventbus_edge.framing.deflate import DeflatedFramings
from eventbus_edge.lifecycle.node import Lifecycle
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.presence.channels import PresenceChannels
from eventbus_edge.problem import (
    Problem,
    retry_after,
)
from eventbus_edge.protocols.vocabulary import CloseReason
from eventbus_edge.sessions.client_events import ClientEvents
from eventbus_edge.sessions.clock import Clock
from eventbus_edge.sessions.connection import (
    Connection,
    Peer,
    drop,
    let_go,
)
from eventbus_edge.sessions.limits import SessionLimits
from eventbus_edge.sessions.pauses import (
    Pauses,
    closed_by_peer,
)
from eventbus_edge.sessions.session import Session

__all__ = ["Node", "read_gauges"]


def read_gauges(metrics: Metrics, driver: Driver, presence: PresenceChannels, lag: BusLag) -> None:
    """Tie gauges to what they show; called in the event loop."""
    loop = asyncio.get_running_loop()
    metrics.bus_connected.set_function(lambda: float(driver.is_connected))
    metrics.bus_lag.set_function(lambda: lag.seconds(loop.time()))
    metrics.presence_channels.set_function(lambda: float(presence.counts()[0]))
    metrics.presence_members.set_function(lambda: float(presence.counts()[1]))


_log = logging.getLogger(__name__)

_MAX_BACKGROUND: Final = 1000
_READ_S: Final = 0.25
"""How long a node that returns reads before it says who is still here."""
_CHECK_S: Final = 5.0


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

        What clients send is checked by `client_events`, if given.
        """
        self.client_events = client_events
        self.id = _node_id()
        self.address = ""
        """Where it listens, as a URL, once it does."""
        self.settings = settings
        self.revoker = Revoker(
            bus.driver, bus.subjects, self._carry_out_revocation, leeway_s=settings.jwt_leeway
        )
        self.rules = rules.guarded(self.revoker.forbids)
        self.metrics = Metrics(lambda: counters_of(bus.driver))
        self.connections: dict[str, Connection] = {}
        self.is_draining = False
        self.admission = Admission(settings, self.metrics, lambda: self.hub.unsent.is_over)
        is_production = settings.environment == "production"
        self.hosts = Hosts(
            settings.allowed_hosts,
            any_name=is_production and not settings.allowed_hosts,
            without_key=not is_production,
            behind_proxies=bool(settings.trusted_proxies),
        )
        self.origins = Origins(settings.cors_allowed_origins, self.hosts)
        dropped = self.metrics.background_dropped.inc
        self.background = Background(_MAX_BACKGROUND, dropped)
        # Apart: a flood of bad payloads and a drain of many must not get in each other's way.
        self.closing = Background(settings.max_connections, dropped)
        self.hub = Hub(
            asyncio.get_running_loop().call_soon,
            self._too_slow,
            self.metrics.tally.wrote,
            unsent=Unsent(settings.max_unsent_bytes_total, self._cut),
        )
        self._bus = bus
        self._verifier = verifier
        self._limits = SessionLimits(
            heartbeat_s=settings.heartbeat,
            max_channels=settings.max_channels_per_connection,
            max_whisper_bytes=settings.max_whisper_bytes,
            token_required=settings.auth_required,
            token_timeout_s=settings.auth_timeout,
            token_grace_s=settings.token_grace,
            token_leeway_s=settings.jwt_leeway,
            actions_per_s=settings.max_actions_per_second,
            action_burst=settings.action_burst,
        )
        self.census = Census(self, bus)
        quarantine = Quarantine(bus.driver, bus.subjects, self.background, self.metrics)
        self.traffic = Traffic(
            bus, settings, self.hub, self.metrics, quarantine=quarantine, rules=self.rules
        )
        self.presence = PresenceChannels(
            bus.driver,
            self.id,
            settings,
            self.hub,
            self.admission.may_join,
            drop_gone=self.drop_gone,
        )
        self.lifecycle = Lifecycle(
            bus, self.census.cluster, settings, self.metrics, drop_gone=self.drop_gone
        )
        self.hub.on_use = self.lifecycle.use
        read_gauges(self.metrics, bus.driver, self.presence, self.census.lag)
        self.wires = Wires()
        self.deflated = _deflated(settings, self.metrics)
        self.publish, self.queues = bus.publish, bus.queues
        self.tickets = Tickets(
            settings.api_key or settings.jwt_secret, leeway_s=settings.jwt_leeway
        )
        self.watch = Watch(self, bus.driver.name)
        self._pauses = Pauses(time.monotonic())
        self.bus_fault = ""
        """What keeps the bus from storing messages; empty where nothing does, as far as known."""
        self.metrics.bus_stores.set_function(lambda: float(not self.bus_fault))
        self._tasks = Tasks()
        self._shutdown = Shutdown()
        self.clock = Clock(
            self.connections,
            heartbeat_s=settings.heartbeat,
            on_turn=self._look,
            on_lag=self.metrics.loop_lag.observe,
        )

    # Life

    async def start(self) -> None:
        """Join the cluster, and begin to keep time. Raises a DriverError."""
        await self.lifecycle.prepare()
        await self.census.open()
        await self.revoker.start()
        await self.lifecycle.start()
        self.watch.start()
        self._pauses.look(time.monotonic())
        self.clock.start()
        self._tasks.keep(self._check_bus, "checking what the bus stores")

    async def drain(self) -> None:
        """Take no new connections, and let the present ones go, spread over `drain_time`."""
        if self.is_draining:
            return
        self.is_draining = True
        count = len(self.connections)
        if count:
            _log.info("draining %d connections over %g s", count, self.settings.drain_time)
        connections = list(self.connections.values())
        await let_go(
            connections, self.settings.drain_time, CloseReason.DRAINING, "the node is draining"
        )

    async def let_the_rest_go(self) -> None:
        """Let go at once of who is still here, the time for draining being over."""
        await let_go(
            list(self.connections.values()), 0.0, CloseReason.DRAINING, "the node is draining"
        )

    async def aclose(self) -> None:
        """End what runs. Connections must have been drained, or are cut."""
        await self._shutdown.run(self._aclose)

    async def _aclose(self) -> None:
        await self._tasks.aclose()
        await self.clock.aclose()
        await self.watch.aclose()
        await self.lifecycle.aclose()
        await self.revoker.aclose()
        await self.census.aclose()
        await self.background.aclose()
        await self.closing.aclose()
        await self.presence.aclose()
        await self.traffic.aclose()

    def require_ready(self) -> None:
        """Whether the node can serve. Raises Problem, 503."""
        if self.is_draining:
            raise Problem("unavailable", "this node is draining", headers=retry_after(1))
        if not self.is_connected:
            message = "this node is not connected to the bus"
            raise Problem("unavailable", message, headers=retry_after(2))

    async def _check_bus(self) -> None:
        """Learn every few seconds whether what is published can be stored."""
        while True:
            try:
                self.bus_fault = await check_of(self._bus.driver)
            except EventBusError as exc:
                _log.debug("the bus cannot be checked: %s", exc)  # readiness says so
            await asyncio.sleep(_CHECK_S * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    @property
    def is_connected(self) -> bool:
        """Whether it has the bus."""
        return self._bus.driver.is_connected

    @property
    def verifies_no_tokens(self) -> bool:
        """Whether every token is refused, no key being configured."""
        return self._verifier is None

    # Connections

    def arrival(
        self, peer: str | None, headers: Mapping[str, str]
    ) -> AbstractContextManager[Place]:
        """A place for one more connection, from its handshake to its end. Raises Problem.

        `peer` is the address at the other end of the socket; see ClientAddresses.of.
        """
        self.require_ready()
        return self.admission.arrival(peer, headers)

    def connect(
        self, wire: Wire, sink: Sink, peer: Peer, claims: Claims | None, place: Place
    ) -> Connection:
        """Take a new connection, which holds its place until that is left."""
        connection_id = wire.protocol.connection_id()
        now = time.monotonic()
        protocol = wire.protocol
        session = Session(
            connection_id,
            self.rules,
            self._limits,
            now,
            liveness=protocol.liveness,
            prove=protocol.prove,
        )
        if claims is not None:
            session.authenticate(claims, claims.exp - time.time(), now)
        outbox = Outbox(connection_id, wire, sink, self.settings.max_unsent_bytes)
        connection = Connection(self, session, outbox, peer, place)
        self.connections[connection_id] = connection
        self.metrics.connections.inc()
        self.metrics.connections_opened.inc()
        self.clock.expect(connection)
        if claims is not None and self.revoker.forbids_token(claims):  # during its handshake
            connection.close(CloseReason.REVOKED, "revoked")
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if self.connections.pop(connection.id, None) is not None:
            connection.gone()
            if dropped := connection.outbox.dropped:
                reason = "slow_client" if connection.outbox.was_too_slow else "closing"
                self.metrics.dropped_frames.labels(reason).inc(dropped)
            self.clock.forget(connection)
            self.metrics.connections.dec()
            connection.log.debug("ended")

    async def drop_gone(self) -> None:
        """Let go of the connections that their clients have closed unseen.

        The end of one whose client had sent more than the kernel takes comes after what is read.
        """
        self._drop_closed()
        await asyncio.sleep(_READ_S)
        self._drop_closed()

    def _drop_closed(self) -> None:
        by_fileno = {each.fileno(): each for each in self.connections.values()}
        by_fileno.pop(-1, None)
        closed = closed_by_peer(by_fileno)
        for connection in list(self.connections.values()):
            # A transport may know the end already, and the connection's own task not yet.
            if (fileno := connection.fileno()) == -1 or fileno in closed:
                connection.ended(None)
                self.disconnect(connection)

    def _notice_pause(self, now: float) -> None:
        """After the process was stopped: what happened meanwhile waits to be read.

        Before anybody is let in or announced, or cut for not having answered: sockets may have been
        closed, revocations made, and answers given.
        """
        if not (paused := self._pauses.look(now)):
            return
        self.metrics.pauses.inc()
        _log.warning("the process was stopped, or its event loop blocked, for %.1f s", paused)
        self.revoker.doubt()
        self._drop_closed()
        for connection in self.connections.values():
            connection.session.time.resumed(now)

    def _look(self, now: float) -> None:
        self._notice_pause(now)
        self.metrics.channels.set(self.traffic.channels)
        self.admission.look(now)
        self.metrics.unsent.set(self.hub.unsent.measure())
        self.metrics.revocations.set(len(self.revoker.known))
        if self.revoker.is_due(now):
            self.background.start(self.revoker.keep_up(), "reading the revocations")

    def _too_slow(self, outbox: Outbox) -> None:
        connection = self.connections.get(outbox.connection_id)
        if connection is not None:
            connection.close(CloseReason.TOO_SLOW, "too slow: unsent bytes passed the bound")

    def _cut(self, outbox: Outbox) -> None:
        self.metrics.limits_reached.labels("unsent").inc()
        connection = self.connections.get(outbox.connection_id)
        if connection is not None:
            reason = "too slow: more bytes were unsent to all clients than the node may keep"
            connection.close(CloseReason.TOO_SLOW, reason)

    # What connections ask for

    async def verify(self, token: str, *, is_new: bool = True) -> Claims:
        """The claims of a token. Raises TokenRejected.

        Who is new is let in only when all revocations are known that others made.
        """
        self._notice_pause(time.monotonic())
        try:
            return await self._verify(token, is_new=is_new)
        except TokenRejected as exc:
            self.metrics.auth_failures.labels(exc.reason).inc()
            raise

    async def _verify(self, token: str, *, is_new: bool) -> Claims:
        if is_ticket(token):
            claims = self.tickets.read(token)
        elif self._verifier is None:
            message = "this node has no key to check tokens with"
            raise TokenRejected("unauthorized", message, "no_key")
        else:
            claims = await self._verifier.verify(token)
        try:
            if is_new:
                await self.revoker.confirm()
        except EventBusError as exc:
            _log.warning("a token cannot be accepted before revocations are read: %s", exc)
            message = "revocations cannot be read at the moment: try again"
            raise TokenRejected("unavailable", message, "revocations_unavailable") from None
        if self.revoker.forbids_token(claims):
            raise TokenRejected("unauthorized", "the token has been revoked", "revoked")
        return claims

    async def revoke(
        self,
        *,
        user_id: str | None = None,
        jti: str | None = None,
        connection_id: str | None = None,
        channel: str | None = None,
        issued_before: float | None = None,
    ) -> None:
        """End what is named, on every node, and refuse it until the tokens would have expired.

        Give one of user, token id and connection, or a channel; a channel beside a user or a token
        takes only that away from them. It concerns tokens that were issued until now, and for
        JWT_LEEWAY seconds more, since clocks differ; or exactly those whose `iat` is less than
        `issued_before`, in seconds since 1970 by the clock of their issuer.

        Raises ValueError, and an EventBusError when it could not be told to all: on this node it
        holds then all the same.
        """
        now = time.time()
        await self.revoker.revoke(
            Revocation(
                at=now,
                until=now + self.settings.revocation_time,
                user_id=user_id,
                jti=jti,
                connection_id=connection_id,
                channel=channel,
                issued_before=issued_before,
            )
        )

    async def lift(
        self, *, user_id: str | None = None, jti: str | None = None, channel: str | None = None
    ) -> bool:
        """Give back, on every node, what `revoke` took by the same names; False where it has not.

        Raises as `revoke` does.
        """
        like = Revocation(at=0, until=0, user_id=user_id, jti=jti, channel=channel)
        return await self.revoker.lift(like)

    def _carry_out_revocation(self, revocation: Revocation) -> None:
        connections = list(self.connections.values())
        count = drop(revocation, connections, self.settings.jwt_leeway)
        _log.info("a revocation has ended %d connections or subscriptions", count)

    async def consult(
        self, question: Ask, claims: Claims, connection_id: str | None = None
    ) -> Allowed | Denied:
        """Ask an authorizer of the application; one that fails, or takes too long, denies."""
        limit_s = self.settings.authorizer_timeout
        decision = await ask(question, claims, limit_s=limit_s, connection_id=connection_id)
        if isinstance(decision, Denied) and decision.fault:
            self.metrics.authorizer_faults.labels(decision.fault).inc()
        return decision

    def leave(self, channel: str, connection: Connection, *, lost: bool = False) -> None:
        """Deliver no more of a channel to a connection; one that is lost may come back."""
        self.hub.remove(channel, connection.id)
        session = connection.session
        self.presence.leave(channel, session.member(channel), connection.id, lost=lost)
        session.left(channel)
        self.traffic.release(channel)


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
