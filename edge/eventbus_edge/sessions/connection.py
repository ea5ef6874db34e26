"""One client's connection on a node: carries out what its session asks for."""

import asyncio
import collections
import functools
import logging
import time
from collections.abc import Iterable
from typing import (
    TYPE_CHECKING,
    Final,
    Protocol,
)

import msgspec

from eventbus.errors import EventBusError
from eventbus.user_code import guarded
from eventbus_edge.access.admission import (
    Full,
    Place,
)
from eventbus_edge.access.revocation import Revocation
from eventbus_edge.access.rules import (
    Allowed,
    Ask,
)
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
)
from eventbus_edge.cluster.answers import ListQuery
from eventbus_edge.delivery.outbox import Outbox
from eventbus_edge.framing.frames import pong_frame
from eventbus_edge.logs import of_connection
from eventbus_edge.protocols.vocabulary import (
    Authenticate,
    CloseReason,
    Closing,
    ClusterStats,
    Command,
    Failed,
    Presence,
    ReadHistory,
    Ref,
    Reply,
    Returns,
    StoredMessages,
    Subscribe,
    Whisper,
)
from eventbus_edge.sessions.effects import (
    Attend,
    Close,
    Consult,
    Effect,
    Heartbeat,
    Join,
    JoinPattern,
    Leave,
    LeavePattern,
    Read,
    Recheck,
    Restate,
    Send,
    Survey,
    Verify,
    WhisperOut,
)
from eventbus_edge.sessions.joining import Joiner
from eventbus_edge.sessions.pauses import closed_by_peer
from eventbus_edge.sessions.session import Session

if TYPE_CHECKING:
    from eventbus_edge.node import Node

__all__ = [
    "Connection",
    "Peer",
    "drop",
    "fileno_of",
    "is_gone",
    "let_go",
    "look_up",
]


_log = logging.getLogger(__name__)

_CLOSE_LEVELS: Final = {CloseReason.TOO_SLOW: logging.INFO}
"""What an operator should see by default; the other ends are the clients' daily life."""


class Peer(Protocol):
    """The far end of a connection, as its transport's handler offers it."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def close(self, closing: Closing) -> None:
        """Begin to end the connection; what was written before reaches the client first."""

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when it is closed."""


class Connection:
    """Joins one session, its outbox and its peer with the node.

    `handle` is awaited for one command at a time, so that a client's commands are answered in
    their order, and a client that sends faster than it is served is slowed by its own socket.
    """

    def __init__(
        self, node: "Node", session: Session, outbox: Outbox, peer: Peer, place: Place
    ) -> None:
        self.id = session.connection_id
        self.session = session
        self.outbox = outbox
        self.is_closing = False
        self._may_return = True
        self._ping: bytes | None = None
        self._node = node
        self._peer = peer
        self._place = place
        self._joiner = Joiner(node, self)

    async def open(self, subscribe: Iterable[tuple[Subscribe, Allowed]]) -> None:
        """Greet the client, then join the channels that its URL asked for and was allowed."""
        self.log.debug("opened")
        await self._carry_out(self.session.open(self._node.id))
        for command, decision in subscribe:
            await self._carry_out(self.session.consulted(command, decision))

    async def handle(self, command: Command, size: int = 0) -> None:
        """Answer one command of the client, which came as a message of `size` bytes.

        What comes after the close is not carried out.
        """
        if self.is_closing:
            return
        try:
            with guarded():
                await self._carry_out(self.session.receive(command, time.monotonic(), size))
        except Exception:
            self.log.exception("%s failed", type(command).__name__)
            self.close(CloseReason.INTERNAL_ERROR, "an internal error")
        self._node.clock.expect(self)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Where to log what concerns this connection."""
        return of_connection(_log, self.id)

    @property
    def address(self) -> str:
        """What the client's address counts as; see `eventbus_edge.access.addresses.group`."""
        return self._place.address

    def heard(self) -> None:
        """The client gave a sign of life that is no command."""
        self.session.time.heard(time.monotonic())

    def count(self, frames: int, ping: bytes | None, *, is_last: bool) -> None:
        """Count frames that are no commands, `ping` being the payload of their newest ping.

        One pong answers all pings of a read (RFC 6455, 5.5.3), after its last frames.
        """
        effects: list[Effect] = []
        if frames:
            is_served, effects = self.session.count(frames, time.monotonic())
            if ping is not None and is_served:
                self._ping = ping
        if self._ping is not None and (is_last or effects):
            self.write(pong_frame(self._ping))
            self._ping = None
        self._carry_out_now(effects)

    @property
    def user(self) -> Claims:
        """Who the client is, for what only an authenticated one can reach."""
        claims = self.session.claims
        assert claims is not None, "an authorizer is asked about a user"
        return claims

    def send(self, reply: Reply) -> None:
        """Give the client a reply, in order with the messages of its channels."""
        if isinstance(reply, Failed):
            self._node.metrics.errors.labels(reply.code).inc()
        frame = self.outbox.format.reply(reply)
        if frame is not None:
            self.session.answered(len(frame), time.monotonic())
            self._node.hub.push(self.outbox, frame)

    def write(self, frame: bytes) -> None:
        """Send a frame of the transport's own, such as a pong, within the bound of all others."""
        self._node.hub.push(self.outbox, frame)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when it is closed."""
        return self._peer.fileno()

    def tick(self, now: float) -> None:
        """Do what the passing of time asks for."""
        self._carry_out_now(self.session.time.tick(now))

    def _carry_out_now(self, effects: list[Effect]) -> None:
        """Carry out what needs no waiting."""
        for effect in effects:
            match effect:
                case Send(reply):
                    self.send(reply)
                case Heartbeat():
                    self._peer.ping()
                case Close(reason, text):
                    self.close(reason, text)
                case _:
                    raise AssertionError(f"{effect} would have to be waited for")

    def close(self, reason: CloseReason, text: str) -> None:
        """Begin to end the connection, once; `text` says why, for people."""
        if not self.is_closing:
            self.is_closing = True
            closing = self.outbox.format.protocol.closing(reason, text)
            self._may_return = closing.returns is not Returns.NEVER
            self._node.metrics.closes.labels(str(closing.code)).inc()
            level = _CLOSE_LEVELS.get(reason, logging.DEBUG)
            self.log.log(level, "closing: %d %s", closing.code, text)
            # What is pending goes first, and nothing follows a close frame (RFC 6455, 5.5.1).
            self.outbox.flush()
            self.outbox.close()
            self._peer.close(closing)

    def revoke(self, channel: str) -> bool:
        """Take a channel away, at once, and the patterns that match it; whether there was any.

        The client is told, and the connection goes on.
        """
        if self._joiner.revoke(channel):
            return True
        effects = self.session.revoke(channel)
        for pattern in self.session.patterns:
            if pattern.match(channel) is not None:
                effects += self.session.patterns.revoke(pattern)
        for effect in effects:
            match effect:
                case Send(reply):
                    self.send(reply)
                case Leave() | LeavePattern():
                    self._leave(effect)
                case _:
                    raise AssertionError(f"revoking cannot ask for {effect}")
        return bool(effects)

    def ended(self, code: int | None) -> None:
        """The other side, or the protocol's own checks, ended it; None for the other side."""
        if not self.is_closing:
            self.is_closing = True
            self._node.metrics.closes.labels("client" if code is None else str(code)).inc()

    def gone(self) -> None:
        """The connection has ended: let go of what it holds."""
        self.is_closing = True
        self.outbox.close()
        for channel in self.session.channels:
            self._node.leave(channel, self, lost=self._may_return)
        self.session.channels.clear()
        for pattern in self.session.patterns:
            self._node.traffic.wildcards.leave(pattern, self.id)
        self.session.patterns.clear()

    async def _carry_out(self, effects: list[Effect]) -> None:
        queue = collections.deque(effects)
        while queue and not self.is_closing:
            match effect := queue.popleft():
                case Send(reply):
                    self.send(reply)
                case Close(reason, text):
                    self.close(reason, text)
                case Verify(token, ref):
                    queue.extend(await self._verify(Authenticate(token, ref)))
                case Consult(command, question):
                    queue.extend(await self._consult(command, question))
                case Join() | JoinPattern():
                    queue.extend(await self._joiner.enter(effect))
                case Leave() | LeavePattern():
                    self._leave(effect)
                case Recheck(channel, question, changes):
                    decision = await self._node.consult(question, self.user, self.id)
                    queue.extend(self.session.rechecked(channel, decision, changes))
                case WhisperOut(command, event, user_id):
                    queue.extend(await self._whisper(command, event, user_id))
                case Attend() | Restate():
                    self._attend(effect)
                case Read() | Survey():
                    room = self.outbox.limit // 2
                    self.send(await look_up(self._node, effect, room, self.address))
                case Heartbeat():
                    self._peer.ping()

    def _leave(self, effect: Leave | LeavePattern) -> None:
        match effect:
            case Leave(channel):
                self._node.leave(channel, self)
            case LeavePattern(pattern):
                self._node.traffic.wildcards.leave(pattern, self.id)

    async def _verify(self, command: Authenticate) -> list[Effect]:
        try:
            # Who is in may refresh while revocations cannot be read: they are carried out later.
            is_new = self.session.claims is None
            claims = await self._node.verify(command.token, is_new=is_new)
        except TokenRejected as exc:
            self.log.info("its token is not accepted: %s", exc.reason)
            return self.session.token_rejected(exc.code, str(exc), command.ref)
        if self.session.claims is None:
            try:
                self._node.admission.claim(self._place, claims.user_id)
            except Full as exc:
                return self.session.refused("limit_exceeded", str(exc), None, command.ref)
        left = claims.exp - time.time()
        return self.session.verified(claims, left, command.ref, time.monotonic())

    async def _whisper(self, command: Whisper, event: str, user_id: str | None) -> list[Effect]:
        if not self._node.admission.may_whisper(command.channel):
            message = "too many client events on this channel: wait a moment"
            return self.session.refused("rate_limited", message, command.channel, command.ref)
        checked = self._node.client_events
        if checked and (fault := checked.fault(command.channel, event, command.data)):
            return self.session.refused("bad_request", fault, command.channel, command.ref)
        fault = await self._node.traffic.whisper(command, event, user_id, self.id)
        return self.session.whispered(command, fault)

    def _attend(self, effect: Attend | Restate) -> None:
        match effect:
            case Attend(command):
                self.send(self._presence(command))
            case Restate(channel, changes) if channel in self.session.channels:
                answer = self._presence(Presence(channel, changes, None))
                if isinstance(answer, Failed):  # the answer to the token has been given
                    self.send(answer)

    def _presence(self, command: Presence) -> Reply:
        channel, changes, ref = command
        if changes is not None and not self._node.admission.may_update(channel):
            message = "too many presence updates and client events on this channel: wait a moment"
            return Failed("rate_limited", message, channel, ref)
        member = self.session.member(channel)
        assert member is not None, "who is in a presence channel is known"
        return self._node.presence.answer(command, member, self.id)

    async def _consult(self, command: Subscribe | ReadHistory, question: Ask) -> list[Effect]:
        decision = await self._node.consult(question, self.user, self.id)
        return self.session.consulted(command, decision)


def fileno_of(transport: asyncio.Transport) -> int:
    """The file descriptor of a transport's socket; -1 when it is closed."""
    socket = transport.get_extra_info("socket")
    return -1 if socket is None or transport.is_closing() else socket.fileno()


def is_gone(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its socket, even if that has not been read yet.

    Such as one that gave up waiting for the answer to its handshake, while the node was stopped.
    """
    fileno = fileno_of(transport)
    return fileno == -1 or bool(closed_by_peer([fileno]))


async def let_go(
    connections: list[Connection], over_s: float, reason: CloseReason, text: str
) -> None:
    """Close connections one after another, spread evenly over `over_s` seconds.

    All that come back at once would be a storm for the nodes that take them.
    """
    if not connections:
        return
    loop = asyncio.get_running_loop()
    start, step = loop.time(), over_s / len(connections)
    for i, connection in enumerate(connections):
        if (wait := start + i * step - loop.time()) > 0:
            await asyncio.sleep(wait)
        connection.close(reason, text)


async def look_up(node: "Node", effect: Read | Survey, room: int, address: str) -> Reply:
    """The answer, or the error, to a command that changes nothing.

    `room` bounds the bytes of messages: an answer larger than what may be unsent to its connection
    would end that as too slow. What is read is counted for `address`.
    """
    match effect:
        case Read(command):
            return await _history(node, command, room, address)
        case Survey(ref):
            return await _stats(node, ref)


async def _history(node: "Node", command: ReadHistory, room: int, address: str) -> Reply:
    channel, since, limit, ref = command
    if (debt_s := node.admission.history_debt_s(address)) > 0:
        message = f"too much history is read from this address: wait {debt_s:.1f} s"
        return Failed("rate_limited", message, channel, ref)
    on_read = functools.partial(node.admission.charge_history, address)
    try:
        page = await node.traffic.read_history(
            channel, since, limit, max_bytes=room, on_read=on_read
        )
    except EventBusError as exc:
        return Failed("unavailable", f"the bus cannot be read: {exc}", channel, ref)
    return StoredMessages(channel, page.messages, page.position, ref)


async def _stats(node: "Node", ref: Ref) -> Reply:
    try:
        stats = await node.census.stats(ListQuery())
    except EventBusError as exc:
        return Failed("unavailable", f"the cluster cannot be asked: {exc}", None, ref)
    return ClusterStats(msgspec.to_builtins(stats), ref)


def drop(revocation: Revocation, connections: "list[Connection]", leeway_s: float) -> int:
    """End the connections, or the subscriptions, that a revocation concerns; how many."""
    count = 0
    for connection in connections:
        claims = connection.session.claims
        if connection.is_closing or not revocation.concerns(connection.id, claims, leeway_s):
            continue
        if revocation.channel is None:
            connection.close(CloseReason.REVOKED, "revoked")
        elif not connection.revoke(revocation.channel):
            continue
        count += 1
    return count
