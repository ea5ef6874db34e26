"""All connections of a node: opened, drained, closed and counted."""

import asyncio
import logging
import time
from collections.abc import (
    Iterator,
    Mapping,
)
from typing import (
    Final,
    Protocol,
)

from eventbus.cluster import Revocation
from eventbus.pacing import paced
from eventbus_edge.access import ChannelRules, Claims, Slot
from eventbus_edge.background import Background
from eventbus_edge.config import EdgeSettings
from eventbus_edge.delivery import Outbox, Sink, Wire
from eventbus_edge.metrics import Metrics
from eventbus_edge.protocols import CloseReason
from eventbus_edge.sessions.connection import (
    Connection,
    Parts,
)
from eventbus_edge.sessions.limits import SessionLimits
from eventbus_edge.sessions.pauses import closed_by_peer
from eventbus_edge.sessions.ports import Peer
from eventbus_edge.sessions.session import Session
from eventbus_edge.turns import Turns

__all__ = ["Acceptor", "Connections"]


_log = logging.getLogger(__name__)

_READ_S: Final = 0.25
"""How long a node that resumes reads from sockets before it reports which clients are present."""


class Socket(Protocol):
    """The socket of a connection, or of one that was refused."""

    def abort(self) -> None:
        """End it at once."""


class Connections(Mapping[str, Connection]):
    """The open connections of a node by their ids."""

    def __init__(self, settings: EdgeSettings, metrics: Metrics, turns: Turns) -> None:
        self.is_draining = False
        self.turns = turns
        self.commands = Background(settings.max_connections, metrics.background_dropped.inc)
        """Commands that wait for something: at most one per connection."""
        self.protocols = metrics.protocol_connections.values
        """The number of connections that speak each protocol, by its name."""
        self._open: dict[str, Connection] = {}
        self._sockets: set[Socket] = set()
        self._no_sockets = asyncio.Event()
        self._no_sockets.set()
        self._drain_s = settings.drain_time
        self._leeway_s = settings.jwt_leeway
        self._metrics = metrics

    def __getitem__(self, connection_id: str) -> Connection:
        return self._open[connection_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """A connection was opened."""
        self._open[connection.id] = connection
        self._metrics.connections.inc()
        self._metrics.connections_opened.inc()
        self._count(connection, 1)

    def remove(self, connection: Connection) -> None:
        """A connection has ended: release what it holds. Does nothing the second time."""
        if self._open.pop(connection.id, None) is not None:
            connection.release()
            if dropped := connection.outbox.dropped:
                reason = "slow_client" if connection.outbox.was_too_slow else "closing"
                self._metrics.dropped_frames.labels(reason).inc(dropped)
            self._metrics.connections.dec()
            self._count(connection, -1)
            connection.log.debug("ended")

    def _count(self, connection: Connection, change: int) -> None:
        self.protocols[connection.outbox.format.protocol.name] += change

    # Sockets, which outlive their connections while they close

    def add_socket(self, socket: Socket) -> None:
        """A socket was opened; the node waits for its end, or ends it."""
        self._sockets.add(socket)
        self._no_sockets.clear()

    def remove_socket(self, socket: Socket) -> None:
        """A socket has ended."""
        self._sockets.discard(socket)
        if not self._sockets:
            self._no_sockets.set()

    async def sockets_ended(self, within: float) -> None:
        """Wait until all sockets have ended, at most `within` seconds; then end the others."""
        try:
            async with asyncio.timeout(within):
                await self._no_sockets.wait()
        except TimeoutError:
            _log.warning("%d sockets did not close within %g s", len(self._sockets), within)
            self._abort_sockets()

    def note_surplus(self) -> None:
        """Count a closed client that sent more than is read and dropped."""
        self._metrics.limits_reached.labels("surplus").inc()

    def _abort_sockets(self) -> None:
        for socket in list(self._sockets):
            socket.abort()

    # Draining

    async def drain(self) -> None:
        """Accept no new connections, and close the present ones, spread over `drain_time`.

        Clients that all reconnected at once would overload the other nodes.
        """
        if self.is_draining:
            return
        self.is_draining = True
        if not self._open:
            return
        connections = list(self._open.values())
        _log.info("draining %d connections over %g s", len(connections), self._drain_s)
        loop = asyncio.get_running_loop()
        start, step = loop.time(), self._drain_s / len(connections)
        for i, connection in enumerate(connections):
            if (wait := start + i * step - loop.time()) > 0:
                await asyncio.sleep(wait)
            _close_for_drain(connection)

    def close_remaining(self) -> None:
        """Close at once the connections that remain after the time for draining."""
        for connection in list(self._open.values()):
            _close_for_drain(connection)

    async def aclose(self) -> None:
        """Cancel commands that are still under way, and end all sockets at once."""
        await self.commands.aclose()
        self._abort_sockets()

    # Slow clients

    def close_slow(self, outbox: Outbox) -> None:
        """Close a connection whose unsent bytes exceed its own limit."""
        connection = self._open.get(outbox.connection_id)
        if connection is not None:
            connection.close(CloseReason.TOO_SLOW, "too slow: unsent bytes passed the bound")

    def close_slowest(self, outbox: Outbox) -> None:
        """Close a connection because the unsent bytes of all clients exceed the process's limit."""
        connection = self._open.get(outbox.connection_id)
        if connection is not None:
            self._metrics.limits_reached.labels("unsent").inc()
            reason = "too slow: more bytes were unsent to all clients than the node may keep"
            connection.close(CloseReason.TOO_SLOW, reason)

    # Clients that left

    async def drop_gone(self) -> None:
        """Remove the connections whose clients have closed them, although that was not read yet.

        Where a client sent more than the kernel buffers, its end shows only after some reading.
        """
        self._drop_closed()
        await asyncio.sleep(_READ_S)
        self._drop_closed()

    def resume(self, now: float) -> None:
        """After the process was stopped: remove closed connections, and wait for answers again."""
        self._drop_closed()
        for connection in self._open.values():
            connection.session.time.resumed(now)

    def _drop_closed(self) -> None:
        by_fileno = {each.fileno(): each for each in self._open.values()}
        by_fileno.pop(-1, None)
        closed = closed_by_peer(by_fileno)
        for connection in list(self._open.values()):
            # A transport may know of the end before the connection's own task does.
            if (fileno := connection.fileno()) == -1 or fileno in closed:
                connection.ended(None)
                self.remove(connection)

    # Revocations

    async def revoke(self, revocation: Revocation) -> None:
        """Close the connections, or end the subscriptions, that a revocation concerns."""
        if revocation.connection_id is None:
            connections = list(self._open.values())
        else:
            found = self._open.get(revocation.connection_id)
            connections = [] if found is None else [found]
        count = 0
        async for connection in paced(connections):
            if not connection.is_closing:
                count += self._revoke_for(connection, revocation)
        _log.info("a revocation has ended %d connections or subscriptions", count)

    def _revoke_for(self, connection: Connection, revocation: Revocation) -> bool:
        """Carry out a revocation for one connection; returns whether it ended anything."""
        channel, session = revocation.channel, connection.session
        if revocation.concerns(connection.id, session.identity, self._leeway_s):
            if channel is None:
                connection.close(CloseReason.REVOKED, "revoked")
                return True
            return connection.revoke(channel)
        # The proof of a subscription may name another user than the token.
        ended = [
            connection.revoke(name)
            for name, user in list(session.proven_users())
            if channel in (None, name) and revocation.concerns(None, user, self._leeway_s)
        ]
        return any(ended)


def _close_for_drain(connection: Connection) -> None:
    connection.close(CloseReason.DRAINING, "the node is draining")


class Acceptor:
    """Makes a connection of each socket that passed the handshake."""

    def __init__(
        self,
        connections: Connections,
        parts: Parts,
        rules: ChannelRules,
        settings: EdgeSettings,
    ) -> None:
        self._connections = connections
        self._parts = parts
        self._rules = rules
        self._max_unsent = settings.max_unsent_bytes
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

    def accept(
        self, wire: Wire, sink: Sink, peer: Peer, claims: Claims | None, slot: Slot
    ) -> Connection:
        """Add a new connection; the caller removes it from the connections when it has ended.

        `slot` counts it until then.
        """
        connection_id = wire.protocol.connection_id()
        now = time.monotonic()
        session = Session(
            connection_id,
            self._rules,
            self._limits,
            now,
            liveness=wire.protocol.liveness,
            prove=wire.protocol.prove,
            opened_at=time.time(),
        )
        if claims is not None:
            session.authenticate(claims, claims.exp - time.time(), now)
        outbox = Outbox(connection_id, wire, sink, self._max_unsent)
        connection = Connection(self._parts, session, outbox, peer, slot)
        self._connections.add(connection)
        self._parts.clock.expect(connection)
        if claims is not None and self._parts.revoker.forbids_token(claims):
            connection.close(CloseReason.REVOKED, "revoked")  # during its handshake
        return connection
